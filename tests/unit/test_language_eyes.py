"""Vision-language models read pictures with their own vision tower: against transformers' own model and processor."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.catalog import EncoderSpec
from shared.conversations import MediaPart, Message, TextPart
from shared.errors import JobError
from shared.generation import Generation
from shared.language_models import LanguageModelSpec
from shared.language_tuning import Adapter, LanguageTraining
from shared.ml.encoders.loading import load_encoder
from shared.ml.language.adapters import PeftAdapter
from shared.ml.language.eyes import eyes_of
from shared.ml.language.generate import Prompted, generate
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.ml.language.soft_tokens import Media
from shared.ml.language.tuned import CONFIG, TunedLanguageModel
from shared.queues import Modality
from shared.testing.models import tune_language_model
from shared.testing.tiny_vision import Kind, tiny_vision_model

KINDS: tuple[Kind, ...] = ("idefics3", "llava", "gemma3")
SHAPES = ((40, 56), (90, 30))

Picture = NDArray[np.uint8]


class Tiny(NamedTuple):
    """A vision-language model: its catalogue entries, as this project reads it, and as transformers does."""

    spec: LanguageModelSpec
    encoder: EncoderSpec
    base: LanguageModel
    reference: Any
    processor: Any

    def media(self, *pictures: Picture) -> list[Media]:
        """Each as the encoder sees it."""
        encoder = load_encoder(self.encoder, device="cpu", precision="fp32")
        vectors = encoder.encode([encoder.preprocess(picture) for picture in pictures])
        return [Media(Modality.IMAGE, vector) for vector in vectors]


@pytest.fixture(scope="module", params=KINDS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp(request.param)
    spec, encoder = tiny_vision_model(folder, request.param)
    base = load_language_model(spec, device="cpu", precision="fp32")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    reference: Any = AutoModelForImageTextToText
    processor: Any = AutoProcessor
    return Tiny(
        spec, encoder, base, reference.from_pretrained(folder, dtype=torch.float32).eval(),
        processor.from_pretrained(folder),
    )  # fmt: skip


def picture(seed: int) -> Picture:
    return np.random.default_rng(seed).integers(0, 255, (*SHAPES[seed % 2], 3), np.uint8)


def asked(*parts: str) -> list[Message]:
    """A turn; `<picture>` stands for one."""
    content = [MediaPart(type="image") if p == "<picture>" else TextPart(text=p) for p in parts]
    return [Message(role="user", content=content)]


def as_reference(tiny: Tiny, conversation: list[Message], pictures: list[Picture]) -> Any:
    """The same conversation as transformers' own processor puts it to its own model: its inputs."""
    turns = [{"role": m.role, "content": [p.model_dump() for p in m.parts]} for m in conversation]
    text = tiny.processor.apply_chat_template(turns, add_generation_prompt=True)
    whole = {"do_image_splitting": False} if "idefics3" in tiny.spec.id else {}
    return tiny.processor(text=text, images=pictures, add_special_tokens=False, return_tensors="pt", **whole)


@pytest.mark.parametrize(
    "parts",
    [("<picture>", "What is it?"), ("Look: ", "<picture>", "\n\nWhat?"), ("<picture>", "<picture>", "Which?")],
)
def test_logits_are_those_of_the_model_itself(tiny: Tiny, parts: tuple[str, ...]) -> None:
    """Token by token, of a conversation with a picture, with words before it, and with two."""
    conversation, pictures = asked(*parts), [picture(i) for i in range(parts.count("<picture>"))]
    with torch.inference_mode():
        inputs = as_reference(tiny, conversation, pictures)
        expected = tiny.reference(**inputs).logits[0]
        media = tiny.media(*pictures)
        model = TunedLanguageModel.plain(tiny.base)
        encoded = model.encode(conversation, media)
        with model.active():
            found = model.logits(model.batch([encoded], [media])).logits[0]
    words = [id for id, place in zip(encoded.ids, encoded.media, strict=True) if place < 0]
    image_token = tiny.reference.config.image_token_id
    assert words == [id for id in inputs["input_ids"][0].tolist() if id != image_token]
    assert sum(place >= 0 for place in encoded.media) == int((inputs["input_ids"] == image_token).sum()) > 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std()) > 1e-2, "logits that say something"


