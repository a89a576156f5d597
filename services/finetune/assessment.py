"""What a trained model is worth: on test items, beside each modality alone, under disturbance, and what it costs."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.finetune.data import Dataset, Rows
from services.finetune.evaluation import Outputs, evaluate
from services.finetune.modelling import Run, Trained, model_of
from services.finetune.robustness import robustness
from services.finetune.scores import MAIN_SCORE, main_score, main_score_interval
from shared.ml.repeatable import generator
from shared.ml.shapley import shapley_values
from shared.ml.trained import TrainedModel
from shared.queues import Modality

#: The time of a prediction is measured for about this long.
_MEASURED_SECONDS = 0.1


def assess(run: Run, fused: Trained, alone: Mapping[Modality, Trained]) -> dict[str, Any]:
    """Everything that is measured on the test items, as JSON."""
    test, seed = run.data.take(run.parts.test), run.request.training.seed
    answers, task = run.problem.answers[run.parts.test], run.problem.task

    def score(outputs: Outputs) -> float:
        return main_score(task, answers, outputs)

    outputs = _said(fused.model, test)
    tried = {network.candidate.name: model_of(run, network) for network in fused.networks}
    run.outside.progress.report("step", doing="measuring contributions and robustness")
    return {
        "main_score": MAIN_SCORE[task],
        "test": evaluate(task, answers, outputs, run.problem.classes),
        "alone": compare(run, {"fused": fused.model, **{m.value: t.model for m, t in alone.items()}}),
        # Of all that was tried; which was taken, validation items have said.
        "tried": compare(run, tried),
        "contributions": _contributions(run, fused.model, test),
        "robustness": robustness(fused.model, test, score, generator(seed, "robustness"), run.outside.progress.check),
        "complexity": _complexity(run, fused, test),
    }


def compare(run: Run, models: Mapping[str, TrainedModel]) -> dict[str, Any]:
    """The main score of each model on all test items, with its 95 % interval; and on those that have what it looks at.

    A model says of an item that has nothing it looks at what is so on average. `fused_there` is the score on the same
    items as `score_there` of the model called `fused`, if there is one.
    """
    test, answers, task = run.data.take(run.parts.test), run.problem.answers[run.parts.test], run.problem.task
    outputs = {name: _said(model, test) for name, model in models.items()}
    table = {}
    for name, model in models.items():
        there = test.only(model.dimensions).usable()
        rng = generator(run.request.training.seed, "interval")  # the same draws for all
        row = asdict(main_score_interval(task, answers, outputs[name], rng)) | {"items": len(test)}
        if there.any():
            row["score_there"] = main_score(task, answers[there], outputs[name][there])
            if "fused" in outputs:
                row["fused_there"] = main_score(task, answers[there], outputs["fused"][there])
        table[name] = row | {"items_there": int(there.sum())}
    return table


def predicted_items(run: Run, model: TrainedModel, rows: Rows) -> bytes:
    """JSON lines: what the model says of each item, beside the answer, and what each modality contributed to it."""
    items = run.data.take(rows)
    said = model.predict(items.vectors, items.present)
    shares = model.contributions(items.vectors, items.present)
    lines = []
    for place, id in enumerate(items.ids):
        line: dict[str, Any] = {"id": id}
        if said.values is not None:
            line |= {"target": items.targets[place], "prediction": said.values[place]}
        elif said.probabilities is not None:
            best = float(said.probabilities[place].max())
            line |= {"label": items.labels[place], "prediction": said.labels[place], "probability": best}
        line["contributions"] = {m.value: float(share[place]) for m, share in shares.items()}
        lines.append(json.dumps(line, ensure_ascii=False))
    return ("\n".join(lines) + "\n").encode()


def _contributions(run: Run, model: TrainedModel, test: Dataset) -> dict[str, Any]:
    """Shapley values of the main score on the test items: by modality, they add up to `all` less `none`."""
    answers, task = run.problem.answers[run.parts.test], run.problem.task

    def value(subset: frozenset[Modality]) -> float:
        run.outside.progress.check()
        return main_score(task, answers, _said(model, test, subset))

    modalities = list(model.dimensions)
    return {
        "of": MAIN_SCORE[task],
        "all": value(frozenset(modalities)),
        "none": value(frozenset()),
        "by_modality": {m.value: share for m, share in shapley_values(value, modalities).items()},
    }


def _complexity(run: Run, fused: Trained, test: Dataset) -> dict[str, Any]:
    vectors = 4 * len(run.data) * sum(run.data.dimensions.values())
    # A network in training: weights, gradients, two moments, and the best so far; the others as finished.
    largest = max(sum(t.numel() for t in network.fit.state.values()) for network in fused.networks)
    finished = sum(t.numel() for network in fused.networks for t in network.fit.state.values())
    return {
        "training_seconds": sum(network.fit.seconds for network in fused.networks),
        "networks_trained": len(fused.networks),
        "networks_used": len(fused.model.config.members),
        "parameters": fused.model.parameters,
        # In training the vectors are there twice: as they came, and as tensors.
        "peak_memory_bytes_estimate": 2 * vectors + 4 * (5 * largest + finished),
        "prediction_microseconds_per_item": _prediction_time(fused.model, test),
    }


def _prediction_time(model: TrainedModel, items: Dataset) -> float:
    _said(model, items)
    begun, rounds = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begun) < _MEASURED_SECONDS or not rounds:
        _said(model, items)
        rounds += 1
    return seconds / rounds / len(items) * 1e6


def _said(model: TrainedModel, items: Dataset, subset: frozenset[Modality] | None = None) -> NDArray[np.float64]:
    """The model's outputs, by what it may see of the items."""
    if subset is None:
        return model.outputs(items.vectors, items.present)
    seen = {m: p if m in subset else np.zeros_like(p) for m, p in items.present.items()}
    return model.outputs(items.vectors, seen)
