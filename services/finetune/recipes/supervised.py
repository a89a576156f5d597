"""What the recipes for classes and for numbers have in common: from a feature set to a model, and what it is worth."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from services.finetune.artifacts import write_artifacts
from services.finetune.assessment import assess
from services.finetune.checks import Finding, check_alone, check_items, check_parts
from services.finetune.data import Dataset
from services.finetune.folds import cross_validate
from services.finetune.leaks import check_leaks
from services.finetune.library import described
from services.finetune.modelling import Outside, Run, Trained, train_model
from services.finetune.outcome import Outcome
from services.finetune.problem import Problem
from services.finetune.versions import versions
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest
from shared.json_numbers import as_json
from shared.ml.repeatable import generator
from shared.ml.splits import Parts, divide
from shared.ml.trained import Task
from shared.queues import Modality

#: Fewer items than this, and nothing can be learned and judged.
_FEWEST_ITEMS = 10

#: From a dataset to those of its items that have an answer, and the answers.
MakeProblem = Callable[[Dataset, FineTuneRequest], tuple[Dataset, Problem]]


def supervised(data: Dataset, request: FineTuneRequest, outside: Outside, make_problem: MakeProblem) -> Outcome:
    """Trains, chooses and measures. Raises JobError, and what stops the run."""
    run, findings = _prepare(data, request, outside, make_problem)
    for finding in findings:
        outside.progress.report(finding.severity, code=finding.code, message=finding.message)
    outside.progress.report("split", **{part: len(rows) for part, rows in run.parts.named().items()})
    fused = train_model("fused", run)
    alone = _train_alone(run, fused)
    measured = assess(run, fused, alone)
    findings += check_alone(measured["alone"])
    if request.splitting.folds is not None:
        measured["folds"] = cross_validate(run, fused.best.candidate, request.splitting.folds)
    metrics = as_json(describe_run(run, fused, findings) | measured)
    outside.progress.report("step", doing="writing the model")
    return Outcome(write_artifacts(run, fused, metrics), metrics, spec_of(run, fused))


def _prepare(
    data: Dataset, request: FineTuneRequest, outside: Outside, make_problem: MakeProblem
) -> tuple[Run, list[Finding]]:
    """The items that can be used, by id, so that nothing depends on the order in which they came."""
    findings = check_items(data)
    usable = data.take(sorted(np.flatnonzero(data.usable()), key=data.ids.__getitem__))
    items, problem = make_problem(usable, request)
    if len(items) < len(data):
        message = f"{len(data) - len(items)} of {len(data)} items have no answer or no vector; they are left out."
        findings.append(Finding("left_out", "info", message))
    if len(items) < _FEWEST_ITEMS:
        message = f"Only {len(items)} items can be used; give at least {_FEWEST_ITEMS}, better hundreds."
        raise JobError(message, code="too_few_items", param="items")
    seed = request.training.seed
    parts = divide(items.splits, problem.strata, request.splitting, generator(seed, "split"))
    items, absent = trainable(items, parts)
    run = Run.of(items, problem, parts, request, outside)
    findings += [*absent, *check_parts(run.data, run.problem, parts)]
    return run, findings + check_leaks(run.data, run.problem, parts, generator(seed, "sketch"))


def trainable(items: Dataset, parts: Parts) -> tuple[Dataset, list[Finding]]:
    """The modalities that training and validation items have."""
    kept = [m for m, present in items.present.items() if all(present[p].any() for p in (parts.train, parts.validation))]
    findings = [
        Finding("modality_left_out", "warning", f"No training or validation item has {m.value}; it is not looked at.")
        for m in items.vectors
        if m not in kept
    ]
    if not kept:
        message = "No modality is in both training and validation items: give more items that have one."
        raise JobError(message, code="too_few_items", param="items")
    return items.only(kept), findings


def _train_alone(run: Run, fused: Trained) -> dict[Modality, Trained]:
    """A model of each modality, made in the same way; with settings that were found, if they were searched for."""
    modalities = list(run.data.vectors)
    if len(modalities) == 1:
        return {modalities[0]: fused}
    request = run.request
    if request.search is not None:
        best = fused.best.candidate.settings
        found = request.training.model_copy(update=best.as_json())
        request = request.model_copy(update={"search": None, "training": found})
    return {m: train_model(m.value, replace(run, request=request).on([m])) for m in modalities}


def describe_run(run: Run, fused: Trained, findings: list[Finding]) -> dict[str, Any]:
    """How the model came about."""
    networks = zip(fused.networks, fused.weights, strict=True)
    return {
        "method": run.request.method.value,
        "task": run.problem.task.value,
        "preset": run.request.preset.value,
        "seed": run.request.training.seed,
        "threads": torch.get_num_threads(),
        "device": str(run.outside.device),
        "versions": versions(),
        "items": {part: len(rows) for part, rows in run.parts.named().items()},
        "dimensions": {m.value: d for m, d in run.data.dimensions.items()},
        "checks": [finding.as_json() for finding in findings],
        "candidates": [described(network, weight) for network, weight in networks],
        "trials": fused.trials,
    }


def spec_of(run: Run, fused: Trained) -> dict[str, Any]:
    """What prediction has to know before it opens the files."""
    members = fused.model.config.members
    return {
        "method": run.request.method.value,
        "task": run.problem.task.value,
        "fusions": sorted({member.model.fusion.value for member in members}),
        "dimensions": {m.value: d for m, d in fused.model.dimensions.items()},
        "dimension": fused.model.dimension,
        "classes": fused.model.config.classes,
        "multi_label": run.problem.task is Task.MULTI_LABEL,
        "seed": run.request.training.seed,
        "threads": torch.get_num_threads(),
    }
