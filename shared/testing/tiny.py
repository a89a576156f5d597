"""Encoders, language models and data small enough to be trained in a test."""

import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile

from shared.catalog import EncoderSpec
from shared.language_models import LanguageModelSpec
from shared.ml.torchvision_shim import make_torchvision_importable
from shared.queues import Modality

_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_FILLERS = ("the", "a", "red", "blue", "park", "house", "runs")
SOUNDS = ("tone", "rising", "falling", "noise")
SAMPLE_RATE = 16_000


def tiny_bert(folder: Path) -> EncoderSpec:
    """A BERT with random weights that knows the words of `word_order`; its files are written into `folder`."""
    make_torchvision_importable()
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    transformers: Any = importlib.import_module("transformers")  # its functions have no types
    transformers.utils.logging.disable_progress_bar()
    vocabulary = {word: place for place, word in enumerate([*_SPECIAL.values(), *_FILLERS, "dog", "cat"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=24,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return EncoderSpec(
        id="tiny-bert", modality=Modality.TEXT, dimension=32, loader="transformers", source=str(folder),
        options={"pooling": "mean"},
    )  # fmt: skip


def tiny_cnn(**options: object) -> EncoderSpec:
    """A log-mel CNN with few maps."""
    return EncoderSpec(
        id="tiny-cnn", modality=Modality.AUDIO, dimension=32, loader="log_mel_cnn", fitted=True, supervised=True,
        options={"channels": (8, 16, 32), "window_seconds": 1.0, **options},
    )  # fmt: skip


def word_order(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of the same words, and which of `dog` and `cat` comes first: no bag of words can tell."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = list(rng.choice(_FILLERS, 6))
        pair = [str(word) for word in rng.permutation(["dog", "cat"])]
        first, second = sorted(rng.choice(7, 2, replace=False))
        words.insert(first, pair[0])
        words.insert(second + 1, pair[1])
        found.append((" ".join(words), pair[0]))
    return found


def sounds(count: int, seed: int) -> list[tuple[bytes, str]]:
    """WAV files of different lengths, pitches and loudness, with some noise, and their kinds, SOUNDS in turn."""
    rng = np.random.default_rng(seed)
    kinds: Sequence[str] = [SOUNDS[place % len(SOUNDS)] for place in range(count)]
    return [(_wav(_sound(kind, rng)), kind) for kind in kinds]


def _sound(kind: str, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    time = np.arange(int(SAMPLE_RATE * rng.uniform(0.4, 1.5))) / SAMPLE_RATE
    pitch, loudness = rng.uniform(300, 2500), rng.uniform(0.1, 0.9)
    hertz: dict[str, Any] = {"tone": pitch, "rising": pitch + 1000 * time, "falling": pitch + 2000 - 700 * time}
    samples = np.sin(2 * np.pi * hertz[kind] * time) if kind in hertz else rng.normal(scale=0.5, size=len(time))
    noisy = loudness * samples + rng.normal(scale=0.02, size=len(time))
    return np.asarray(noisy / max(1.0, float(np.abs(noisy).max())))


def _wav(samples: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, SAMPLE_RATE, format="WAV")
    return target.getvalue()


def tiny_clip(folder: Path) -> tuple[EncoderSpec, EncoderSpec]:
    """The text and the image tower of a CLIP with random weights that knows the words of `word_order`."""
    spec = tiny_bert(folder)  # its tokenizer
    transformers: Any = importlib.import_module("transformers")
    import torch

    words = 2 + len(_SPECIAL) + len(_FILLERS)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": words,
            "max_position_embeddings": 24,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)  # fmt: skip
    text = spec.model_copy(update={"id": "tiny-clip-text", "dimension": 16, "options": {"pooling": "clip"}})
    return text, text.model_copy(update={"id": "tiny-clip-image", "modality": Modality.IMAGE})


def byte_tokenizer(**options: Any) -> Any:
    """transformers' fast tokenizer with a token for each byte, and `<pad>`, `<bos>`, `<eos>`; with its `options`."""
    make_torchvision_importable()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    transformers: Any = importlib.import_module("transformers")
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    vocabulary = {token: i for i, token in enumerate([*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **options)


def tiny_language_model(folder: Path, kind: Literal["llama", "gemma3"] = "llama") -> LanguageModelSpec:
    """A causal language model with random weights that reads bytes; its files are written into `folder`.

    That of the kind `gemma3` has what Gemma has: scaled embeddings, few heads of keys, layers that look back 32 tokens.
    """
    tokenizer = byte_tokenizer()
    import torch

    transformers: Any = importlib.import_module("transformers")
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "gemma3":
        config = transformers.Gemma3TextConfig(**sizes, head_dim=8, sliding_window=32, query_pre_attn_scalar=8)
        model = transformers.Gemma3ForCausalLM(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model.save_pretrained(folder)
    return LanguageModelSpec(id=f"tiny-{kind}", loader="transformers", source=str(folder))
