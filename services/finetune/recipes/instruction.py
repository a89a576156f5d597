"""The recipe of language models: instruction tuning and soft prompts, with pictures and sounds as soft tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from services.finetune.checks import Finding, check_sizes
from services.finetune.event_log import event_log
from services.finetune.language.card import language_card
from services.finetune.language.data import Conversations, Example, classes_of, make_examples, strata_of
from services.finetune.language.dry_run import Prepared, dry_run, prepare, question_text
from services.finetune.language.evaluation import Compared, Judge, compare
from services.finetune.language.training import LanguageTrainer
from services.finetune.modelling import Outside
from services.finetune.outcome import Outcome
from services.finetune.versions import versions
from shared.errors import JobError
from shared.fine_tuning import Splitting
from shared.items import Split
from shared.json_numbers import as_json
from shared.language_tuning import Adapter, LanguageTraining
from shared.ml.language.adapters import PeftAdapter
from shared.ml.language.loading import LanguageModel
from shared.ml.language.soft_tokens import Projector, ProjectorConfig
from shared.ml.language.tuned import TunedConfig, TunedLanguageModel
from shared.ml.repeatable import derived_seed, generator, repeatable
from shared.ml.splits import Parts, divide
from shared.prompts import PromptTemplate
from shared.queues import Modality

_FEWEST_ITEMS = 10


class TuningRequest(Protocol):
    """What is asked for: an InstructionRequest, or another that trains a language model."""

    method: Any
    training: LanguageTraining
    splitting: Splitting
    prompt: PromptTemplate | str | None


@dataclass(frozen=True)
class _Run:
    """All that is trained with."""

    examples: list[Example]
    parts: dict[Split, Prepared]
    classes: list[str]
    prompt: PromptTemplate
    training: LanguageTraining
    findings: list[Finding]
    read: dict[str, Any]


def tune_language_model(
    data: Conversations,
    request: TuningRequest,
    base: LanguageModel,
    outside: Outside,
    *,
    start: Mapping[str, bytes] | None = None,
    encoders: Mapping[str, str] | None = None,
) -> Outcome | None:
    """A tuned model, and what it is worth beside its base on the same items. `start`: the files of a tuned model whose
    training goes on. `encoders`: the ids of those whose vectors are in the data, by modality. Of several processes that
    train together the first has this to say; the others return None.

    The same data, request and numbers of threads and processes give the same model bit by bit on a CPU, however often
    the run was stopped. Raises JobError if nothing can be trained, and what `progress.check` raises.
    """
    training = request.training
    prompt = request.prompt if isinstance(request.prompt, PromptTemplate) else PromptTemplate()
    with repeatable(outside.device, _many(base)):
        examples = make_examples(data, prompt)
        if len(examples) < _FEWEST_ITEMS:
            message = f"Only {len(examples)} items have an answer; give at least {_FEWEST_ITEMS}, better hundreds."
            raise JobError(message, code="too_few_items", param="items")
        parts = _divide(examples, request)
        train = [examples[row] for row in parts.train]
        if start is None:
            model = _new_model(base, train, training, sees=sees(base, encoders or {}))
        else:
            model = _begun_model(start, base, training)
        facts = {"prompt": prompt, "labels": classes_of(examples), "max_length": training.max_length}
        model.config = model.config.model_copy(update=facts)
        try:
            run = _prepare(model, examples, parts, request, prompt)
            return _train(model, run, request, outside)
        finally:
            model.close()


def _train(model: TunedLanguageModel, run: _Run, request: TuningRequest, outside: Outside) -> Outcome | None:
    """Says what is trained with, trains, and judges what came of it: see tune_language_model."""
    progress, group = outside.progress, outside.group
    for finding in run.findings:
        progress.report(finding.severity, code=finding.code, message=finding.message)
    progress.report("split", **{part: len(rows) for part, rows in run.parts.items()})
    for part, facts in run.read.items():
        progress.report("dry_run", part=part, **facts)
    trainer = LanguageTrainer(model, run.training, progress, run.parts[Split.TRAIN], run.parts[Split.VALIDATION], group)
    trainer.run()
    group.leave()
    if group.rank:
        return None
    judge = _judge(run, model)
    plain = TunedLanguageModel.plain(model.base, sees=model.config.image_encoder is not None)
    compared = compare(judge, plain, model, progress)
    metrics = as_json(_facts(run, request, model, trainer, judge, outside) | compared.scores)
    progress.report("step", doing="writing the model")
    return Outcome(_files(model, metrics, judge, compared, trainer), metrics, _spec(metrics, run))


def _many(base: LanguageModel) -> int:
    return int(sum(p.numel() for p in base.model.parameters()))


def _divide(examples: Sequence[Example], request: TuningRequest) -> Parts:
    strata = strata_of(examples)
    kinds = sorted(set(strata))
    mask = np.array(strata)[:, None] == np.array(kinds)
    rng = generator(request.training.seed, "split")
    return divide([example.split for example in examples], mask, request.splitting, rng)


def sees(base: LanguageModel, encoders: Mapping[str, str]) -> bool:
    """Whether pictures that these encoders (ids by modality) have seen are image tokens of the base model itself."""
    own = base.spec.image_encoder
    return own is not None and encoders.get(Modality.IMAGE) == own


def _begun_model(start: Mapping[str, bytes], base: LanguageModel, training: LanguageTraining) -> TunedLanguageModel:
    """With the adapter and projectors that it starts with."""
    _check_packing(base, training)
    model = TunedLanguageModel.load(start, base)
    if model.config.adapter is not training.adapter:
        model.close()
        message = f"The model that is to go on has the adapter {model.config.adapter}; ask for that one."
        raise JobError(message, code="unsuitable_adapter", param="training.adapter")
    return model


def _new_model(
    base: LanguageModel, train: Sequence[Example], training: LanguageTraining, *, sees: bool
) -> TunedLanguageModel:
    """With new adapter and projectors; the pictures of a base model that `sees` need none."""
    _check_packing(base, training)
    torch.manual_seed(derived_seed(training.seed, "weights"))
    vectors = {m: rows for m, rows in _vectors(train).items() if not (sees and m is Modality.IMAGE)}
    configs = {
        m: ProjectorConfig(
            dimension=rows.shape[1], tokens=training.projector_tokens, embedding=base.hidden, hidden=base.hidden
        )
        for m, rows in vectors.items()
    }
    projectors = {m.value: Projector(config, base.embedding_norm) for m, config in configs.items()}
    for modality, rows in vectors.items():
        projectors[modality.value].fit(torch.from_numpy(rows))
    adapter = None if training.adapter is Adapter.NONE else PeftAdapter.new(base.model, training)
    config = TunedConfig(
        language_model=base.spec.id, fingerprint=base.fingerprint, adapter=training.adapter, projectors=configs,
        image_encoder=base.spec.image_encoder if sees else None,
    )  # fmt: skip
    return TunedLanguageModel(base, config, adapter, projectors)


def _check_packing(base: LanguageModel, training: LanguageTraining) -> None:
    if training.packing and base.eyes is not None and base.eyes.is_marked:
        message = (
            f"Pictures of {base.spec.id} are told by token types, with which conversations in one row would see each "
            "other: leave out training.packing."
        )
        raise JobError(message, code="unsuitable_option", param="training.packing")


def _vectors(examples: Sequence[Example]) -> dict[Modality, Any]:
    """Of the media that training conversations hold, float32 [n, d_m] by modality."""
    found: dict[Modality, list[Any]] = {}
    for example in examples:
        for one in example.media:
            if one.vector is not None:
                found.setdefault(one.modality, []).append(one.vector)
    return {m: np.stack(found[m]) for m in Modality if m in found}


def _prepare(
    model: TunedLanguageModel, examples: list[Example], parts: Parts, request: TuningRequest, prompt: PromptTemplate
) -> _Run:
    training = request.training
    chosen = {part: [examples[row] for row in rows] for part, rows in parts.named().items()}
    prepared = {part: prepare(model, some, training.max_length) for part, some in chosen.items()}
    read = {part.value: dry_run(model, chosen[part], prepared[part]) for part in prepared}
    if empty := [split.value for split, found in prepared.items() if not len(found)]:
        message = f"No answer of {' and '.join(empty)} items fits into training.max_length; raise it."
        raise JobError(message, code="too_few_items", param="training.max_length")
    findings = [Finding("split", "info", note) for note in parts.notes] + list(check_sizes(parts))
    for part, facts in read.items():
        if facts["cut"]["examples"]:
            message = (
                f"{facts['cut']['examples']} of {facts['examples']} {part} questions are longer than "
                f"{training.max_length} tokens and lose their start."
            )
            findings.append(Finding("questions_cut", "warning", message))
        if facts["left_out"]["examples"]:
            message = f"{facts['left_out']['examples']} {part} items have answers that do not fit; they are left out."
            findings.append(Finding("answers_too_long", "warning", message))
    return _Run(examples, prepared, classes_of(examples), prompt, training, findings, read)


def _judge(run: _Run, model: TunedLanguageModel) -> Judge:
    """Of the test items, at most so many as are asked for, chosen at random."""
    test, training = run.parts[Split.TEST].examples, run.training
    order = generator(training.seed, "evaluated").permutation(len(test))[: training.evaluated_items]
    words = model.base.tokenizer.words
    return Judge(
        [test[row] for row in sorted(order)], run.classes, run.prompt, training,
        longest_answer=max(len(words(e.answer)) for e in run.parts[Split.TRAIN].examples),
        one_line=not any("\n" in e.answer for e in run.examples),
    )  # fmt: skip


def _facts(
    run: _Run,
    request: TuningRequest,
    model: TunedLanguageModel,
    trainer: LanguageTrainer,
    judge: Judge,
    outside: Outside,
) -> dict[str, Any]:
    """How the model came about."""
    base = model.base.model
    return {
        "method": str(request.method),
        "task": "generation",
        "language_model": model.base.spec.id,
        "adapter": run.training.adapter.value,
        "seed": run.training.seed,
        "threads": torch.get_num_threads(),
        "processes": outside.group.world_size,
        "device": str(outside.device),
        "dtype": str(base.dtype).removeprefix("torch."),
        "versions": versions(),
        "items": {part: len(rows) for part, rows in run.parts.items()},
        "evaluated_items": len(judge.examples),
        "dimensions": {m.value: dimension for m, dimension in model.dimensions.items()},
        "image_encoder": model.config.image_encoder,
        "checks": [finding.as_json() for finding in run.findings],
        "dry_run": run.read,
        "main_score": judge.main_score,
        "curve": trainer.history,
        "steps": trainer.kept["steps"],
        "validation_loss": trainer.kept["validation_loss"],
        "trained_tokens": trainer.tokens,
        "complexity": {
            "parameters": _many(model.base),
            "trained_parameters": trainer.trained_parameters,
            "training_seconds": trainer.seconds,
            "tokens_per_second": trainer.tokens / max(trainer.seconds, 1e-9),
        },
    }


def _files(
    model: TunedLanguageModel, metrics: dict[str, Any], judge: Judge, compared: Compared, trainer: LanguageTrainer
) -> dict[str, bytes]:
    """The model, `metrics.json`, `README.md`, `test_items.jsonl`, and `tensorboard/` with a folder for each phase."""
    lines = [
        {"id": e.id, "question": question_text(e), "answer": e.answer, "base": before, "tuned": after}
        for e, before, after in zip(judge.examples, compared.base, compared.tuned, strict=True)
    ]
    curves: dict[str, list[dict[str, float]]] = {}
    for entry in trainer.history:
        curves.setdefault(entry["model"], []).append({k: v for k, v in entry.items() if k != "model"})
    return {
        **model.files(),
        "metrics.json": json.dumps(metrics, indent=1, ensure_ascii=False).encode(),
        "README.md": language_card(metrics, judge.examples, compared.base, compared.tuned).encode(),
        "test_items.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(),
        **{f"tensorboard/{name}/events.out.tfevents.0.trivium": event_log(curve) for name, curve in curves.items()},
    }


def _spec(metrics: dict[str, Any], run: _Run) -> dict[str, Any]:
    """What has to be known before the files are opened."""
    named = {
        name: metrics[name] for name in ("method", "task", "language_model", "adapter", "dimensions", "seed", "threads")
    }
    return {**named, "dimension": 0, "fusions": [], "classes": run.classes, "multi_label": False}
