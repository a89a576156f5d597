"""The recipe for one space for all modalities, in which the vectors of one item find each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from services.finetune.alignment_card import alignment_files
from services.finetune.candidates import BEST_SEEDS, Candidate, suited
from services.finetune.checks import Finding, check_presence, check_sizes, listed
from services.finetune.data import Dataset, Rows
from services.finetune.library import Bench, Network, described
from services.finetune.modelling import Outside
from services.finetune.objectives import Contrastive, make_batch
from services.finetune.outcome import Outcome
from services.finetune.retrieval import mean_reciprocal_rank, retrieval
from services.finetune.settings import Settings
from services.finetune.versions import versions
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest, Preset, Training
from shared.json_numbers import as_json
from shared.ml.repeatable import generator
from shared.ml.splits import Parts, divide
from shared.ml.trained import Member, Task, TrainedConfig, TrainedModel, save_trained
from shared.schemas import FusionMethod

_FEWEST_ITEMS = 10

#: Presets try CCA up to so many training items: it needs all of them at once, in float64. With more, contrast wins.
_MOST_FOR_CCA = 20_000

#: Tuned as the settings of candidates were. Large batches: all other items in one are examples of what does not match.
_SMALL_DATA = Settings(hidden=0, dropout=0.5, weight_decay=10.0)
_LARGEST_BATCH, _BATCH = 1024, 256


@dataclass(frozen=True)
class _Alignment:
    """A trained space, and how well modalities find each other in it among the validation items."""

    network: Network
    files: dict[str, bytes]
    model: TrainedModel
    score: float


def align(data: Dataset, request: FineTuneRequest, outside: Outside) -> Outcome:
    """Trains what the preset says, keeps what finds best among validation items, measures on test items.

    Raises JobError (`too_few_items`, `one_modality`, `unsuitable_fusion`, `no_common_space`), and what stops the run.
    """
    items, parts, findings = _prepare(data, request)
    for finding in findings:
        outside.progress.report(finding.severity, code=finding.code, message=finding.message)
    outside.progress.report("split", **{part: len(rows) for part, rows in parts.named().items()})
    nothing = np.zeros(len(items))
    bench = Bench.of(
        "align",
        train=make_batch(items, parts.train, nothing, outside.device),
        validation=make_batch(items, parts.validation, nothing, outside.device),
        objective=Contrastive,
        outputs=None,
        progress=outside.progress,
    )
    found = [
        _judged(network, items, parts.validation, outside) for network in _fit_all(bench, _candidates(request, parts))
    ]
    best = max(found, key=lambda alignment: alignment.score)
    metrics = as_json(_facts(items, parts, request, outside) | _scores(items, parts, found, best, findings))
    networks = [alignment.network for alignment in found]
    return Outcome(alignment_files(best.files, metrics, networks), metrics, _spec(metrics))


def _prepare(data: Dataset, request: FineTuneRequest) -> tuple[Dataset, Parts, list[Finding]]:
    """The items with two modalities or more, by id, each set of modalities in the same proportions in all parts."""
    if request.fusion is not None and request.fusion.method != "align":
        message = "The method `align` has a fusion of its own: leave out fusion, or choose `align`."
        raise JobError(message, code="unsuitable_fusion", param="fusion")
    if len(data.vectors) < 2:
        raise JobError(
            "Only one modality has vectors: there is nothing to align.", code="one_modality", param="encoders"
        )
    several = np.flatnonzero(np.stack(list(data.present.values())).sum(axis=0) >= 2)
    items = data.take(sorted(several, key=data.ids.__getitem__))
    if len(items) < _FEWEST_ITEMS:
        message = f"Only {len(items)} items have two modalities; give at least {_FEWEST_ITEMS}, better hundreds."
        raise JobError(message, code="too_few_items", param="items")
    kinds = np.stack(list(items.present.values()), axis=1) @ (1 << np.arange(len(items.vectors)))
    strata = kinds[:, None] == np.unique(kinds)
    parts = divide(items.splits, strata, request.splitting, generator(request.training.seed, "split"))
    absent = [m for m, present in items.present.items() if not present[parts.train].any()]
    if absent:
        message = f"No training item has {listed(absent)}: leave its encoder out, or give such items to training."
        raise JobError(message, code="too_few_items", param="items")
    findings = [Finding("split", "info", note) for note in parts.notes]
    if len(items) < len(data):
        message = f"{len(data) - len(items)} of {len(data)} items have fewer than two modalities; they are left out."
        findings.append(Finding("left_out", "info", message))
    return items, parts, [*findings, *check_sizes(parts), *check_presence(items, parts)]


def _candidates(request: FineTuneRequest, parts: Parts) -> list[Candidate]:
    training, count = request.training, len(parts.train)
    given = request.fusion.parameters if request.fusion is not None else {}
    usual = _SMALL_DATA.changed(batch_size=min(_LARGEST_BATCH, max(_BATCH, count // 32)))
    linear = Candidate("contrast", FusionMethod.ALIGN, _suited(usual, training, count), given, training.seed)
    if given.get("learned_by") == "cca":
        return [replace(linear, name="cca", settings=linear.settings.changed(hidden=0))]
    tried = [linear]
    if request.preset is not Preset.FAST and training.hidden is None:
        deep = _suited(usual.changed(hidden=256, weight_decay=2.0), training, count)
        tried.append(replace(linear, name="contrast-hidden", settings=deep))
    if request.preset is Preset.BEST:
        tried = [replace(c, name=f"{c.name}-{i + 1}", seed=c.seed + i) for c in tried for i in range(BEST_SEEDS)]
    if request.preset is not Preset.FAST and "learned_by" not in given and count <= _MOST_FOR_CCA:
        for strength in (1.0, 10.0):
            parameters = {"learned_by": "cca", "regularisation": strength, **given}
            settings = linear.settings.changed(hidden=0)
            tried.append(replace(linear, name=f"cca-{strength:g}", settings=settings, parameters=parameters))
    return tried


def _suited(settings: Settings, training: Training, items: int) -> Settings:
    return suited(settings, training, items).changed(batch_size=training.batch_size or settings.batch_size)


def _fit_all(bench: Bench, candidates: Sequence[Candidate]) -> Iterator[Network]:
    """All that can be fitted; CCA cannot if the data correlate in too few directions, which matters if it is all."""
    for candidate in candidates:
        try:
            yield bench.fit(candidate)
        except JobError as error:
            if error.error_code != "no_common_space" or len(candidates) == 1:
                raise
            bench.progress.report("warning", code=error.error_code, message=error.message)


def _judged(network: Network, items: Dataset, judges: Rows, outside: Outside) -> _Alignment:
    member = Member(name=network.candidate.name, weight=1.0, model=network.config)
    files = save_trained(TrainedConfig(task=Task.ALIGN, members=[member]), [network.fit.state])
    model = TrainedModel.load(files, outside.device)
    return _Alignment(network, files, model, mean_reciprocal_rank(_retrieval(model, items, judges)))


def _retrieval(model: TrainedModel, items: Dataset, rows: Rows) -> dict[str, Any]:
    chosen = items.take(rows)
    return retrieval(model.project(chosen.vectors, chosen.present), chosen.present)


def _facts(items: Dataset, parts: Parts, request: FineTuneRequest, outside: Outside) -> dict[str, Any]:
    """How the model came about."""
    return {
        "method": request.method.value,
        "task": Task.ALIGN.value,
        "preset": request.preset.value,
        "seed": request.training.seed,
        "threads": torch.get_num_threads(),
        "device": str(outside.device),
        "versions": versions(),
        "items": {part: len(rows) for part, rows in parts.named().items()},
        "dimensions": {m.value: d for m, d in items.dimensions.items()},
    }


def _scores(
    items: Dataset, parts: Parts, found: Sequence[_Alignment], best: _Alignment, findings: Sequence[Finding]
) -> dict[str, Any]:
    test = _retrieval(best.model, items, parts.test)
    return {
        "main_score": "mean_reciprocal_rank",
        "test": {"mean_reciprocal_rank": mean_reciprocal_rank(test), "retrieval": test},
        "validation_score": best.score,
        "dimension": best.model.dimension,
        "parameters": best.model.parameters,
        "checks": [finding.as_json() for finding in findings],
        "candidates": [
            described(alignment.network, float(alignment is best)) | {"validation_score": alignment.score}
            for alignment in found
        ],
    }


def _spec(metrics: dict[str, Any]) -> dict[str, Any]:
    """What has to be known before the files are opened."""
    named = {name: metrics[name] for name in ("method", "task", "dimensions", "dimension", "seed", "threads")}
    return {**named, "fusions": [FusionMethod.ALIGN.value], "classes": [], "multi_label": False}