def test_a_batch_of_different_pictures_has_the_logits_of_each(tiny: Tiny) -> None:
    """Shorter conversations are padded; one has no picture at all."""
    talks = [asked("<picture>", "What is it?"), asked("Why?"), asked("So, what do you see here: ", "<picture>")]
    media = [tiny.media(picture(0)), [], tiny.media(picture(1))]
    model = TunedLanguageModel.plain(tiny.base)
    encoded = [model.encode(talk, some) for talk, some in zip(talks, media, strict=True)]
    with torch.inference_mode(), model.active():
        together = model.logits(model.batch(encoded, media), keep=1).logits[:, 0]
        alone = [
            model.logits(model.batch([one], [some]), keep=1).logits[0, 0]
            for one, some in zip(encoded, media, strict=True)
        ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)
    if tiny.spec.id == "tiny-gemma3":  # whose token types do not go with several conversations in a row
        return
    with torch.inference_mode(), model.active():
        packed = model.logits(model.packed(encoded, media)).logits[0]
    ends = np.cumsum([len(one) for one in encoded]) - 1
    torch.testing.assert_close(packed[ends], torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_the_answer_is_that_of_the_model_itself(tiny: Tiny) -> None:
    """Greedily, with the cache of what was read before."""
    conversation, seen = asked("<picture>", "What is it?"), picture(3)
    inputs = as_reference(tiny, conversation, [seen])
    with torch.inference_mode():
        said = tiny.reference.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    expected = tiny.processor.tokenizer.decode(said, skip_special_tokens=True)
    drawn = Generation(temperature=0, max_tokens=8)
    [found] = generate(tiny.base, [Prompted(conversation, tiny.media(seen), drawn)])
    assert found.text == expected
    [blind] = generate(tiny.base, [Prompted(conversation, [Media(Modality.IMAGE, None)], drawn)])
    assert blind.prompt_tokens < found.prompt_tokens


def test_a_tuned_model_sees_too_and_says_so_in_its_files(tiny: Tiny) -> None:
    """Its sounds enter through a projector, beside pictures that need none; models of before have neither word."""
    media = [*tiny.media(picture(0)), Media(Modality.AUDIO, np.ones(6, np.float32))]
    talk = [Message(role="user", content=[MediaPart(type="image"), MediaPart(type="audio"), TextPart(text="Well?")])]
    tuned = tune_language_model(tiny.base, {Modality.AUDIO: 6}, image_encoder=tiny.encoder.id)
    try:
        files = tuned.files()
        assert json.loads(files[CONFIG])["image_encoder"] == tiny.encoder.id
        drawn = Generation(temperature=0, max_tokens=4)
        [said] = generate(tuned, [Prompted(talk, media, drawn)])
    finally:
        tuned.close()
    again = TunedLanguageModel.load(files, tiny.base)
    try:
        assert generate(again, [Prompted(talk, media, drawn)]) == [said]
        assert again.dimensions == {Modality.IMAGE: tiny.encoder.dimension, Modality.AUDIO: 6}
        with pytest.raises(JobError, match="vectors of") as wrong:
            again.encode(asked("<picture>"), [Media(Modality.IMAGE, np.ones(7, np.float32))])
        assert wrong.value.error_code == "unsuitable_features"
    finally:
        again.close()
    before = tune_language_model(tiny.base, {Modality.AUDIO: 6})
    try:
        assert "image_encoder" not in json.loads(before.files()[CONFIG]), "workers of before know no such word"
        assert TunedLanguageModel.load(before.files(), tiny.base).dimensions == {Modality.AUDIO: 6}
    finally:
        before.close()


@pytest.mark.parametrize("adapter", [Adapter.LORA, Adapter.PROMPT, Adapter.P_TUNING, Adapter.PREFIX])
def test_every_adapter_learns_beside_pictures(tiny: Tiny, adapter: Adapter) -> None:
    """Its parameters have gradients, and the loss of a batch is that of its members."""
    torch.manual_seed(0)
    made = PeftAdapter.new(tiny.base.model, LanguageTraining(adapter=adapter, virtual_tokens=3, lora_rank=2))
    plain = TunedLanguageModel.plain(tiny.base)
    model = TunedLanguageModel(tiny.base, plain.config.model_copy(update={"adapter": adapter}), made, {})
    media = [tiny.media(picture(0)), tiny.media(picture(1))]
    talks = [asked("<picture>", "What is it?"), asked("So, what do you see here: ", "<picture>")]
    encoded = [model.encode(talk, some, answer="no") for talk, some in zip(talks, media, strict=True)]
    try:
        with model.active():
            model.train(mode=False)
            together = model.loss(model.batch(encoded, media))[0]
            alone = [model.loss(model.batch([one], [some]))[0] for one, some in zip(encoded, media, strict=True)]
            together.backward()
        if model.rows_together(max(len(one) for one in encoded), 2) == 2:  # else a prefix is too far from padded rows
            torch.testing.assert_close(together, torch.stack(alone).sum(), atol=1e-3, rtol=1e-4)
        assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for _, p in made.parameters())
    finally:
        model.close()


