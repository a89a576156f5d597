"""The files of a model: weights and configuration, what was measured, its card with pictures, and logs."""

import json
from collections.abc import Mapping
from typing import Any

from services.finetune.assessment import predicted_items
from services.finetune.card import model_card
from services.finetune.event_log import event_log
from services.finetune.modelling import Run, Trained
from services.finetune.plots import draw_plots


def write_artifacts(run: Run, fused: Trained, metrics: Mapping[str, Any]) -> dict[str, bytes]:
    """By name: `model.safetensors`, `config.json`, `metrics.json`, `README.md`, `test_items.jsonl`, `plots/`,

    and `tensorboard/`, with a folder for each network that was trained.
    """
    curves = {network.candidate.name: network.fit.history for network in fused.networks}
    plots = draw_plots(metrics, fused.networks, metrics["main_score"])
    card = model_card(metrics, fused.model.config, list(plots))
    return {
        **fused.files,
        **plots,
        "metrics.json": json.dumps({**metrics, "curves": curves}, indent=1, ensure_ascii=False).encode(),
        "README.md": card.encode(),
        "test_items.jsonl": predicted_items(run, fused.model, run.parts.test),
        **{f"tensorboard/{name}/events.out.tfevents.0.trivium": event_log(curve) for name, curve in curves.items()},
    }
