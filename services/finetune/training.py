"""Training one network: epochs, schedule, early stopping, and checkpoints from which it goes on as if never stopped."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.finetune.objectives import Batch, Objective
from services.finetune.settings import Settings
from shared.fine_tuning import Optimizer, Schedule
from shared.json_numbers import as_json
from shared.language_tuning import LanguageTraining
from shared.ml.checkpoints import pack, prefixed, unpack, without_prefix
from shared.ml.device import has_fast_bf16
from shared.ml.multimodal import MultimodalModel
from shared.ml.repeatable import derived_seed
from shared.worker.progress import Progress

#: Name of the checkpoint of the network that is just being trained.
RUNNING = "running"

_ROWS_AT_ONCE = 8192
_MOMENTUM = 0.9

#: Called after each epoch with its number and validation loss, anew after a restart; may raise to give up.
OnEpoch = Callable[[int, float], None]


@dataclass(frozen=True)
class Fit:
    """A trained network: its state of the best epoch, that epoch's validation loss (inf if it never was a number).

    `history` has an entry for each epoch: `epoch`, `train_loss`, `validation_loss`, `learning_rate`.
    """

    state: dict[str, Tensor]
    loss: float
    epoch: int
    history: list[dict[str, float]]
    seconds: float


class Trainer:
    """One network's way through its epochs."""

    def __init__(
        self,
        name: str,
        network: MultimodalModel,
        objective: Objective,
        settings: Settings,
        seed: int,
        progress: Progress,
    ):
        """`name` tells checkpoints and events of one network from those of others."""
        self._name, self._network, self._objective = name, network, objective
        self._settings, self._seed, self._progress = settings, seed, progress
        self._optimizer = make_optimizer([network, objective], settings)
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._device = next(network.parameters()).device
        self._best: dict[str, Tensor] = {}
        self._best_epoch, self._best_loss = 0, math.inf
        self._history: list[dict[str, float]] = []
        self._seconds = 0.0

    def run(self, train: Batch, validation: Batch, on_epoch: OnEpoch | None = None) -> Fit:
        """Trains to the end. Raises what `progress.check` and `on_epoch` raise."""
        self._restore()
        if on_epoch is not None:
            for entry in self._history:
                on_epoch(int(entry["epoch"]), entry["validation_loss"])
        while not self._is_finished():
            begun = time.monotonic()
            self._epoch(train, validation)
            self._seconds += time.monotonic() - begun
            entry = self._history[-1]
            if self._progress.is_due():  # before it is told of: what was told is not gone through again
                self._progress.save(RUNNING, self._checkpoint())
            self._progress.report("epoch", model=self._name, **as_json(entry))
            if on_epoch is not None:
                on_epoch(int(entry["epoch"]), entry["validation_loss"])
        return Fit(self._best, self._best_loss, self._best_epoch, self._history, self._seconds)

    def _is_finished(self) -> bool:
        done = len(self._history)
        failed = done > 0 and not math.isfinite(self._history[-1]["validation_loss"])
        return failed or done >= self._settings.epochs or done - self._best_epoch >= self._settings.patience

    def _epoch(self, train: Batch, validation: Batch) -> None:
        epoch = len(self._history) + 1
        # All that is random in an epoch follows from its number, so that it can be repeated without those before.
        torch.manual_seed(derived_seed(self._seed, epoch))
        self._network.train()
        steps = -(-len(train) // self._settings.batch_size)
        batches = torch.randperm(len(train)).to(self._device).tensor_split(steps)  # no small one at the end
        rate, total, weight = 0.0, 0.0, 0.0
        for step, rows in enumerate(batches, (epoch - 1) * steps):
            self._progress.check()
            rate = self._settings.learning_rate * rate_factor(step, self._settings.epochs * steps, self._settings)
            summed, weighed = self._step(train.take(rows), rate)
            total, weight = total + summed, weight + weighed
        loss = self._validate(validation)
        self._history.append(
            {"epoch": epoch, "train_loss": total / weight, "validation_loss": loss, "learning_rate": rate}
        )
        if loss < self._best_loss:
            self._best_epoch, self._best_loss = epoch, loss
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in self._network.state_dict().items()}

    def _step(self, batch: Batch, rate: float) -> tuple[float, float]:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for parameter in self._parameters:
            parameter.grad = None  # as the optimizer does it, in a tenth of the time
        with mixed_precision(self._device, self._settings):
            total, weight = self._objective(self._network, batch)
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.gradient_clip)
        self._optimizer.step()
        return float(total.detach()), float(weight)

    def _validate(self, validation: Batch) -> float:
        self._network.eval()
        total = weight = 0.0
        with torch.inference_mode():
            for first in range(0, len(validation), _ROWS_AT_ONCE):
                self._progress.check()
                part = self._objective(self._network, validation.take(slice(first, first + _ROWS_AT_ONCE)))
                total, weight = total + float(part[0]), weight + float(part[1])
        return total / weight

    def _checkpoint(self) -> bytes:
        tensors = prefixed("network.", self._network.state_dict()) | prefixed("best.", self._best)
        tensors |= prefixed("objective.", self._objective.state_dict())
        for place, values in self._optimizer.state_dict()["state"].items():
            tensors |= prefixed(f"optimizer.{place}.", {k: v for k, v in values.items() if isinstance(v, Tensor)})
        facts = {"name": self._name, "epoch": self._best_epoch, "loss": self._best_loss, "history": self._history}
        return pack(tensors, {**facts, "seconds": self._seconds})

    def _restore(self) -> None:
        data = self._progress.restore(RUNNING)
        if data is None:
            return
        tensors, facts = unpack(data)
        if facts["name"] != self._name:
            return
        self._network.load_state_dict(without_prefix("network.", tensors))
        self._objective.load_state_dict(without_prefix("objective.", tensors))
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in without_prefix("optimizer.", tensors).items():
            place, key = name.split(".", 1)
            state.setdefault(int(place), {})[key] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        self._best = without_prefix("best.", tensors)
        self._best_epoch, self._best_loss = facts["epoch"], facts["loss"]
        self._history, self._seconds = facts["history"], facts["seconds"]


def rate_factor(step: int, steps: int, settings: Settings | LanguageTraining) -> float:
    """What the learning rate is multiplied by: up from nothing in the warm-up, then as the schedule says."""
    warmup = math.ceil(settings.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    if settings.schedule is Schedule.LINEAR:
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule is Schedule.COSINE else 1.0


def make_optimizer(modules: list[torch.nn.Module], settings: Settings) -> torch.optim.Optimizer:
    """Matrices decay, biases and scales do not."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    if settings.optimizer is Optimizer.SGD:
        return torch.optim.SGD(groups, lr=rate, momentum=_MOMENTUM, fused=True)
    kind = torch.optim.AdamW if settings.optimizer is Optimizer.ADAMW else torch.optim.Adam
    return kind(groups, lr=rate, fused=True)


def mixed_precision(device: torch.device, settings: Settings) -> AbstractContextManager[object]:
    """Autocast to bf16: when asked for, and by itself on a GPU that computes it in hardware."""
    auto = settings.precision == "auto" and device.type == "cuda" and has_fast_bf16(device)
    asked = settings.precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if auto or asked else nullcontext()
