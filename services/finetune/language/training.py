"""Training what was put onto a language model: steps, early stopping, and checkpoints from which it goes on exactly.

Several processes may do so together: each takes its share of every step, and after each all have the same weights.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from services.finetune.language.batches import Rows, plan_steps, share_of
from services.finetune.language.dry_run import Prepared
from services.finetune.training import rate_factor
from shared.errors import JobError
from shared.json_numbers import as_json
from shared.language_tuning import Adapter, LanguageTraining
from shared.ml.checkpoints import pack, prefixed, unpack, without_prefix
from shared.ml.encoders.batching import is_out_of_memory, plan_batches
from shared.ml.language.conversations import IGNORED
from shared.ml.language.tuned import TunedLanguageModel
from shared.ml.process_group import ProcessGroup, add_up, add_up_gradients
from shared.ml.repeatable import derived_seed, generator
from shared.worker.progress import Progress

#: Name of the checkpoint.
RUNNING = "language"

#: Usual learning rates; soft prompts need larger ones (Lester et al. 2021).
_RATES = {Adapter.LORA: 2e-4, Adapter.PROMPT: 3e-2, Adapter.P_TUNING: 1e-3, Adapter.PREFIX: 1e-2, Adapter.NONE: 1e-3}


@dataclass(frozen=True)
class Phase:
    """Epochs in which certain things are trained: LLaVA's first, the projectors alone, or all."""

    name: str
    epochs: int
    everything: bool


def phases_of(model: TunedLanguageModel, training: LanguageTraining, train: Prepared) -> list[Phase]:
    """Without an adapter there is nothing but the projectors; without items from which these learn, there is one phase.

    Raises JobError (`nothing_to_train`) if there is neither.
    """
    main = Phase("tuning", training.epochs, everything=model.adapter is not None)
    can_project = len(train.with_media()) > 0
    if model.adapter is None and not can_project:
        message = "Without an adapter only projectors are trained, and no training item has what would enter by one."
        raise JobError(message, code="nothing_to_train", param="training.adapter")
    if model.adapter is None or not can_project or not training.projector_epochs:
        return [main]
    return [Phase("projectors", training.projector_epochs, everything=False), main]


@dataclass
class _State:
    """How far a phase is. `epoch` counts finished ones, `step` those of the epoch that is under way."""

    phase: str
    epoch: int = 0
    step: int = 0
    summed: float = 0.0
    learned: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf


