"""How a model holds up when its inputs get worse: growing noise, and modalities that go missing.

As MultiBench measures it (Liang et al., NeurIPS 2021 Datasets and Benchmarks): the score against the strength of the
disturbance, for each modality, and the area under that curve.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from services.finetune.data import Dataset, Mask, Vectors
from services.finetune.evaluation import Outputs
from shared.ml.trained import TrainedModel
from shared.queues import Modality

#: Standard deviation of the noise, in units of each component's own among the items.
NOISE = (0.0, 0.5, 1.0, 2.0, 4.0)

#: Share of the items that lose the modality.
MISSING = (0.0, 0.25, 0.5, 0.75, 1.0)


def robustness(
    model: TrainedModel,
    data: Dataset,
    score: Callable[[Outputs], float],
    rng: np.random.Generator,
    check: Callable[[], None],
) -> dict[str, Any]:
    """Scores at each level by modality, and `area`: the mean height of the curve, in units of the score.

    `data` are the test items and `score` judges the model's outputs for them; `check` may stop it. The same noise, and
    the same order of loss, serves at all levels.
    """
    found: dict[str, Any] = {"noise": {"levels": NOISE}, "missing": {"levels": MISSING}}
    for modality in model.dimensions:
        rows, present = data.vectors[modality], data.present[modality]
        spread = rows[present].std(axis=0) if present.any() else np.zeros(rows.shape[1], np.float32)
        noise: Vectors = rng.standard_normal(rows.shape, np.float32) * spread
        turn = rng.permutation(len(data)) / len(data)

        def disturbed(rows: Vectors, present: Mask, modality: Modality = modality) -> float:
            check()
            return score(model.outputs({**data.vectors, modality: rows}, {**data.present, modality: present}))

        noisy = [disturbed(rows + np.float32(level) * noise, present) for level in NOISE]
        missing = [disturbed(rows, present & (turn >= share)) for share in MISSING]
        found["noise"][modality.value] = _curve(NOISE, noisy)
        found["missing"][modality.value] = _curve(MISSING, missing)
    return found


def _curve(levels: tuple[float, ...], scores: list[float]) -> dict[str, Any]:
    return {"scores": scores, "area": float(np.trapezoid(scores, levels) / (levels[-1] - levels[0]))}
