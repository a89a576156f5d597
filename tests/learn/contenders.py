"""The models that are compared: what fine_tune jobs train, of single modalities and of all, and two of scikit-learn's.

All see the same training and validation items. Those of jobs go through the code of jobs (`services.finetune`): the
preset `good` for a modality alone; on all of them every network that it tries and the methods that it leaves out, each
by itself; then the preset's own model, and an ensemble of them all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from services.finetune.candidates import Candidate, candidates
from services.finetune.data import Dataset, Rows
from services.finetune.modelling import Outside, Run, train_model
from services.finetune.problem import Problem
from shared.fine_tuning import FineTuneRequest, FusionChoice, Preset
from shared.ml.repeatable import repeatable
from shared.ml.splits import Parts
from shared.queues import Modality
from shared.schemas import FusionMethod
from shared.worker.progress import Silence

Floats = NDArray[np.float64]

SINGLE = tuple(m.value for m in Modality)
#: Made of several of the others: by choice, and by ensemble selection as the preset `best` does it with more seeds.
PRESET, ENSEMBLE = "preset-good", "ensemble"
BASELINES = ("logistic-regression", "gradient-boosting")
#: What is tried of the inverse regularisation.
_STRENGTHS = (0.0003, 0.003, 0.03)
#: Small trees that look at some of the columns: as good here as the defaults, in a fifth of their time.
_TREES: dict[str, Any] = {"max_iter": 50, "max_leaf_nodes": 4, "max_features": 0.1, "learning_rate": 0.15}


@dataclass(frozen=True)
class Verdict:
    """What a model came to: its log-loss on validation items, by which it is chosen, and if it was right [tested]."""

    validation_loss: float
    right: NDArray[np.bool_]


class Kept(Silence):
    """Networks that were trained once are there again when another model is made of them."""

    def __init__(self) -> None:
        self._saved: dict[str, bytes] = {}

    def save(self, name: str, state: bytes) -> None:
        """Keeps it."""
        self._saved[name] = state

    def restore(self, name: str) -> bytes | None:
        """What was kept."""
        return self._saved.get(name)


def contend(data: Dataset, problem: Problem, parts: Parts, seed: int) -> dict[str, Verdict]:
    """Trains every model on these parts, and lets it answer for the test items."""
    outside = Outside(Kept(), torch.device("cpu"))
    request = FineTuneRequest.model_validate(
        {"type": "fine_tune", "features": "job-learn", "preset": Preset.GOOD, "training": {"seed": seed}}
    )
    with repeatable(outside.device, 0):
        run = Run.of(data, problem, parts, request, outside)
        return dict([*_single(run), *_fused(run), *_baselines(run)])


def _single(run: Run) -> Iterator[tuple[str, Verdict]]:
    for modality in run.data.vectors:
        yield modality.value, _judged(run, modality.value, run.on([modality]), None)


def _fused(run: Run) -> Iterator[tuple[str, Verdict]]:
    tried = fusions(run.request, len(run.parts.train), run.data.vectors)
    for candidate in tried:
        yield candidate.name, _judged(run, "fused", run, [candidate])
    yield PRESET, _judged(run, "fused", run, None)
    combining = replace(run, request=run.request.model_copy(update={"preset": Preset.BEST}))
    yield ENSEMBLE, _judged(run, "fused", combining, tried)


def fusions(request: FineTuneRequest, items: int, modalities: Mapping[Modality, object]) -> list[Candidate]:
    """What the preset tries, then each method that it does not, with its defaults."""
    tried = candidates(request, items, modalities)
    for method in FusionMethod:
        if method is not FusionMethod.NONE and method not in {candidate.fusion for candidate in tried}:
            asked = request.model_copy(update={"fusion": FusionChoice(method=method.value)})
            tried += candidates(asked, items, modalities)
    return tried


def _judged(run: Run, name: str, own: Run, tried: list[Candidate] | None) -> Verdict:
    """A model on its own part of a run. All models are judged by the same items, those too that lack its modality."""
    model = train_model(name, own, tried).model

    def said(rows: Rows) -> Floats:
        items = run.data.take(rows)
        return model.outputs(items.vectors, items.present)

    return _verdict(run, said(run.problem.learnable(run.parts.validation)), said(run.parts.test))


def _verdict(run: Run, validation: Floats, test: Floats) -> Verdict:
    loss = run.problem.loss(validation, run.problem.learnable(run.parts.validation))
    return Verdict(loss, test.argmax(axis=1) == run.problem.answers[run.parts.test])


def _baselines(run: Run) -> Iterator[tuple[str, Verdict]]:
    """On the vectors one after the other, standardised, with the mean where one is missing."""
    rows = np.hstack([np.where(run.data.present[m][:, None], v, np.nan) for m, v in run.data.vectors.items()])
    filled = make_pipeline(StandardScaler(), SimpleImputer(strategy="constant", fill_value=0, keep_empty_features=True))
    rows = filled.fit(rows[run.parts.train]).transform(rows)
    regressions = [LogisticRegression(C=strength, max_iter=1000) for strength in _STRENGTHS]
    trees = HistGradientBoostingClassifier(**_TREES, early_stopping=False, random_state=0)
    for name, models in zip(BASELINES, (regressions, [trees]), strict=True):
        verdicts = [_fitted(model, run, rows) for model in models]
        yield name, min(verdicts, key=lambda verdict: verdict.validation_loss)


def _fitted(model: Any, run: Run, rows: Floats) -> Verdict:
    model.fit(rows[run.parts.train], run.problem.answers[run.parts.train])
    judges = run.problem.learnable(run.parts.validation)
    return _verdict(run, model.predict_proba(rows[judges]), model.predict_proba(rows[run.parts.test]))
