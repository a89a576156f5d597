"""Classifiers out of language models as they are: the label whose words are the likeliest answer."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.finetune.card import cell, class_table, data_section, prompts_section, score_table
from services.finetune.checks import Finding, check_sizes
from services.finetune.evaluation import evaluate
from services.finetune.language.data import Conversations, make_examples
from services.finetune.modelling import Outside
from services.finetune.outcome import Outcome
from services.finetune.problem import Problem
from services.finetune.prompting.ranking import Tried, as_metrics, try_all
from services.finetune.scores import MAIN_SCORE, main_score_interval
from services.finetune.versions import versions
from shared.errors import JobError
from shared.json_numbers import as_json
from shared.language_tuning import PromptRequest
from shared.ml.language.choosing import calibrate, label_probabilities
from shared.ml.language.generate import Prompted
from shared.ml.language.tuned import CONFIG, TunedLanguageModel
from shared.ml.repeatable import generator
from shared.ml.splits import Parts, divide
from shared.ml.trained import Task
from shared.prompts import PromptTemplate
from shared.schemas import Split

#: Fewer items than this, and neither can a prompt be chosen nor a score be measured.
_FEWEST_ITEMS = 10

_TASK = Task.SINGLE_LABEL

Outputs = NDArray[np.float64]


@dataclass(frozen=True)
class _Data:
    """The labelled rows of a feature set, by id, as they were divided."""

    conversations: Conversations
    rows: list[int]
    problem: Problem
    parts: Parts

    def prompted(self, template: PromptTemplate, part: NDArray[np.intp]) -> list[Prompted]:
        """What the model reads of these items."""
        examples = {example.id: example for example in make_examples(self.conversations, template)}
        asked = [examples[self.conversations.items.ids[self.rows[i]]] for i in part]
        return [Prompted(example.question, example.media) for example in asked]


def choose_by_likelihood(
    data: Conversations, request: PromptRequest, outside: Outside, model: TunedLanguageModel
) -> Outcome:
    """A classifier of a language model, chosen by validation items and measured on test items; nothing is trained.

    Raises JobError (`no_labels`, `several_labels`, `too_few_items`, `one_class`), and what stops the run.
    """
    items = _divided(data, request)
    findings = [f for f in check_sizes(items.parts) if "train" not in f.code]
    for finding in findings:
        outside.progress.report(finding.severity, code=finding.code, message=finding.message)
    outside.progress.report("split", **{part: len(rows) for part, rows in items.parts.named().items()})
    check, classes = outside.progress.check, items.problem.classes

    def say(template: PromptTemplate, part: NDArray[np.intp], calibration: Sequence[float]) -> Outputs:
        prompted = items.prompted(template, part)
        return label_probabilities(model, prompted, template, classes, calibration=calibration, check=check)

    def make(template: PromptTemplate) -> tuple[list[float], Outputs]:
        free = calibrate(model, template, classes, check=check).tolist() if request.calibrated else []
        return free, say(template, items.parts.validation, free)

    templates = [t for t in request.templates if isinstance(t, PromptTemplate)]
    found = try_all(templates, make, items.problem, items.parts.validation, outside.progress)
    outputs = say(found[0].prompt, items.parts.test, found[0].made)
    metrics = as_json(_metrics(items, request, outside, model, found, outputs, findings))
    config = model.config.model_copy(
        update={"prompt": found[0].prompt, "labels": classes, "by_likelihood": True, "calibration": found[0].made}
    )  # fmt: skip
    files = {
        **model.files(),
        CONFIG: config.model_dump_json(indent=1).encode(),
        "metrics.json": json.dumps(metrics, indent=1, ensure_ascii=False).encode(),
        "README.md": _card(metrics).encode(),
        "test_items.jsonl": _test_items(items, outputs),
    }
    spec = {
        "method": "prompt", "task": _TASK.value, "fusions": [], "dimension": 0, "classes": classes,
        "multi_label": False, "language_model": model.base.spec.id, "seed": request.training.seed,
    }  # fmt: skip
    return Outcome(files, metrics, spec)


def _divided(data: Conversations, request: PromptRequest) -> _Data:
    ids, labels = data.items.ids, data.items.labels
    several = next((id for id, given in zip(ids, labels, strict=True) if len(set(given)) > 1), None)
    if several is not None:
        message = f"The item {several!r} has several labels: a prompt chooses one."
        raise JobError(message, code="several_labels", param="items")
    asked = {example.id for example in make_examples(data, PromptTemplate())}
    rows = sorted((row for row, given in enumerate(labels) if given and ids[row] in asked), key=ids.__getitem__)
    if not rows:
        raise JobError("No item has a label to choose.", code="no_labels", param="items")
    if len(rows) < _FEWEST_ITEMS:
        message = f"Only {len(rows)} items have a label; give at least {_FEWEST_ITEMS}."
        raise JobError(message, code="too_few_items", param="items")
    classes = sorted({labels[row][0] for row in rows})
    if len(classes) < 2:
        message = f"All items have the label {classes[0]!r}: there is nothing to tell apart."
        raise JobError(message, code="one_class", param="items")
    answers = np.array([classes.index(labels[row][0]) for row in rows], np.int64)
    problem = Problem(_TASK, answers, classes, known=len(classes))
    splits = [data.items.splits[row] for row in rows]
    seed, most = request.training.seed, request.training.evaluated_items
    parts = divide(splits, problem.strata, request.splitting, generator(seed, "split"))
    judges = {part: _some(rows, most, seed) for part, rows in parts.named().items()}
    return _Data(data, rows, problem, Parts(parts.train, judges[Split.VALIDATION], judges[Split.TEST], parts.notes))


def _some(rows: NDArray[np.intp], most: int, seed: int) -> NDArray[np.intp]:
    """At most so many, chosen as those are on which a tuned model is evaluated."""
    order = generator(seed, "evaluated").permutation(len(rows))[:most]
    return rows[np.sort(order)]


def _metrics(
    items: _Data,
    request: PromptRequest,
    outside: Outside,
    model: TunedLanguageModel,
    found: Sequence[Tried[list[float]]],
    outputs: Outputs,
    findings: Sequence[Finding],
) -> dict[str, Any]:
    answers = items.problem.answers[items.parts.test]
    rng = generator(request.training.seed, "interval")
    return {
        "method": "prompt",
        "how": request.how.value,
        "task": _TASK.value,
        "language_model": model.base.spec.id,
        "seed": request.training.seed,
        "threads": torch.get_num_threads(),
        "device": str(outside.device),
        "versions": versions(),
        "items": {part: len(rows) for part, rows in items.parts.named().items()},
        "checks": [finding.as_json() for finding in findings],
        "main_score": MAIN_SCORE[_TASK],
        "test": evaluate(_TASK, answers, outputs, items.problem.classes),
        "alone": {
            "fused": {
                **asdict(main_score_interval(_TASK, answers, outputs, rng)),
                "items": len(answers),
                "items_there": len(answers),
            }
        },
        "prompts": as_metrics(found),
        "calibration": dict(zip(items.problem.classes, found[0].made, strict=False)),
    }


def _card(metrics: dict[str, Any]) -> str:
    interval = metrics["alone"]["fused"]
    head = (
        f"# Prompt\n\nSays one of {len(metrics['test']['classes'])} classes: the language model "
        f"`{metrics['language_model']}` is asked, and the label whose words are the likeliest answer is taken. Nothing "
        f"was trained.\n\n**accuracy {cell(interval['score'])}** on {metrics['test']['items']} test items "
        f"(95 % interval {cell(interval['low'])} to {cell(interval['high'])})."
    )
    sections = [
        head, data_section(metrics), score_table(metrics), prompts_section(metrics["prompts"]), class_table(metrics)
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _test_items(items: _Data, outputs: Outputs) -> bytes:
    lines = []
    for place, row in enumerate(items.parts.test):
        source, best = items.rows[row], int(outputs[place].argmax())
        line = {
            "id": items.conversations.items.ids[source],
            "label": items.conversations.items.labels[source],
            "prediction": [items.problem.classes[best]],
            "probability": float(outputs[place, best]),
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines).encode()
