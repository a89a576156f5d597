"""Pictures for the model card, as PNG. Figures are made without pyplot, which keeps them all in one global list."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from services.finetune.library import Network

_BLUE, _GREY, _ORANGE = "#4477AA", "#BBBBBB", "#CC6677"

#: A confusion matrix of more classes cannot be read; its largest numbers are written into the cells up to the second.
_MOST_CLASSES, _MOST_WRITTEN = 60, 25


def draw_plots(metrics: Mapping[str, Any], networks: Sequence[Network], scores: str) -> dict[str, bytes]:
    """All pictures by file name. `scores` is the name of the main score, for people."""
    plots = {"learning-curves": learning_curves(networks), "modalities": modality_bars(metrics["alone"], scores)}
    if "confusion" in metrics["test"] and len(metrics["test"]["classes"]) <= _MOST_CLASSES:
        plots["confusion"] = confusion_matrix(metrics["test"]["confusion"], list(metrics["test"]["classes"]))
    if "robustness" in metrics:
        plots["robustness"] = robustness_curves(metrics["robustness"], scores)
    return {f"plots/{name}.png": png(figure) for name, figure in plots.items()}


def learning_curves(networks: Sequence[Network]) -> Figure:
    """Validation loss by epoch, and in grey the training loss; a dot where the kept weights are from."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss", yscale="log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    for format_ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        format_ticks("{x:g}")  # 0.5 rather than 5 × 10⁻¹
    for network in networks:
        epochs = [entry["epoch"] for entry in network.fit.history]
        (line,) = axes.plot(epochs, [e["validation_loss"] for e in network.fit.history], label=network.candidate.name)
        axes.plot(epochs, [e["train_loss"] for e in network.fit.history], color=_GREY, linewidth=0.7, zorder=1)
        axes.plot(network.fit.epoch, network.fit.loss, "o", color=line.get_color())
    axes.legend(fontsize="small", ncols=2)
    return figure


def modality_bars(table: Mapping[str, Mapping[str, Any]], scores: str) -> Figure:
    """The main score of each modality alone and fused, with 95 % intervals."""
    names = sorted(table, key=lambda name: name == "fused")
    values = np.array([_number(table[name]["score"]) for name in names])
    low, high = (np.array([_number(table[name][end]) for name in names]) for end in ("low", "high"))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(ylabel=scores, title=f"{scores} on all test items, 95 % intervals")
    errors = np.maximum(np.stack([values - low, high - values]), 0)
    bars = axes.bar(names, values, yerr=errors, color=[_ORANGE if n == "fused" else _BLUE for n in names], capsize=4)
    axes.bar_label(bars, fmt="%.3f", label_type="center", color="white")
    return figure


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Rows are what items are, columns what was said of them; shades are shares of the row."""
    matrix = np.array(counts)
    size = min(3.0 + 0.35 * len(classes), 16.0)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot(xlabel="said", ylabel="is")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    short = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes]
    axes.set_xticks(range(len(classes)), short, rotation=90, parse_math=False)
    axes.set_yticks(range(len(classes)), short, parse_math=False)
    for row, column in zip(*np.nonzero(matrix), strict=True) if len(classes) <= _MOST_WRITTEN else ():
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    return figure


def robustness_curves(found: Mapping[str, Mapping[str, Any]], scores: str) -> Figure:
    """The main score against noise, and against the share of items that lost a modality."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    titles = {"noise": "noise, in standard deviations", "missing": "share of items that lost the modality"}
    for place, (kind, title) in enumerate(titles.items(), 1):
        axes = figure.add_subplot(1, 2, place, xlabel=title, ylabel=scores)
        for name, curve in found[kind].items():
            if name != "levels":
                values = [_number(score) for score in curve["scores"]]
                axes.plot(found[kind]["levels"], values, marker="o", label=name)
        axes.legend()
    return figure


def png(figure: Figure) -> bytes:
    """The bytes of the picture; equal figures, equal bytes."""
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _number(value: float | None) -> float:
    return np.nan if value is None else value
