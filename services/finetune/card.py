"""The model card: what the model is, what it was made from, and what it is worth, in Markdown.

Mitchell et al., "Model cards for model reporting" (FAT* 2019).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from shared.ml.trained import TrainedConfig

#: What the names of scores mean, for people.
SCORE_NAMES = {"accuracy": "accuracy", "f1_micro": "F1 (micro)", "r2": "R²"}

_HEADLINES = (
    "accuracy", "subset_accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_micro", "auroc",
    "average_precision", "calibration_error", "mse", "mae", "r2", "spearman",
)  # fmt: skip


def model_card(metrics: Mapping[str, Any], config: TrainedConfig, plots: Sequence[str]) -> str:
    """The card of a classifier or regressor. `plots` are the names of its pictures."""
    sections = [
        _head(metrics, config),
        data_section(metrics),
        score_table(metrics),
        *([prompts_section(metrics["prompts"])] if metrics.get("prompts") else []),
        _alone(metrics),
        _contributions(metrics),
        _robustness(metrics),
        *([class_table(metrics)] if "classes" in metrics["test"] else []),
        *([_folds(metrics)] if "folds" in metrics else []),
        _usage(metrics),
        _making(metrics),
        "\n\n".join(f"![{PurePath(name).stem}]({name})" for name in plots),
    ]
    return "\n\n".join(sections) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers with three decimals, `–` for nothing."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """What stands in a cell of a table."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1e5 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _head(metrics: Mapping[str, Any], config: TrainedConfig) -> str:
    members = ", ".join(f"{m.name} ({m.weight:.0%})" if len(config.members) > 1 else m.name for m in config.members)
    what = {
        "single_label": f"one of {len(config.classes)} classes",
        "multi_label": f"any of {len(config.classes)} classes",
    }
    modalities = ", ".join(f"{m} ({d})" for m, d in metrics["dimensions"].items())
    name = SCORE_NAMES[metrics["main_score"]]
    best = metrics["alone"]["fused"]
    return (
        f"# {metrics['method'].capitalize()}\n\n"
        f"Says {what.get(metrics['task'], 'a number')} from the vectors of {modalities}. Networks: {members}.\n\n"
        f"**{name} {cell(best['score'])}** on {best['items']} test items (95 % interval {cell(best['low'])} to "
        f"{cell(best['high'])})."
    )


def data_section(metrics: Mapping[str, Any]) -> str:
    """How many items there were, and what the checks found."""
    items = ", ".join(f"{count} {part}" for part, count in metrics["items"].items())
    notes = [f"- **{check['severity']}** `{check['code']}`: {check['message']}" for check in metrics["checks"]]
    return "\n".join([f"## Data\n\nItems: {items}.\n", *(notes or ["The checks found nothing odd."])])


def score_table(metrics: Mapping[str, Any]) -> str:
    """The scores on test items."""
    test = metrics["test"]
    return "## Scores on test items\n\n" + table(
        ["score", "value"], [(name.replace("_", " "), test[name]) for name in _HEADLINES if name in test]
    )


def prompts_section(prompts: Sequence[Mapping[str, Any]]) -> str:
    """The prompts that were tried, best first."""
    rows = [
        (place, tried["validation_score"], tried["validation_loss"], _words_of(tried["prompt"]))
        for place, tried in enumerate(prompts, 1)
    ]
    note = "The first is the one that is used: it is best on validation items."
    return f"## Prompts\n\n{table(['', 'score on validation items', 'loss', 'prompt'], rows)}\n\n{note}"


def _words_of(prompt: Mapping[str, Any]) -> str:
    """What was given of a prompt, in one line; what is usual was not."""
    return "; ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in prompt.items()) or "as usual"


def _alone(metrics: Mapping[str, Any]) -> str:
    name = SCORE_NAMES[metrics["main_score"]]
    rows = [
        (which, row["score"], f"{cell(row['low'])} to {cell(row['high'])}", row["items_there"], row.get("score_there"),
         row.get("fused_there"))
        for which, row in metrics["alone"].items()
    ]  # fmt: skip
    columns = ["vectors", f"{name}, all items", "95 % interval", "items that have it", "on these", "fused on these"]
    note = (
        "Each modality alone has a model made in the same way. Of an item without the modality it says what is so on "
        "average in training."
    )
    return f"## Each modality alone, and fused\n\n{table(columns, rows)}\n\n{note}"


def _contributions(metrics: Mapping[str, Any]) -> str:
    found = metrics["contributions"]
    rows = [("(nothing known)", found["none"]), *found["by_modality"].items(), ("**together**", found["all"])]
    note = "Shapley values: what each modality adds to the score, averaged over all orders in which they can be added."
    return f"## Contributions\n\n{table(['modality', SCORE_NAMES[found['of']]], rows)}\n\n{note}"


def _robustness(metrics: Mapping[str, Any]) -> str:
    found, tables = metrics["robustness"], []
    for kind, words in (("noise", "noise (standard deviations)"), ("missing", "share of items that lost it")):
        rows = [(m, *c["scores"], c["area"]) for m, c in found[kind].items() if m != "levels"]
        tables.append(table([words, *map(str, found[kind]["levels"]), "area"], rows))
    note = "The score as one modality gets worse; `area` is the mean height of the curve (MultiBench)."
    return "## Robustness\n\n" + "\n\n".join([*tables, note])


def class_table(metrics: Mapping[str, Any]) -> str:
    """The scores of each class."""
    columns = ["items", "precision", "recall", "f1", "auroc", "average_precision"]
    rows = [(name, *(row[column] for column in columns)) for name, row in metrics["test"]["classes"].items()]
    return "## Classes\n\n" + table(["class", *(c.replace("_", " ") for c in columns)], rows)


def _folds(metrics: Mapping[str, Any]) -> str:
    found = metrics["folds"]
    scores = ", ".join(map(cell, found["folds"]))
    return (
        f"## Cross-validation\n\n{SCORE_NAMES[found['score']]} {cell(found['mean'])} ± {cell(found['std'])} over "
        f"{len(found['folds'])} folds ({scores}), with the settings of the best network."
    )


def _usage(metrics: Mapping[str, Any]) -> str:
    modalities = ", ".join(metrics["dimensions"])
    return (
        "## Use\n\nSend a `predict` job with this model's id; items are encoded as those were that it was trained on "
        f"({modalities}). The weights are plain safetensors, `config.json` says how they fit together; vectors are "
        "standardised inside."
    )


def _making(metrics: Mapping[str, Any]) -> str:
    cost = metrics["complexity"]
    columns = ["network", "fusion", "seed", "validation loss", "best epoch", "seconds", "weight"]
    rows = [
        (c["name"], c["fusion"], c["seed"], c["validation_loss"], c["best_epoch"], c["seconds"], c["weight"])
        for c in metrics["candidates"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    return (
        f"## How it was made\n\nPreset `{metrics['preset']}`, seed {metrics['seed']}, {metrics['threads']} threads on "
        f"{metrics['device']}. {cost['parameters']:,} parameters, {cost['training_seconds']:.1f} s of training, "
        f"{cost['prediction_microseconds_per_item']:.0f} µs an item. {versions}. All choices were made by validation "
        f"items; settings are in `metrics.json`.\n\n{table(columns, rows)}"
    )
