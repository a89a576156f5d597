"""Trained networks for one problem on some modalities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.finetune.candidates import Candidate
from services.finetune.closed_form import fit_in_closed_form
from services.finetune.objectives import Batch, Objective
from services.finetune.training import Fit, OnEpoch, Trainer
from shared.errors import JobError
from shared.json_numbers import as_json
from shared.ml.checkpoints import pack, unpack
from shared.ml.multimodal import MultimodalConfig, MultimodalModel, Scales, scales_of
from shared.ml.repeatable import derived_seed
from shared.worker.progress import Progress


@dataclass(frozen=True)
class Network:
    """A trained network: what it was to be, what it is, and how its training went."""

    candidate: Candidate
    config: MultimodalConfig
    fit: Fit


def described(network: Network, weight: float) -> dict[str, Any]:
    """A network as JSON, and how much it counts in the model."""
    return {
        "name": network.candidate.name,
        "fusion": network.config.fusion.value,
        "parameters": network.config.parameters,
        "settings": network.candidate.settings.as_json(),
        "seed": network.candidate.seed,
        "validation_loss": network.fit.loss,
        "best_epoch": network.fit.epoch,
        "epochs": len(network.fit.history),
        "seconds": network.fit.seconds,
        "weight": weight,
    }


@dataclass(frozen=True)
class Bench:
    """Where networks for one problem are trained. `name` tells what is done here from the rest of the run.

    `train` and `validation` are standardised by `scales`.
    """

    name: str
    train: Batch
    validation: Batch
    scales: Scales
    objective: Callable[[], Objective]
    outputs: int | None
    progress: Progress

    @classmethod
    def of(
        cls,
        name: str,
        train: Batch,
        validation: Batch,
        objective: Callable[[], Objective],
        outputs: int | None,
        progress: Progress,
    ) -> "Bench":
        """With items as they are, which are standardised in place, once for all networks."""
        scales = scales_of(train.vectors, train.mask)
        for part in (train, validation):
            part.standardise(scales)
        return cls(name, train, validation, scales, objective, outputs, progress)

    def fit_all(self, candidates: Sequence[Candidate]) -> list[Network]:
        """All that can be trained. Raises JobError (`training_diverged`) if none can."""
        networks = [self.fit(candidate) for candidate in candidates]
        sound = [network for network in networks if math.isfinite(network.fit.loss)]
        if not sound:
            message = "The loss became infinite whatever was tried: lower training.learning_rate."
            raise JobError(message, code="training_diverged", param="training.learning_rate")
        return sound

    def fit(self, candidate: Candidate) -> Network:
        """Trains a candidate, unless this run, before it was stopped, had done so already."""
        key, config = self._key(candidate), self._config(candidate)
        data = self.progress.restore(key)
        if data is not None:
            state, facts = unpack(data)
            return Network(candidate, config, Fit(state=state, **facts))
        fit = self._train(candidate)
        facts = {"loss": fit.loss, "epoch": fit.epoch, "seconds": fit.seconds}
        self.progress.save(key, pack(fit.state, {**facts, "history": fit.history}))
        self.progress.report("model", model=key, **as_json(facts))
        return Network(candidate, config, fit)

    def try_out(self, candidate: Candidate, on_epoch: OnEpoch) -> float:
        """The validation loss of a candidate that is not kept. Raises what `on_epoch` raises."""
        return self._train(candidate, on_epoch).loss

    def _train(self, candidate: Candidate, on_epoch: OnEpoch | None = None) -> Fit:
        device = self.train.answers.device
        torch.manual_seed(derived_seed(candidate.seed, "weights"))
        network = MultimodalModel(self._config(candidate)).to(device)
        network.set_scales(self.scales)
        network.takes_standardised = True
        if candidate.in_closed_form:
            return fit_in_closed_form(network, self.train)
        objective = self.objective().to(device)
        trainer = Trainer(self._key(candidate), network, objective, candidate.settings, candidate.seed, self.progress)
        return trainer.run(self.train, self.validation, on_epoch)

    def _key(self, candidate: Candidate) -> str:
        return f"{self.name}-{candidate.name}"

    def _config(self, candidate: Candidate) -> MultimodalConfig:
        return candidate.config({m: rows.shape[1] for m, rows in self.train.vectors.items()}, self.outputs)
