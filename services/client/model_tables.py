"""Encoders and trained models on a terminal: what they are, and how good."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from services.client.rendering import details, moment, table_of
from shared.queues import Modality
from shared.schemas import FineTuned, ModelEntry

#: The main scores (see `main_score` in a model's metrics) as people write them.
_SCORE_NAMES = {"f1_micro": "F1 (micro)", "r2": "R²", "mean_reciprocal_rank": "mean reciprocal rank"}
_FUSED = "fused"
#: More are not shown one by one: several seeds of each, say.
_MOST_TRIED = 10


def models_table(models: Sequence[ModelEntry]) -> Table:
    """One row an encoder or model."""
    table = table_of("model", "modality", "dimension", "loader", "licence", "description", right=("dimension",))
    for model in models:
        kind = model.modality or model.kind
        words = model.description if model.fine_tuned is None else _in_short(model.fine_tuned)
        licence = model.licence if model.fine_tuned is None else ""
        table.add_row(model.id, kind, str(model.dimension), model.loader, licence, words)
    return table


def model_details(model: ModelEntry) -> Table:
    """Everything about one model."""
    table = details()
    table.add_row("model", model.id)
    table.add_row("kind", f"{model.kind} of {model.modality.value}" if model.modality else model.kind)
    table.add_row("dimension", str(model.dimension))
    for name in ("loader", "source", "revision", "licence", "description", "job_id"):
        value = getattr(model, name)
        if value and not (name == "licence" and model.fine_tuned):
            table.add_row(name.removesuffix("_id"), value)
    if model.created:
        table.add_row("created", moment(model.created))
    if model.files:
        table.add_row("files", ", ".join(model.files))
    if model.fine_tuned is not None:
        _add_training(table, model.fine_tuned)
    return table


def scores_table(trained: FineTuned) -> Table:
    """How good a model is on test items: a predicting one beside each modality alone, an aligning one at retrieval."""
    return _retrieval_table(trained) if "retrieval" in trained.metrics.get("test", {}) else _alone_table(trained)


def _alone_table(trained: FineTuned) -> Table:
    """The main score of each modality alone, of each fusion that was tried, and of what came of them.

    On all test items with its 95 % interval, then on those alone that have the modality, with the fusion's beside it.
    """
    alone: dict[str, dict[str, Any]] = trained.metrics.get("alone", {})
    tried: dict[str, dict[str, Any]] = trained.metrics.get("tried", {})
    best_first = sorted(tried, key=lambda name: -tried[name]["score"])
    several = {name: tried[name] for name in best_first} if 1 < len(tried) <= _MOST_TRIED else {}
    rows = {**several, **alone}
    name = _score_name(trained)
    columns = (name, "95 % interval", "items with it", f"{name} on these", "fused on these")
    table = table_of("vectors", *columns, right=columns)
    table.columns[2].no_wrap = True
    for which in (*(m.value for m in Modality), *several, _FUSED):
        if which not in rows:
            continue
        row = rows[which]
        interval = f"{_number(row['low'])} … {_number(row['high'])}"
        there = (_number(row.get("score_there")), _number(row.get("fused_there")))
        beside = there if which in set(Modality) else ("", "")
        values = (_number(row["score"]), interval, f"{row['items_there']:,}/{row['items']:,}", *beside)
        table.add_row(which, *values, style="bold" if which == _FUSED else "")
    return table


def _retrieval_table(trained: FineTuned) -> Table:
    """For each direction, how often an item's other modality is the most similar of all, or among the first ten."""
    columns = ("items", "first", "first ten", "by chance", "median rank")
    table = table_of("finds", *columns, right=columns)
    found: dict[str, dict[str, Any]] = trained.metrics["test"]["retrieval"]
    for direction, row in sorted(found.items()):
        shares = (row["recall@1"], row["recall@10"], row["chance"]["recall@10"])
        table.add_row(direction, f"{row['items']:,}", *map(_number, shares), f"{row['median_rank']:g}")
    return table


def warnings(trained: FineTuned) -> list[str]:
    """What the checks found that should be looked at."""
    checks: list[dict[str, str]] = trained.metrics.get("checks", [])
    return [check["message"] for check in checks if check["severity"] == "warning"]


def _add_training(table: Table, trained: FineTuned) -> None:
    encoders = [f"{m.value}: {trained.encoders[m]}" for m in Modality if m in trained.encoders]
    table.add_row("encoders", ", ".join(encoders))
    table.add_row("fusion", ", ".join(trained.fusions))
    if trained.classes:
        several = "any of " if trained.multi_label else ""
        table.add_row("classes", f"{several}{len(trained.classes)}: {', '.join(trained.classes)}")
    for warning in warnings(trained):
        table.add_row("warning", Text(warning, "yellow"))
    if trained.metrics.get("test"):
        table.add_row("on test items", scores_table(trained))


def _in_short(trained: FineTuned) -> str:
    """`accuracy 0.624 on 181 test items; concat of text, image, audio`, as far as it is known."""
    made = f"{', '.join(trained.fusions)} of {', '.join(m.value for m in Modality if m in trained.encoders)}"
    score = trained.metrics.get("test", {}).get(trained.metrics.get("main_score"))
    if score is None:
        return made
    return f"{_score_name(trained)} {_number(score)} on {trained.metrics['items']['test']:,} test items; {made}"


def _score_name(trained: FineTuned) -> str:
    name = str(trained.metrics.get("main_score", "score"))
    return _SCORE_NAMES.get(name, name)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
