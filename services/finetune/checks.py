"""What is odd about the data, in words, before anything is trained on them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from services.finetune.data import Dataset, Rows
from services.finetune.problem import Problem
from shared.items import Split
from shared.ml.splits import Parts
from shared.ml.trained import Task

Severity = Literal["info", "warning"]

#: Training on fewer items, or judging by fewer, says little.
_FEW_TO_TRAIN, _FEW_TO_JUDGE = 100, 50
#: A class with fewer items cannot be in all three parts.
_SMALLEST_CLASS = 3
_IMBALANCE = 10.0
#: Difference between parts, in the share of items that have a modality, that is worth a word.
_UNEVEN = 0.15
_NAMED = 5
#: Scores from here on are suspicious.
_PERFECT = 0.995


@dataclass(frozen=True)
class Finding:
    """Something odd, for programs (`code`) and people (`message`)."""

    code: str
    severity: Severity
    message: str

    def as_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def check_items(data: Dataset) -> list[Finding]:
    """Of all items in the order in which they came, before any is left out."""
    firsts = np.array([labels[0] if labels else "" for labels in data.labels])
    kinds, counts = np.unique(firsts[firsts != ""], return_counts=True)
    if len(kinds) < 2 or counts.sum() < _FEW_TO_JUDGE:
        return []
    findings = []
    chance = float(((counts / counts.sum()) ** 2).sum())
    alike = float((firsts[1:] == firsts[:-1]).mean())
    if alike > max(0.9, 1.5 * chance):
        message = (
            "Items come sorted by label. Splits that are drawn here are random, so this does no harm; splits that were "
            "cut from the sorted list would."
        )
        findings.append(Finding("sorted_by_label", "info", message))
    named = [label.casefold() in id.casefold() for id, label in zip(data.ids, firsts, strict=True) if label]
    if np.mean(named) > 0.9 and all(len(kind) > 2 for kind in kinds):
        message = (
            "Ids hold the label. Nothing is trained on ids; but see that texts, pictures and sounds do not hold it "
            "too, as names of files often end up in them."
        )
        findings.append(Finding("label_in_id", "info", message))
    return findings


def check_parts(data: Dataset, problem: Problem, parts: Parts) -> list[Finding]:
    """Of the items that are used, as they were divided."""
    return [
        *(Finding("split", "info", note) for note in parts.notes),
        *check_sizes(parts),
        *(_check_classes(problem, parts) if problem.classes else ()),
        *check_presence(data, parts),
        *_check_columns(data, parts.train),
    ]


def check_sizes(parts: Parts) -> Iterable[Finding]:
    """Of the parts: whether they are large enough to say something."""
    if len(parts.train) < _FEW_TO_TRAIN:
        yield Finding("few_training_items", "warning", f"Only {len(parts.train)} items train the model: expect little.")
    for name, rows in ((Split.VALIDATION, parts.validation), (Split.TEST, parts.test)):
        if len(rows) < _FEW_TO_JUDGE:
            what = "what is chosen by them" if name is Split.VALIDATION else "scores on them"
            message = (
                f"The {name} part has only {len(rows)} items: {what} may be chance. See the interval of the score."
            )
            yield Finding(f"few_{name}_items", "warning", message)


def _check_classes(problem: Problem, parts: Parts) -> Iterable[Finding]:
    names, known = np.array(problem.classes), problem.known
    counts = {part: problem.counts(rows) for part, rows in parts.named().items()}
    train, total = counts[Split.TRAIN], sum(counts.values())
    if known < len(names):
        lost = int(sum(count[known:].sum() for count in counts.values()))
        message = (
            f"No training item has {listed(names[known:])}: the model cannot say it, and {lost} items in other parts "
            "count as mistakes. Give such items to training."
        )
        yield Finding("class_missing_in_training", "warning", message)
    small = (total < _SMALLEST_CLASS) & (train > 0)
    if small.any():
        message = (
            f"{listed(names[small])}: fewer than {_SMALLEST_CLASS} items, so that not every part can have one. Add "
            "items or join the class with another."
        )
        yield Finding("class_too_small", "warning", message)
    untested = (counts[Split.TEST] == 0) & (total > 0)
    if untested.any():
        message = f"No test item has {listed(names[untested])}: how well it is told is not measured."
        yield Finding("class_missing_in_test", "warning", message)
    if train[:known].max() > _IMBALANCE * train[:known].min():
        often, seldom = int(train.argmax()), int(train[:known].argmin())
        message = (
            f"{names[often]!r} has {train[often]} training items, {names[seldom]!r} {train[seldom]}. If rare classes "
            'matter as much, set training.class_weights to "balanced"; look at the macro averages, not at accuracy.'
        )
        yield Finding("imbalance", "warning", message)
    everywhere = train[:known] == len(parts.train)
    if problem.task is Task.MULTI_LABEL and everywhere.any():
        message = f"All training items have {listed(names[:known][everywhere])}: nothing is learned about it."
        yield Finding("constant_class", "warning", message)


def check_presence(data: Dataset, parts: Parts) -> Iterable[Finding]:
    """Of the modalities that some items lack."""
    for modality, present in data.present.items():
        if present.all():
            continue
        shares = {part: float(present[rows].mean()) for part, rows in parts.named().items()}
        told = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        uneven = max(shares.values()) - min(shares.values()) > _UNEVEN
        advice = " The parts differ: scores on one say less about another." if uneven else ""
        yield Finding(
            "missing_modality",
            "warning" if uneven else "info",
            f"Not all items have {modality.value} ({told}).{advice}",
        )


def _check_columns(data: Dataset, train: Rows) -> Iterable[Finding]:
    for modality, rows in data.vectors.items():
        used = rows[train][data.present[modality][train]]
        constant = int((used == used[:1]).all(axis=0).sum()) if len(used) > 1 else 0
        if constant:
            message = (
                f"{constant} of {rows.shape[1]} components of the {modality.value} vectors are the same in all "
                "training items and tell nothing."
            )
            yield Finding("constant_columns", "warning" if constant > rows.shape[1] // 2 else "info", message)


def check_alone(table: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Of the scores of each modality alone, and `fused` (see services.finetune.assessment.compare)."""
    findings, fused = [], table["fused"]["score"]
    there = {name: row["score_there"] for name, row in table.items() if name != "fused" and "score_there" in row}
    for name, score in there.items():
        if score >= _PERFECT and min(there.values()) < 0.9:
            message = (
                f"{name} alone is nearly perfect ({score:.3f}) while others are not. That may be so; or {name} holds "
                "the answer itself."
            )
            findings.append(Finding("possible_leak", "warning", message))
    better = [name for name in there if len(there) > 1 and table[name]["score"] > fused]
    if better:
        message = f"{listed(better)} alone is better on the test items than the fusion: the others do not help it."
        findings.append(Finding("modality_beats_fusion", "warning", message))
    return findings


def listed(names: Iterable[str], most: int = _NAMED) -> str:
    """`'a', 'b' and 3 more`."""
    all_names = list(names)
    shown = ", ".join(repr(str(name)) for name in islice(all_names, most))
    return shown if len(all_names) <= most else f"{shown} and {len(all_names) - most} more"
