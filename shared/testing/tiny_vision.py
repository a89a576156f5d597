"""Vision-language models small enough for a test: random weights, with the processor and templates of the real ones."""

import importlib
from pathlib import Path
from typing import Any, Literal

from shared.catalog import EncoderSpec
from shared.language_models import LanguageModelSpec
from shared.queues import Modality
from shared.testing.tiny import byte_tokenizer

Kind = Literal["idefics3", "llava", "gemma3"]

_TURNS = (
    "{% for m in messages %}<turn>{{ m.role | capitalize }}"
    "{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for part in m.content %}{% if part.type == 'image' %}PICTURE{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
#: Pictures first, as that of LLaVA 1.5.
_PICTURES_FIRST = (
    "{% for m in messages %}{{ m.role | upper }}: "
    "{% for part in m.content | selectattr('type', 'equalto', 'image') %}PICTURE\n{% endfor %}"
    "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def tiny_vision_model(folder: Path, kind: Kind = "idefics3") -> tuple[LanguageModelSpec, EncoderSpec]:
    """One that reads bytes and pictures, and the encoder that is its vision tower; its files go into `folder`."""
    make = {"idefics3": _idefics3, "llava": _llava, "gemma3": _gemma3}[kind]
    tokenizer = _tokenizer(kind)
    import torch

    torch.manual_seed(0)
    model, processor, tokens = make(importlib.import_module("transformers"), tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    language = LanguageModelSpec(
        id=f"tiny-{kind}", loader="image_text_to_text", source=str(folder), image_encoder=f"tiny-{kind}-image"
    )
    encoder = EncoderSpec(
        id=f"tiny-{kind}-image", modality=Modality.IMAGE, dimension=tokens * 32, loader="vision_tokens",
        source=str(folder),
    )  # fmt: skip
    return language, encoder


def _tokenizer(kind: Kind) -> Any:
    if kind == "gemma3":
        named = {"image_token": "<image>", "boi_token": "<begin>", "eoi_token": "<end>"}
        return byte_tokenizer(extra_special_tokens=named)
    tokenizer = byte_tokenizer()
    extra = ["<image>", "<turn>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"]
    tokenizer.add_special_tokens({"additional_special_tokens": extra if kind == "idefics3" else ["<image>"]})
    return tokenizer


def _idefics3(transformers: Any, tokenizer: Any) -> tuple[Any, Any, int]:
    """Pictures of 32 by 32 in patches of 8, two by two joined: 4 tokens."""
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=_TURNS.replace("PICTURE", "<image>")
    )
    text = transformers.LlamaConfig(**_TEXT, vocab_size=len(tokenizer))
    config = transformers.Idefics3Config(
        vision_config={**_VISION, "image_size": 32, "patch_size": 8}, text_config=text.to_dict(), scale_factor=2,
        image_token_id=processor.image_token_id, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Idefics3ForConditionalGeneration(config), processor, 4


def _llava(transformers: Any, tokenizer: Any) -> tuple[Any, Any, int]:
    """16 tokens of 8 by 8, that of the whole left out."""
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_PICTURES_FIRST.replace("PICTURE", "<image>"),
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION, image_size=32, patch_size=8, projection_dim=16),
        text_config=transformers.LlamaConfig(**_TEXT, vocab_size=len(tokenizer)),
        image_token_id=processor.image_token_id, vision_feature_layer=-2,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config), processor, 16


def _gemma3(transformers: Any, tokenizer: Any) -> tuple[Any, Any, int]:
    """4 tokens that see each other; layers that look back 32 tokens."""
    images = transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    template = _TURNS.replace("PICTURE", "<begin>").replace("<turn>", "<bos>").replace("<end_of_utterance>", "<eos>")
    processor = transformers.Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template)
    config = transformers.Gemma3Config(
        vision_config={**_VISION, "image_size": 32, "patch_size": 8, "model_type": "siglip_vision_model"},
        text_config=transformers.Gemma3TextConfig(
            **_TEXT, vocab_size=len(tokenizer), head_dim=8, sliding_window=32, query_pre_attn_scalar=8
        ),
        mm_tokens_per_image=4, image_token_id=tokenizer.image_token_id, boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config), processor, 4
