"""Training an encoder with a linear head on the answers of items: the loop, early stopping, and its checkpoints.

Several processes may do so together: each takes its share of every batch, and after each step all have the same state.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import JobError
from shared.fine_tuning import EncoderTraining, TrainEncoder
from shared.json_numbers import as_json
from shared.ml.checkpoints import pack, prefixed, unpack, without_prefix
from shared.ml.encoders.base import TrainableEncoder
from shared.ml.encoders.batching import is_out_of_memory, plan_batches
from shared.ml.process_group import Alone, ProcessGroup, add_up_gradients
from shared.ml.repeatable import derived_seed, generator
from shared.ml.supervision import Supervision
from shared.worker.progress import Progress

#: Name of the checkpoint.
RUNNING = "encoder"

#: Least learning rate of the head, which starts from nothing.
HEAD_RATE = 1e-3

_GRADIENT_NORM = 1.0

#: Items are sorted by cost within so many batches: alike enough to waste little, apart enough to stay random.
_SORTED_BATCHES = 32

#: A GPU has room for so many times what `at_once` allows; if it has not, that is found out.
_ON_GPU = 8


#: Epochs, patience and learning rate of a pretrained encoder.
_USUAL = {
    TrainEncoder.FULL: (3, 2, 2e-5),
    TrainEncoder.LORA: (3, 2, 2e-4),
    TrainEncoder.BORDER: (20, 5, 1e-2),
}


@dataclass(frozen=True)
class Recipe:
    """How an encoder is trained; without `lora_rank` and `border`, all its weights."""

    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float
    warmup: float
    patience: int
    lora_rank: int | None = None
    border: float | None = None


def recipe_of(options: EncoderTraining, how: TrainEncoder, *, from_scratch: bool) -> Recipe:
    """What a request leaves open is what is usual: Devlin et al. 2019 for all weights, Hu et al. 2022 for adapters."""
    epochs, patience, rate = (60, 10, 1e-3) if from_scratch else _USUAL[how]
    return Recipe(
        epochs=options.epochs or epochs,
        learning_rate=options.learning_rate or rate,
        batch_size=options.batch_size,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        patience=options.patience or patience,
        lora_rank=options.lora_rank if how is TrainEncoder.LORA and not from_scratch else None,
        border=options.border if how is TrainEncoder.BORDER and not from_scratch else None,
    )


class Inputs(Protocol):
    """Items as the encoder takes them."""

    @property
    def costs(self) -> Sequence[int]:
        """Of each."""
        ...

    def take(self, rows: Sequence[int]) -> list[Any]:
        """Some of them, in this order."""
        ...


@dataclass(frozen=True)
class Examples:
    """Items and their answers [n, …]."""

    inputs: Inputs
    answers: Tensor

    def __len__(self) -> int:
        return len(self.answers)


class Tuner:
    """An encoder's way through its epochs. After `run` it has the weights of its best one."""

    def __init__(
        self,
        encoder: TrainableEncoder,
        supervision: Supervision,
        recipe: Recipe,
        *,
        seed: int,
        dtype: torch.dtype,
        progress: Progress,
        group: ProcessGroup | None = None,
    ):
        """`dtype` bfloat16: mixed precision. The head is drawn by torch's global generator."""
        self._encoder, self._supervision, self._recipe = encoder, supervision, recipe
        self._seed, self._dtype, self._progress, self._group = seed, dtype, progress, group or Alone()
        self._device = next(encoder.module.parameters()).device
        head = nn.Sequential(
            nn.LayerNorm(encoder.dimension, elementwise_affine=False), nn.Linear(encoder.dimension, supervision.outputs)
        )
        self._network = nn.ModuleDict({"encoder": encoder.module, "head": head.to(self._device)})
        self._optimizer = make_optimizer(encoder.module, head, recipe)
        self._at_once = encoder.at_once * (_ON_GPU if self._device.type == "cuda" else 1)
        self._best: dict[str, Tensor] = {}
        self._best_epoch, self._best_loss = 0, math.inf
        self._batches_done, self._loss_so_far = 0, 0.0  # of the epoch
        self.history: list[dict[str, float]] = []

    @property
    def best_epoch(self) -> int:
        """The epoch with the least validation loss, from 1 on."""
        return self._best_epoch

    def run(self, train: Examples, validation: Examples) -> None:
        """Trains to the end. Raises what `progress.check` raises, and JobError (`diverged`, `out_of_memory`)."""
        self._restore()
        while not self._is_finished():
            self._epoch(train, validation)
            self._progress.report("epoch", encoder=self._encoder.spec.id, **as_json(self.history[-1]))
            self._save_if_due()
        if not self._best:
            message = f"Training {self._encoder.spec.id} led nowhere: its loss is no number. Lower the learning rate."
            raise JobError(message, code="diverged")
        self._network.load_state_dict(self._best, strict=False)
        self._network.eval()

    def _is_finished(self) -> bool:
        done = len(self.history)
        failed = done > 0 and not math.isfinite(self.history[-1]["validation_loss"])
        return failed or done >= self._recipe.epochs or done - self._best_epoch >= self._recipe.patience

    def _epoch(self, train: Examples, validation: Examples) -> None:
        epoch = len(self.history) + 1
        self._network.train()
        batches = shuffled_batches(train.inputs.costs, self._recipe.batch_size, generator(self._seed, epoch))
        for place in range(self._batches_done, len(batches)):
            self._progress.check()
            # All that is random in a step follows from its number, so that it can be repeated without those before.
            torch.manual_seed(derived_seed(self._seed, epoch, place, self._group.rank))
            step, steps = (epoch - 1) * len(batches) + place, self._recipe.epochs * len(batches)
            loss = self._step(train, batches[place], rate_factor(step, steps, self._recipe.warmup))
            self._batches_done, self._loss_so_far = place + 1, self._loss_so_far + loss * len(batches[place])
            self._save_if_due()
        loss = self._validate(validation)
        self.history.append({"epoch": epoch, "train_loss": self._loss_so_far / len(train), "validation_loss": loss})
        self._batches_done, self._loss_so_far = 0, 0.0
        if loss < self._best_loss:
            self._best_epoch, self._best_loss = epoch, loss
            self._best = {name: tensor.to("cpu", copy=True) for name, tensor in self._state().items()}

    def _step(self, train: Examples, rows: Sequence[int], factor: float) -> float:
        """One step of the optimiser; if memory runs out, once more with less of the batch at a time."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        mine = rows[self._group.rank :: self._group.world_size]
        inputs, answers = train.inputs.take(mine), train.answers[list(mine)].to(self._device)
        costs = [train.inputs.costs[row] for row in mine]
        while (loss := self._gradients(inputs, answers, costs, of=len(rows))) is None:
            if self._at_once <= max(costs):
                raise JobError("An item does not fit into memory while it is trained on.", code="out_of_memory")
            self._at_once = min(self._at_once, max(costs) * len(mine)) // 2
        loss = self._join(loss)
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), _GRADIENT_NORM)
        self._optimizer.step()
        return loss

    def _join(self, loss: float) -> float:
        """Adds up the gradients of all processes, and their losses; statistics of batches become their mean."""
        total = add_up_gradients(self._group, [p for p in self._network.parameters() if p.requires_grad], loss)
        if self._group.world_size > 1:
            statistics = batch_statistics(self._network)
            self._group.all_reduce(statistics)
            for tensor in statistics:
                tensor.div_(self._group.world_size)
        return total

    def _gradients(self, inputs: list[Any], answers: Tensor, costs: Sequence[int], of: int) -> float | None:
        """Of what these inputs bring to the mean loss of a batch `of` so many, which is returned; None if memory ran
        out."""
        self._optimizer.zero_grad()
        total = 0.0
        try:
            for part in plan_batches(costs, max_cost=self._at_once, max_items=len(inputs)):
                loss = self._losses([inputs[i] for i in part], answers[part]).sum() / of
                loss.backward()  # type: ignore[no-untyped-call]  # torch's
                total += float(loss.detach())
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return total

    def _losses(self, inputs: Sequence[Any], answers: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype is torch.bfloat16):
            outputs = self._network["head"](self._encoder.vectors(inputs))
        return self._supervision.losses(outputs, answers)

    def _validate(self, validation: Examples) -> float:
        self._network.eval()
        total = torch.zeros(1, device=self._device)
        mine = range(self._group.rank, len(validation), self._group.world_size)
        costs = [validation.inputs.costs[row] for row in mine]
        with torch.inference_mode():
            for part in plan_batches(costs, max_cost=self._at_once, max_items=self._recipe.batch_size):
                self._progress.check()
                rows = [mine[i] for i in part]
                answers = validation.answers[rows].to(self._device)
                total += self._losses(validation.inputs.take(rows), answers).sum()
            self._group.all_reduce([total])
        return float(total) / len(validation)

    def _save_if_due(self) -> None:
        if self._progress.is_due():
            self._progress.save(RUNNING, self._checkpoint())

    def _state(self) -> dict[str, Tensor]:
        """What training changes: the weights that are trained, and statistics of batch normalisation."""
        frozen = {name for name, parameter in self._network.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in self._network.state_dict().items() if name not in frozen}

    def _checkpoint(self) -> bytes:
        tensors = prefixed("now.", self._state()) | prefixed("best.", self._best)
        for place, values in self._optimizer.state_dict()["state"].items():
            tensors |= prefixed(f"optimizer.{place}.", values)
        best = {"epoch": self._best_epoch, "loss": self._best_loss}
        now = {"batches_done": self._batches_done, "loss_so_far": self._loss_so_far, "history": self.history}
        return pack(tensors, best | now)

    def _restore(self) -> None:
        data = self._progress.restore(RUNNING)
        if data is None:
            return
        tensors, facts = unpack(data)
        self._network.load_state_dict(without_prefix("now.", tensors), strict=False)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": _by_place(tensors)})
        self._best = without_prefix("best.", tensors)
        self._best_epoch, self._best_loss, self.history = facts["epoch"], facts["loss"], facts["history"]
        self._batches_done, self._loss_so_far = facts["batches_done"], facts["loss_so_far"]


def make_optimizer(encoder: nn.Module, head: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; matrices decay, biases and scales do not. `peak` is a group's learning rate after the warm-up."""
    trained = [p for p in encoder.parameters() if p.requires_grad]
    head_rate = max(recipe.learning_rate, HEAD_RATE)
    groups = [
        {"params": [p for p in parameters if (p.ndim > 1) is decays], "peak": peak, "weight_decay": decay}
        for parameters, peak in ((trained, recipe.learning_rate), (list(head.parameters()), head_rate))
        for decays, decay in ((True, recipe.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.learning_rate)


def batch_statistics(network: nn.Module) -> list[Tensor]:
    """What batch normalisation learns of batches, of layers that do: mean and variance, float32."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    return [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var) if tensor is not None]


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """What the learning rate is multiplied by: up from nothing in the warm-up, then evenly down to nothing."""
    rising = math.ceil(warmup * steps)
    return (step + 1) / rising if step < rising else (steps - step) / (steps - rising)


def shuffled_batches(costs: Sequence[int], size: int, rng: np.random.Generator) -> list[list[int]]:
    """Each item once, in a random order of batches in which items cost about the same; none is much smaller."""
    order = rng.permutation(len(costs))
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _SORTED_BATCHES):
        chosen = sorted(order[start : start + size * _SORTED_BATCHES].tolist(), key=lambda i: costs[i])
        batches += [part.tolist() for part in np.array_split(np.array(chosen), math.ceil(len(chosen) / size))]
    return [batches[i] for i in rng.permutation(len(batches))]


def _by_place(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in without_prefix("optimizer.", tensors).items():
        place, key = name.split(".", 1)
        state.setdefault(int(place), {})[key] = tensor
    return state
