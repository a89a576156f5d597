"""What each preset tries: networks that differ in fusion, settings and seed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log2
from typing import Any

from services.finetune.settings import Settings
from shared.fine_tuning import FineTuneRequest, Optimizer, Preset, Training
from shared.ml.multimodal import MultimodalConfig
from shared.queues import Modality
from shared.schemas import FusionMethod

#: How many seeds the preset `best` gives each network.
BEST_SEEDS = 3

#: For about a thousand items, on which any of these networks overfits within a few epochs. Tuned on random divisions of
#: the training and validation items of the sample dataset; its test items had no part in it.
_SMALL_DATA = Settings(hidden=128, dropout=0.5, modality_dropout=0.3, weight_decay=2.0)


@dataclass(frozen=True)
class Candidate:
    """A network to be trained. `name` is unique within a run."""

    name: str
    fusion: FusionMethod
    settings: Settings
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def in_closed_form(self) -> bool:
        """Whether it is computed, not trained."""
        return self.parameters.get("learned_by") == "cca"

    def config(self, dimensions: Mapping[Modality, int], outputs: int | None) -> MultimodalConfig:
        """The network for vectors of these dimensions; without `outputs` it has no head."""
        settings = self.settings
        headless = self.fusion is FusionMethod.LATE or outputs is None
        return MultimodalConfig(
            dimensions=dict(dimensions),
            outputs=outputs,
            hidden=settings.hidden,
            dropout=settings.dropout,
            modality_dropout=settings.modality_dropout if len(dimensions) > 1 else 0,
            fusion=self.fusion,
            parameters=dict(self.parameters),
            head_hidden=0 if headless else settings.head,
        )


#: Linear or logistic regression on the vectors themselves.
_LINEAR = Candidate("linear", FusionMethod.CONCAT, _SMALL_DATA.changed(hidden=0, weight_decay=10.0))

#: These let modalities speak for themselves, and profit from each having to.
_APART = _SMALL_DATA.changed(modality_dropout=0.5)

_CONCAT = Candidate("concat", FusionMethod.CONCAT, _APART)

#: Vectors of length 1 have small components: steps must be larger, and decay would hold them back.
_UNIT = _SMALL_DATA.changed(hidden=0, learning_rate=1e-2, weight_decay=0.1)

#: Settings of the methods that small data suit otherwise.
_OWN = {FusionMethod.CONCAT: _APART, FusionMethod.LATE: _APART, FusionMethod.WEIGHTED: _UNIT}

#: What the presets `good` and `best` try if the request names no fusion.
_SEVERAL = [
    _CONCAT,
    _LINEAR,
    Candidate("weighted", FusionMethod.WEIGHTED, _UNIT, {"learned": True}),
    Candidate("gated", FusionMethod.GATED, _SMALL_DATA),
    Candidate("late", FusionMethod.LATE, _APART),
    Candidate("attention", FusionMethod.ATTENTION, _SMALL_DATA, {"dimension": 64, "layers": 1, "dropout": 0.3}),
]


def candidates(request: FineTuneRequest, items: int, modalities: Collection[Modality]) -> list[Candidate]:
    """What the request's preset tries on so many training items. Of a single modality there is nothing to fuse."""
    training = request.training
    if request.fusion is not None and len(modalities) > 1:
        method = FusionMethod(request.fusion.method)
        settings = _OWN.get(method, _SMALL_DATA)
        tried = [Candidate(method.value, method, settings, request.fusion.parameters)]
    elif request.preset is Preset.FAST or request.fusion is not None:
        tried = [_CONCAT]
    else:
        tried = _SEVERAL if len(modalities) > 1 else [_CONCAT, _LINEAR]
    return [replace(c, settings=suited(c.settings, training, items), seed=training.seed) for c in tried]


def with_seeds(tried: Sequence[Candidate], preset: Preset) -> list[Candidate]:
    """Each with several seeds, of the preset `best`."""
    if preset is not Preset.BEST:
        return list(tried)
    return [replace(c, name=f"{c.name}-{i + 1}", seed=c.seed + i) for c in tried for i in range(BEST_SEEDS)]


def suited(settings: Settings, training: Training, items: int) -> Settings:
    """Settings for small data as they suit so many items and the optimizer, then what the request gives.

    The more items, the less regularisation: what the data say outweighs it. AdamW takes its decay off the weights
    (Loshchilov and Hutter, ICLR 2019); the others add it to gradients, where it must be far smaller.
    """
    less = min(1.0, 1000 / items)
    settings = settings.changed(
        weight_decay=settings.weight_decay * less,
        dropout=settings.dropout if items < 10_000 else settings.dropout / 2,
        batch_size=min(max(2 ** round(log2(items / 16)), 32), 1024),
    )
    if training.optimizer is not Optimizer.ADAMW:
        settings = settings.changed(weight_decay=settings.weight_decay / 200)
    if training.optimizer is Optimizer.SGD:
        settings = settings.changed(learning_rate=settings.learning_rate * 30)
    return settings.given(training)