class LanguageTrainer:
    """A tuned model's way through its phases. After `run` it has the weights of its best epoch."""

    def __init__(
        self,
        model: TunedLanguageModel,
        training: LanguageTraining,
        progress: Progress,
        train: Prepared,
        validation: Prepared,
        group: ProcessGroup,
    ):
        self._model, self._training, self._progress, self._group = model, training, progress, group
        self._train, self._validation = train, validation
        self._at_once = model.rows_together(training.max_length, training.batch_size)
        self._parameters = _trained(model)
        self._best: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self.seconds, self.tokens = 0.0, 0

    @property
    def trained_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @property
    def kept(self) -> dict[str, Any]:
        """What the history says of the epoch whose weights are kept."""
        last = [entry for entry in self.history if entry["model"] == self.history[-1]["model"]]
        return min(last, key=lambda entry: float(entry["validation_loss"]))

    def run(self) -> None:
        """Raises what `progress.check` raises, and JobError (`nothing_to_train`, `training_diverged`,
        `out_of_memory`)."""
        restored = self._progress.restore(RUNNING)
        tensors, facts = unpack(restored) if restored is not None else ({}, {})
        phases = phases_of(self._model, self._training, self._train)
        names = [phase.name for phase in phases]
        begin = names.index(facts["state"]["phase"]) if facts else 0
        with self._model.active():
            for phase in phases[begin:]:
                state, optimizer = _State(phase.name), self._optimizer(phase)
                if facts and facts["state"]["phase"] == phase.name:
                    state = self._restore(optimizer, tensors, facts)
                self._run_phase(phase, state, optimizer)
                self._put_back()
        self._model.train(mode=False)

    def _run_phase(self, phase: Phase, state: _State, optimizer: torch.optim.Optimizer) -> None:
        patience = self._training.patience
        while state.epoch < phase.epochs and state.epoch - state.best_epoch < patience:
            self._epoch(phase, state, optimizer)

    def _epoch(self, phase: Phase, state: _State, optimizer: torch.optim.Optimizer) -> None:
        training, number = self._training, state.epoch + 1
        train = self._train if phase.everything else self._train.with_media()
        sizes = train.tokens
        # All that is random follows from the numbers of epoch and step: it can go on in the middle of one.
        rng = generator(training.seed, phase.name, number)
        steps = plan_steps(sizes, training, rng)
        self._model.train()
        for step in range(state.step, len(steps)):
            torch.manual_seed(derived_seed(training.seed, phase.name, number, step, self._group.rank))
            factor = rate_factor(state.epoch * len(steps) + step, phase.epochs * len(steps), training)
            begun, tokens = time.monotonic(), sum(sizes[row] for rows in steps[step] for row in rows)
            share = share_of(steps[step], sizes, training, self._group.rank, self._group.world_size)
            learned = sum(_learned(train, rows) for rows in steps[step])
            loss = self._step(train, share, learned, optimizer, factor)
            seconds = time.monotonic() - begun
            state.summed, state.learned, state.step = state.summed + loss, state.learned + learned, step + 1
            self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
            self._progress.report(
                "batch", model=phase.name, epoch=number, step=step + 1, steps=len(steps), loss=loss / learned,
                tokens_per_second=tokens / max(seconds, 1e-9),
            )  # fmt: skip
            if self._progress.is_due():
                self._save(state, optimizer)
        last = rate_factor(number * len(steps) - 1, phase.epochs * len(steps), training)
        self._end_of_epoch(phase, state, optimizer.param_groups[0]["peak"] * last)

    def _end_of_epoch(self, phase: Phase, state: _State, rate: float) -> None:
        loss = self.validation_loss()
        _require_number(loss)
        state.epoch += 1
        steps = state.step + (self.history[-1]["steps"] if self.history else 0)
        entry = {
            "model": phase.name, "epoch": len(self.history) + 1, "steps": steps,
            "train_loss": state.summed / state.learned, "validation_loss": loss, "learning_rate": rate,
            "tokens_per_second": self.tokens / self.seconds,
        }  # fmt: skip
        self.history.append(entry)
        self._progress.report("epoch", **as_json(entry))
        if loss < state.best_loss:
            state.best_epoch, state.best_loss = state.epoch, loss
            self._best = {name: p.detach().to("cpu", copy=True) for name, p in self._parameters.items()}
        state.step, state.summed, state.learned = 0, 0.0, 0

    def _step(
        self, train: Prepared, passes: Sequence[Rows], learned: int, optimizer: torch.optim.Optimizer, factor: float
    ) -> float:
        """One step of the optimiser, of which this process does these passes: the mean over the tokens that all learn
        in it. Returns the sum."""
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.zero_grad()
        total = 0.0
        for rows in passes:
            for first in range(0, len(rows), self._at_once):
                self._progress.check()
                total += self._backward(train, rows[first : first + self._at_once], learned)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        total = add_up_gradients(self._group, parameters, total)
        _require_number(total)
        nn.utils.clip_grad_norm_(parameters, self._training.gradient_clip)
        optimizer.step()
        return total

    def _backward(self, train: Prepared, rows: Rows, learned: int) -> float:
        try:
            loss = self._loss(train, rows, packed=self._training.packing)
            (loss / learned).backward()  # type: ignore[no-untyped-call]  # torch's
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            message = (
                f"{len(rows)} conversations do not fit into memory together: lower training.batch_size (and raise "
                "training.gradient_accumulation as much) or training.max_length."
            )
            raise JobError(message, code="out_of_memory", param="training.batch_size") from error
        return float(loss.detach())

    def _loss(self, part: Prepared, rows: Rows, *, packed: bool = False) -> Tensor:
        encoded, media = [part.encoded[row] for row in rows], [part.examples[row].media for row in rows]
        batch = self._model.packed(encoded, media) if packed else self._model.batch(encoded, media)
        return self._model.loss(batch)[0]

    def validation_loss(self) -> float:
        """Mean −log p of a token of the answers of validation items."""
        part, total = self._validation, 0.0
        self._model.train(mode=False)
        mine, sizes = range(self._group.rank, len(part), self._group.world_size), part.tokens
        most = self._at_once * self._training.max_length
        with torch.inference_mode():
            for places in plan_batches([sizes[row] for row in mine], max_cost=most, max_items=self._at_once):
                self._progress.check()
                total += float(self._loss(part, [mine[place] for place in places]))
        [total] = add_up(self._group, [total], self._model.base.device)
        return total / _learned(part, range(len(part)))

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """AdamW; `peak` is a group's learning rate after the warm-up. What the phase leaves alone has no gradients."""
        training = self._training
        rates = {"adapter": training.learning_rate or _RATES[training.adapter],
                 "projector": training.projector_learning_rate}  # fmt: skip
        groups = []
        for part, peak in rates.items():
            chosen = [p for name, p in self._parameters.items() if name.startswith(f"{part}.")]
            trained = bool(chosen) and (phase.everything or part == "projector")
            for parameter in chosen:
                parameter.requires_grad_(trained)
            if trained:
                groups.append({"params": chosen, "peak": peak})
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=training.weight_decay)

    def _save(self, state: _State, optimizer: torch.optim.Optimizer) -> None:
        tensors = prefixed("now.", self._parameters) | prefixed("best.", self._best)
        for place, values in optimizer.state_dict()["state"].items():
            tensors |= prefixed(f"optimizer.{place}.", values)
        facts = {"state": vars(state), "history": self.history, "seconds": self.seconds, "tokens": self.tokens}
        self._progress.save(RUNNING, pack({name: t.detach() for name, t in tensors.items()}, facts))

    def _restore(self, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> _State:
        self._put(without_prefix("now.", tensors))
        self._best = without_prefix("best.", tensors)
        places: dict[int, dict[str, Tensor]] = {}
        for name, tensor in without_prefix("optimizer.", tensors).items():
            place, key = name.split(".", 1)
            places.setdefault(int(place), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": places})
        self.seconds, self.tokens = facts["seconds"], facts["tokens"]
        self.history = [{"steps": 0, **entry} for entry in facts["history"]]  # earlier releases did not count them
        return _State(**facts["state"])

    def _put_back(self) -> None:
        """The weights of the phase's best epoch."""
        self._put(self._best)

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._parameters[name].copy_(tensor)


def _trained(model: TunedLanguageModel) -> dict[str, nn.Parameter]:
    """All that can be trained, by name."""
    adapter = {} if model.adapter is None else {f"adapter.{n}": p for n, p in model.adapter.parameters()}
    return adapter | {f"projector.{name}": p for name, p in model.projectors.named_parameters()}


def _require_number(loss: float) -> None:
    if not math.isfinite(loss):
        message = "Training led nowhere: the loss is no number. Lower training.learning_rate."
        raise JobError(message, code="training_diverged", param="training.learning_rate")


def _learned(part: Prepared, rows: Sequence[int]) -> int:
    return sum(label != IGNORED for row in rows for label in part.encoded[row].labels)