def test_only_what_is_needed_stays_in_memory(tiny: Tiny) -> None:
    """The language model has no vision tower, and what LoRA changes are layers of the text; the encoder has no text."""
    tuned = tune_language_model(tiny.base, {})
    try:
        assert all("vision" not in name for name, _ in tuned.base.model.named_parameters())
    finally:
        tuned.close()
    encoder: Any = load_encoder(tiny.encoder, device="cpu", precision="fp32")
    assert not [name for name, _ in encoder._model.named_parameters() if "embed_tokens" in name]


def test_a_model_whose_tokens_depend_on_the_picture_is_refused(tmp_path: Path) -> None:
    """A Pixtral tower has a token for each patch of a picture that keeps its shape."""
    transformers: Any = importlib.import_module("transformers")
    _, encoder = tiny_vision_model(tmp_path, "llava")
    config = transformers.LlavaConfig.from_pretrained(tmp_path)
    config.vision_config = transformers.PixtralVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8
    )
    config.vision_feature_select_strategy = "full"
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").unlink()
    transformers.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8).save_pretrained(tmp_path)
    with pytest.raises(JobError, match="depends on the picture") as refused:
        load_encoder(encoder, device="cpu", precision="fp32")
    assert refused.value.error_code == "encoder_invalid"


def test_no_vision_tower_and_no_processor_are_said_in_words(tmp_path: Path) -> None:
    spec, encoder = tiny_vision_model(tmp_path)
    with pytest.raises(JobError, match="catalogue says 7"):
        load_encoder(encoder.model_copy(update={"dimension": 7}), device="cpu", precision="fp32")
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(JobError) as missing:
        load_language_model(spec, device="cpu", precision="fp32")
    assert missing.value.error_code == "language_model_invalid"


def test_a_processor_that_does_not_say_where_pictures_come_in_is_refused(tmp_path: Path) -> None:
    """An image processor alone, as a folder of an encoder has it."""
    spec, _ = tiny_vision_model(tmp_path)
    model = SimpleNamespace(
        config=SimpleNamespace(model_type="llava", image_token_id=7), forward=lambda input_ids: None
    )
    with pytest.raises(JobError, match="image_token") as refused:
        eyes_of(spec, SimpleNamespace(image_processor=None, tokenizer=None), model)
    assert refused.value.error_code == "language_model_invalid"


def test_an_image_encoder_is_for_models_that_see() -> None:
    with pytest.raises(ValueError, match="image_text_to_text"):
        LanguageModelSpec(id="x", loader="transformers", source="x", image_encoder="y")
