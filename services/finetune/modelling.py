"""From a problem to a trained model: what the preset tries, and the choice among it by validation items."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.finetune.candidates import Candidate, candidates, with_seeds
from services.finetune.data import Dataset
from services.finetune.ensemble import select_ensemble
from services.finetune.library import Bench, Network
from services.finetune.objectives import Loss, Supervised, class_weights, make_batch
from services.finetune.problem import Problem
from services.finetune.search import SettingsSearch
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest, Preset
from shared.ml.process_group import Alone, ProcessGroup
from shared.ml.splits import Parts
from shared.ml.trained import Member, Task, TrainedConfig, TrainedModel, save_trained
from shared.queues import Modality
from shared.worker.progress import Progress

#: How many candidates a search adds to those of the preset.
_FOUND = {Preset.FAST: 1, Preset.GOOD: 1, Preset.BEST: 3}


@dataclass(frozen=True)
class Outside:
    """Where training happens, whom it tells, and with which other processes it is done."""

    progress: Progress
    device: torch.device
    group: ProcessGroup = field(default_factory=Alone)


@dataclass(frozen=True)
class Run:
    """All that a model is trained with. `prior`, `mean` and `std` are of the answers of the training items."""

    data: Dataset
    problem: Problem
    parts: Parts
    request: FineTuneRequest
    outside: Outside
    prior: NDArray[np.float64]
    std: float = 1.0

    @classmethod
    def of(cls, data: Dataset, problem: Problem, parts: Parts, request: FineTuneRequest, outside: Outside) -> "Run":
        """With what follows from the training items.

        Raises JobError (`one_class`, `unknown_class`; `too_few_items` if no validation item has a known class).
        """
        problem = problem.with_known_first(parts.train)
        weights = class_weights(request.training.class_weights, problem, parts.train)
        problem = replace(problem, weights=weights)
        if not len(problem.learnable(parts.validation)):
            message = "No validation item has a label that training items have: give both parts items of each class."
            raise JobError(message, code="too_few_items", param="splitting")
        std = float(problem.answers[parts.train].std()) if problem.task is Task.REGRESSION else 1.0
        return cls(data, problem, parts, request, outside, problem.prior(parts.train), std or 1.0)

    def on(self, modalities: Sequence[Modality]) -> "Run":
        """With these modalities alone: items that have none of them neither train nor judge."""
        data = self.data.only(modalities)
        usable = data.usable()
        train, validation = (rows[usable[rows]] for rows in (self.parts.train, self.parts.validation))
        return replace(self, data=data, parts=replace(self.parts, train=train, validation=validation))

    @property
    def answers(self) -> NDArray[Any]:
        """As networks are trained on them: numbers in units of `std` from the mean, known classes only."""
        problem = self.problem
        if problem.task is Task.REGRESSION:
            return np.asarray((problem.answers - self.prior[0]) / self.std)
        return problem.answers[:, : problem.known] if problem.task is Task.MULTI_LABEL else problem.answers

    @property
    def loss(self) -> Loss:
        """Asked for, or what suits the task."""
        asked = self.request.training.loss
        usual: dict[Task, Loss] = {Task.SINGLE_LABEL: "cross_entropy", Task.MULTI_LABEL: "bce", Task.REGRESSION: "mse"}
        return usual[self.problem.task] if asked == "auto" else asked


@dataclass(frozen=True)
class Trained:
    """A model with its files, the networks that were trained for it, and how much each counts in it (0: not chosen)."""

    model: TrainedModel
    files: dict[str, bytes]
    networks: list[Network]
    weights: list[float]
    trials: list[dict[str, Any]]

    @property
    def best(self) -> Network:
        """The network with the lowest validation loss."""
        return min(self.networks, key=lambda network: network.fit.loss)


def train_model(name: str, run: Run, tried: Sequence[Candidate] | None = None) -> Trained:
    """The model that the preset makes on the data of a run, or that of the candidates given.

    `name` tells its checkpoints and events from those of other models of the job. Raises JobError
    (`training_diverged`), and what stops the run.
    """
    bench, trials = _bench(name, run), []
    if tried is None:
        tried = candidates(run.request, len(run.parts.train), run.data.vectors)
        if run.request.search is not None:
            search = SettingsSearch(bench, tried, run.request.search, run.request.training)
            search.run()
            tried, trials = [*tried, *search.best(_FOUND[run.request.preset])], search.trials
        tried = with_seeds(tried, run.request.preset)
    networks = bench.fit_all(tried)
    weights = _weights(run, networks)
    files = _files(run, networks, weights)
    return Trained(TrainedModel.load(files, run.outside.device), files, networks, weights, trials)


def model_of(run: Run, network: Network) -> TrainedModel:
    """One of the networks of a run as a model of its own."""
    return TrainedModel.load(_files(run, [network], [1.0]), run.outside.device)


def _bench(name: str, run: Run) -> Bench:
    weights = None if run.problem.weights is None else torch.from_numpy(run.problem.weights).float()
    return Bench.of(
        name,
        train=make_batch(run.data, run.parts.train, run.answers, run.outside.device),
        validation=make_batch(run.data, run.problem.learnable(run.parts.validation), run.answers, run.outside.device),
        objective=lambda: Supervised(run.loss, weights),
        outputs=run.problem.outputs,
        progress=run.outside.progress,
    )


def _weights(run: Run, networks: Sequence[Network]) -> list[float]:
    """1 for the best by validation; of the preset `best`, ensemble selection."""
    if run.request.preset is not Preset.BEST or len(networks) == 1:
        best = min(range(len(networks)), key=lambda place: networks[place].fit.loss)
        return [float(place == best) for place in range(len(networks))]
    judges = run.problem.learnable(run.parts.validation)
    items = run.data.take(judges)
    outputs = []
    for network in networks:
        run.outside.progress.check()
        outputs.append(model_of(run, network).outputs(items.vectors, items.present))
    counts = np.array(select_ensemble(outputs, lambda said: run.problem.loss(said, judges)), np.float64)
    return [float(weight) for weight in counts / counts.sum()]


def _files(run: Run, networks: Sequence[Network], weights: Sequence[float]) -> dict[str, bytes]:
    chosen = [(network, weight) for network, weight in zip(networks, weights, strict=True) if weight]
    problem = run.problem
    config = TrainedConfig(
        task=problem.task,
        classes=problem.classes[: problem.known],
        prior=run.prior.tolist(),
        one_vs_rest=problem.task is Task.SINGLE_LABEL and run.loss == "bce",
        mean=float(run.prior[0]) if problem.task is Task.REGRESSION else 0.0,
        std=run.std,
        members=[Member(name=n.candidate.name, weight=weight, model=n.config) for n, weight in chosen],
    )
    return save_trained(config, [network.fit.state for network, _ in chosen])
