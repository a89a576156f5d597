"""A language model with adapters and soft tokens: batches, packing, files, generation, likelihoods, each against
transformers and PEFT themselves."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.conversations import MediaPart, Message, TextPart
from shared.errors import JobError
from shared.generation import Generation
from shared.language_models import LanguageModelSpec
from shared.language_tuning import Adapter, LanguageTraining
from shared.ml.language.adapters import PeftAdapter
from shared.ml.language.generate import Prompted, generate
from shared.ml.language.likelihood import answer_log_likelihoods
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.ml.language.sampling import nucleus
from shared.ml.language.soft_tokens import Media, Projector, ProjectorConfig
from shared.ml.language.tuned import TunedConfig, TunedLanguageModel
from shared.queues import Modality
from shared.testing.tiny import tiny_language_model

KINDS = ("llama", "gemma3")
ADAPTERS = [Adapter.LORA, Adapter.PROMPT, Adapter.P_TUNING, Adapter.PREFIX]
QUESTIONS = ["Why?", "What is the colour of the sky above the port, and who has painted it?", "So what now?"]
ANSWERS = ["yes", "no, never", "x"]
VECTOR = np.linspace(-1, 1, 6, dtype=np.float32)


@pytest.fixture(scope="module", params=KINDS)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModelSpec:
    return tiny_language_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def base(spec: LanguageModelSpec) -> LanguageModel:
    return load_language_model(spec, device="cpu", precision="fp32")


@pytest.fixture
def tune(base: LanguageModel) -> Iterator[Callable[..., TunedLanguageModel]]:
    """Makes tuned models whose adapters really change something, and takes them off again."""
    made = []

    def make(adapter: Adapter, *, projector: bool = False, seed: int = 0) -> TunedLanguageModel:
        torch.manual_seed(seed)
        training = LanguageTraining(adapter=adapter, virtual_tokens=5, lora_rank=2)
        new = None if adapter is Adapter.NONE else PeftAdapter.new(base.model, training)
        with torch.no_grad():
            for _, parameter in new.parameters() if new else ():
                parameter.add_(0.3 * torch.randn_like(parameter))
        config = ProjectorConfig(dimension=6, tokens=3, embedding=base.hidden, hidden=8)
        projectors = {Modality.IMAGE: Projector(config, base.embedding_norm)} if projector else {}
        facts = TunedConfig(
            language_model=base.spec.id, fingerprint=base.fingerprint, adapter=adapter,
            projectors=dict.fromkeys(projectors, config),
        )  # fmt: skip
        made.append(TunedLanguageModel(base, facts, new, projectors))
        return made[-1]

    yield make
    for model in made:
        model.close()


def asked(text: str, *, image: bool = False) -> list[Message]:
    parts = [MediaPart(type="image"), TextPart(text=text)] if image else text
    return [Message(role="user", content=parts)]


def logits_of(model: TunedLanguageModel, text: str) -> torch.Tensor:
    """[n, vocabulary] of a conversation, virtual tokens left out."""
    encoded = model.encode(asked(text), [])
    with model.active(), torch.inference_mode():
        return model.logits(model.batch([encoded], [[]])).logits[0, -len(encoded) :]


@pytest.mark.parametrize("adapter", [*ADAPTERS, Adapter.NONE])
def test_a_batch_has_the_losses_of_its_members(tune: Any, adapter: Adapter) -> None:
    """Padding changes nothing, whatever stands before the conversation; nor does the other's length."""
    model = tune(adapter, projector=True)
    media = [[Media(Modality.IMAGE, VECTOR)], [Media(Modality.IMAGE, None)], [Media(Modality.IMAGE, -VECTOR)]]
    encoded = [
        model.encode(asked(q, image=True), m, answer=a) for q, m, a in zip(QUESTIONS, media, ANSWERS, strict=True)
    ]
    if model.rows_together(100, 3) == 1:
        pytest.skip("a prefix is too far from conversations that are padded")
    with model.active(), torch.inference_mode():
        together, count = model.loss(model.batch(encoded, media))
        alone = [model.loss(model.batch([e], [m])) for e, m in zip(encoded, media, strict=True)]
    assert count == sum(n for _, n in alone) == sum(len(a) + 1 for a in ANSWERS)
    assert float(together) == pytest.approx(sum(float(loss) for loss, _ in alone), rel=1e-5)


