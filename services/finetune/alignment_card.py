"""The files of an aligned space: weights, what was measured, its card, logs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from services.finetune.card import cell, data_section, table
from services.finetune.event_log import event_log
from services.finetune.library import Network
from services.finetune.plots import learning_curves, png

_RECALLS = ("recall@1", "recall@5", "recall@10", "median_rank")


def alignment_files(
    model: Mapping[str, bytes], metrics: Mapping[str, Any], networks: Sequence[Network]
) -> dict[str, bytes]:
    """By name, as `services.finetune.artifacts.write_artifacts` has them."""
    trained = [network for network in networks if network.fit.history]
    curves = {network.candidate.name: network.fit.history for network in trained}
    return {
        **model,
        **({"plots/learning-curves.png": png(learning_curves(trained))} if trained else {}),
        "metrics.json": json.dumps({**metrics, "curves": curves}, indent=1, ensure_ascii=False).encode(),
        "README.md": alignment_card(metrics).encode(),
        **{f"tensorboard/{name}/events.out.tfevents.0.trivium": event_log(curve) for name, curve in curves.items()},
    }


def alignment_card(metrics: Mapping[str, Any]) -> str:
    """The card in Markdown."""
    modalities = ", ".join(f"{m} ({d})" for m, d in metrics["dimensions"].items())
    columns = ["network", "learned by", "seed", "best epoch", "seconds", "validation score", "weight"]
    rows = [
        (c["name"], c["parameters"].get("learned_by", "contrast"), c["seed"], c["best_epoch"], c["seconds"],
         c["validation_score"], c["weight"])
        for c in metrics["candidates"]
    ]  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    score = cell(metrics["test"]["mean_reciprocal_rank"])
    head = (
        f"# Alignment\n\nProjects the vectors of {modalities} into one space of {metrics['dimension']} dimensions, in "
        f"which those of one item are near each other.\n\n**Mean reciprocal rank {score}** among the test items, over "
        "all directions."
    )
    use = (
        "## Use\n\nName this model as the fusion of a `features` job: `fused` is then the middle of an item's "
        "projections. The weights are plain safetensors; vectors are standardised inside."
    )
    making = (
        f"## How it was made\n\nPreset `{metrics['preset']}`, seed {metrics['seed']}, {metrics['threads']} threads on "
        f"{metrics['device']}. {metrics['parameters']:,} parameters. {versions}. The network was chosen by the mean "
        f"reciprocal rank among validation items.\n\n{table(columns, rows)}"
    )
    return "\n\n".join([head, data_section(metrics), _retrieval(metrics["test"]["retrieval"]), use, making]) + "\n"


def _retrieval(found: Mapping[str, Any]) -> str:
    rows = []
    for direction, scores in found.items():
        rows.append((direction, scores["items"], *(scores[name] for name in _RECALLS)))
        rows.append(("(chance)", "", *(scores["chance"][name] for name in _RECALLS)))
    columns = ["search", "items", "recall@1", "recall@5", "recall@10", "median rank"]
    note = "An item's vector of one modality is sought by that of the other, among the test items that have both."
    return f"## Retrieval\n\n{table(columns, rows)}\n\n{note}"