def test_packed_conversations_do_not_see_each_other(tune: Any) -> None:
    """The loss of a row of three is that of the three alone; so are the gradients."""
    model = tune(Adapter.LORA, projector=True)
    media = [[Media(Modality.IMAGE, VECTOR)], [], []]
    encoded = [
        model.encode(asked(q, image=bool(m)), m, answer=a) for q, m, a in zip(QUESTIONS, media, ANSWERS, strict=True)
    ]
    found = []
    for batch in (model.packed(encoded, media), model.batch(encoded, media)):
        with model.active():
            loss, count = model.loss(batch)
            loss.backward()
        gradients = [p.grad.clone() for _, p in model.adapter.parameters()]
        gradients += [p.grad.clone() for p in model.projectors.parameters()]
        for _, p in [*model.adapter.parameters(), *model.projectors.named_parameters()]:
            p.grad = None
        found.append((loss.item(), count, gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == found[1][1]
    for packed, padded in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-3, atol=1e-4)


def test_soft_tokens_are_as_long_as_words(tune: Any, base: LanguageModel) -> None:
    """And what they say reaches the answer; without a vector there are none."""
    model = tune(Adapter.NONE, projector=True)
    tokens = model.projectors["image"](torch.from_numpy(VECTOR)[None])
    assert tokens.shape == (1, 3, base.hidden)
    np.testing.assert_allclose(tokens.detach().norm(dim=-1), base.embedding_norm, rtol=1e-5)
    said = []
    for vector in (VECTOR, -VECTOR, None):
        media = [Media(Modality.IMAGE, vector)]
        encoded = model.encode(asked("?", image=True), media, answer="a")
        with model.active(), torch.inference_mode():
            said.append(float(model.loss(model.batch([encoded], [media]))[0]))
    assert len(set(said)) == 3
    none = model.encode(asked("?"), [], answer="a")
    with model.active(), torch.inference_mode():
        assert said[2] == pytest.approx(float(model.loss(model.batch([none], [[]]))[0]))
    with pytest.raises(JobError) as caught:
        model.encode(asked("?", image=True), [])
    assert caught.value.error_code == "media_differ"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_plain_peft_reads_the_adapter(tune: Any, spec: LanguageModelSpec, tmp_path: Path, adapter: Adapter) -> None:
    """transformers and PEFT alone, from the files, have the same logits; so has the model loaded here again."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = tune(adapter)
    files = model.files()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    plain: Any = AutoModelForCausalLM.from_pretrained(spec.source)
    peft = PeftModel.from_pretrained(plain, tmp_path).eval()
    ids = torch.tensor([model.encode(asked(QUESTIONS[1]), []).ids])
    with torch.inference_mode():
        theirs = peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :]
        untouched = AutoModelForCausalLM.from_pretrained(spec.source)(input_ids=ids).logits[0]
    ours = logits_of(model, QUESTIONS[1])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - untouched).abs().max() > 1e-2
    torch.testing.assert_close(logits_of(TunedLanguageModel.plain(model.base), QUESTIONS[1]), untouched)
    again = TunedLanguageModel.load(files, model.base)
    torch.testing.assert_close(logits_of(again, QUESTIONS[1]), ours)
    again.close()


def test_several_models_stand_on_one_base(tune: Any) -> None:
    """Each speaks for itself, whichever spoke before; one that is closed leaves the others as they are."""
    models = [tune(Adapter.LORA, seed=seed) for seed in (1, 2)] + [tune(Adapter.PROMPT)]
    plain = TunedLanguageModel.plain(models[0].base)
    before = [logits_of(m, "What?") for m in (*models, plain)]
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(before) for b in before[:i])
    gone = TunedLanguageModel.load(models[0].files(), models[0].base)
    gone.close()
    for model, expected in zip((plain, *reversed(models)), (before[3], *reversed(before[:3])), strict=True):
        torch.testing.assert_close(logits_of(model, "What?"), expected)


def test_other_weights_are_refused(tune: Any, base: LanguageModel) -> None:
    """An adapter means nothing on another model."""
    from dataclasses import replace

    with pytest.raises(JobError) as caught:
        TunedLanguageModel.load(tune(Adapter.LORA).files(), replace(base, fingerprint="0" * 64))
    assert caught.value.error_code == "language_model_changed"


@pytest.mark.parametrize("adapter", [*ADAPTERS, Adapter.NONE])
def test_greedy_answers_are_those_of_steps_without_cache(tune: Any, adapter: Adapter) -> None:
    """The likeliest token after the whole so far, again and again, one conversation at a time."""
    model = tune(adapter, projector=True)
    media = [[Media(Modality.IMAGE, VECTOR)], [], [Media(Modality.IMAGE, None)]]
    prompts = [
        Prompted(asked(q, image=bool(m)), m, Generation(temperature=0, max_tokens=n))
        for q, m, n in zip(QUESTIONS, media, (12, 40, 7), strict=True)
    ]
    pieces: dict[int, list[str]] = {0: [], 1: [], 2: []}
    answers = generate(model, prompts, emit=lambda row, text: pieces[row].append(text))
    for row, (prompted, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert answer.text == "".join(pieces[row])
        assert (answer.text, answer.completion_tokens) == slowly(model, prompted)
        assert answer.prompt_tokens == len(model.encode(prompted.conversation, prompted.media))


def slowly(model: TunedLanguageModel, prompted: Prompted) -> tuple[str, int]:
    """Without cache, batches and pieces."""
    encoded = model.encode(prompted.conversation, prompted.media)
    said: list[int] = []
    ends = model.base.tokenizer.end_ids
    while len(said) < prompted.generation.max_tokens and not (said and said[-1] in ends):
        whole = type(encoded)(
            [*encoded.ids, *said], [*encoded.labels, *said], [*encoded.media, *[-1] * len(said)]
        )  # fmt: skip
        with model.active(), torch.inference_mode():
            said.append(int(model.logits(model.batch([whole], [prompted.media])).logits[0, -1].argmax()))
    return model.base.tokenizer.tokenizer.decode(said, skip_special_tokens=True), len(said)


def test_an_answer_depends_on_its_seed_and_not_on_its_neighbours(base: LanguageModel) -> None:
    """The same alone and among others; another with another seed."""
    prompts = [Prompted(asked(q), (), Generation(seed=seed, max_tokens=20)) for q in QUESTIONS for seed in (1, 2)]
    together = generate(base, prompts)
    assert [generate(base, [p])[0] for p in prompts] == together
    assert together[0].text != together[1].text
    assert {answer.finish_reason for answer in together} <= {"stop", "length"}


def test_stop_words_end_an_answer(base: LanguageModel) -> None:
    """Neither they nor what might have become one of them are ever told too early."""
    free = generate(base, [Prompted(asked("Why?"), (), Generation(seed=3, max_tokens=40))])[0]
    assert len(free.text) > 12
    word = free.text[6:9]
    pieces: list[str] = []
    stopped = generate(
        base, [Prompted(asked("Why?"), (), Generation(seed=3, max_tokens=40, stop=[word]))],
        emit=lambda _, text: pieces.append(text),
    )[0]  # fmt: skip
    assert stopped.text == free.text[: free.text.index(word)] == "".join(pieces)
    assert stopped.finish_reason == "stop"


def test_check_stops_it_within_a_token(base: LanguageModel) -> None:
    """Whatever it raises comes out, and the base model is as before."""
    calls = iter(range(5))
    before = logits_of(TunedLanguageModel.plain(base), "?")
    with pytest.raises(StopIteration):
        generate(base, [Prompted(asked("?"), (), Generation(max_tokens=100))], check=lambda: next(calls) and None)
    torch.testing.assert_close(logits_of(TunedLanguageModel.plain(base), "?"), before)


@pytest.mark.parametrize("adapter", [*ADAPTERS, Adapter.NONE])
def test_likelihoods_are_those_of_the_whole(tune: Any, adapter: Adapter) -> None:
    """log p of each answer, read together with its question, without cache; an answer's end is not part of it."""
    model = tune(adapter)
    found = answer_log_likelihoods(model, [Prompted(asked(q)) for q in QUESTIONS], ANSWERS)
    for row, question in enumerate(QUESTIONS):
        for column, answer in enumerate(ANSWERS):
            whole = model.encode(asked(question), [], answer=answer)
            with model.active(), torch.inference_mode():
                logits = model.logits(model.batch([whole], [[]])).logits[0].log_softmax(-1)
            words = whole.ids[-len(answer) - 1 : -1]
            expected = sum(float(logits[-len(answer) - 2 + i, id]) for i, id in enumerate(words))
            assert found[row, column] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(JobError, match="without words"):
        answer_log_likelihoods(model, [], [""])


def test_the_nucleus_is_the_fewest_that_suffice() -> None:
    """At least one, and no more than needed."""
    given = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert nucleus(given, 0.6).tolist() == pytest.approx([0, 0.4, 0, 0.3])
    assert nucleus(given, 0.71).tolist() == pytest.approx([0, 0.4, 0.2, 0.3])
    assert nucleus(given, 1e-9).tolist() == pytest.approx([0, 0.4, 0, 0])


def test_4bit_is_for_gpus_that_have_it(spec: LanguageModelSpec) -> None:
    """Elsewhere it is an error in words, before anything is read."""
    with pytest.raises(JobError, match="bitsandbytes") as caught:
        load_language_model(spec, device="cpu", quantization="4bit")
    assert caught.value.error_code == "quantization_unavailable"


def test_what_is_no_language_model_is_said_in_words(tmp_path: Path) -> None:
    """Missing, without safetensors, of an unknown package."""
    for loader, source, code in (
        ("transformers", str(tmp_path / "nowhere"), "language_model_unavailable"),
        ("transformers", str(tmp_path), "language_model_invalid"),
        ("gguf", "package:shared", "language_model_invalid"),
    ):
        spec = LanguageModelSpec.model_validate({"id": "x", "loader": loader, "source": source})
        with pytest.raises(JobError) as caught:
            load_language_model(spec)
        assert caught.value.error_code == code
