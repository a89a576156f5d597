"""CoOp: context vectors, learned before the names of classes in the text tower of a dual encoder, which stays as it is.

Zhou et al., "Learning to prompt for vision-language models" (IJCV 2022).
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.finetune.modelling import Run, Trained
from services.finetune.objectives import make_batch
from services.finetune.prompting.dual import judged, similarity_config, similarity_state
from services.finetune.settings import Settings
from services.finetune.training import Fit
from shared.errors import ItemError, JobError
from shared.language_tuning import ContextTraining, PromptRequest
from shared.ml.checkpoints import pack, unpack
from shared.ml.encoders.transformers_text import TransformersTextEncoder
from shared.ml.multimodal import MultimodalModel
from shared.ml.repeatable import derived_seed
from shared.prompts import PromptTemplate

#: Names of the checkpoint and of the file with the learned vectors.
RUNNING, CONTEXT = "context", "context.safetensors"

#: Deviation of the vectors at first, if no words are given (Zhou et al. 2022).
_DEVIATION = 0.02


_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Learned:
    """A classifier, its class vectors [classes, d], and the context that made them as a file."""

    trained: Trained
    vectors: NDArray[np.float32]
    files: dict[str, bytes]


class PromptedTower(nn.Module):
    """A frozen text tower and what is learned: `context` [m, width], read before each class's name."""

    def __init__(self, encoder: TransformersTextEncoder, names: Sequence[str], options: ContextTraining):
        """Parameters are drawn by torch's global generator."""
        super().__init__()
        self._encoder = encoder
        self._words: nn.Module = encoder.token_embedding
        for parameter in encoder.module.parameters():
            parameter.requires_grad_(False)
        self.context = nn.Parameter(self._start(options))
        self._ids = [encoder.with_room(_ids_of(encoder, name), len(self.context)) for name in names]

    def _start(self, options: ContextTraining) -> Tensor:
        weight: Tensor = self._words.weight  # type: ignore[assignment]  # of an embedding
        if options.words is None:
            return torch.randn(options.length, weight.shape[1], device=weight.device) * _DEVIATION
        ids = torch.from_numpy(_ids_of(self._encoder, options.words)[1:-1]).to(weight.device).long()
        return weight[ids].detach().clone()

    def forward(self) -> Tensor:
        """The class vectors, [classes, d], of length 1."""
        with self._in_place():
            return functional.normalize(self._encoder.vectors(self._ids), dim=1)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Within it the tokens after the first one are embedded as the context, whatever they are."""

        def replaced(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            context = self.context.to(output.dtype).expand(len(output), -1, -1)
            return torch.cat([output[:, :1], context, output[:, 1 + len(self.context) :]], dim=1)

        hook = self._words.register_forward_hook(replaced)
        try:
            yield
        finally:
            hook.remove()


def _ids_of(encoder: TransformersTextEncoder, words: str) -> NDArray[np.int32]:
    try:
        return encoder.preprocess(words)
    except ItemError as error:
        message = f"{words!r} cannot be read by {encoder.spec.id}: {error.message}"
        raise JobError(message, code="unsuitable_class", param="prompt.verbalizers") from error


def learn_context(run: Run, request: PromptRequest, template: PromptTemplate, encoder: Any) -> Learned:
    """Learns from the training items and keeps what was best on validation items; goes on from a checkpoint.

    Raises JobError (`training_diverged`, `unsuitable_encoder`, `too_many_classes`), and what stops the run.
    """
    if len(run.problem.classes) > _MOST_CLASSES:
        message = f"A context is learned for {_MOST_CLASSES} classes at most: in each step all their names are read."
        raise JobError(message, code="too_many_classes", param="how")
    if not isinstance(encoder, TransformersTextEncoder):
        raise JobError("Context can be learned in text towers of transformers.", code="unsuitable_encoder")
    seed = run.request.training.seed
    torch.manual_seed(derived_seed(seed, "context"))
    names = [template.words_for(label)[0] for label in run.problem.classes]
    tower = PromptedTower(encoder, names, request.context)
    fit = _Learner(run, tower, request).run()
    with torch.no_grad():
        tower.context.copy_(fit.state["context"])
        vectors = tower()
    config = similarity_config(run.data.dimensions, len(names))
    state = similarity_state(config, vectors.cpu(), request.scale)
    settings = Settings(
        epochs=request.context.epochs, batch_size=request.context.batch_size, hidden=0, dropout=0.0,
        learning_rate=request.context.learning_rate, patience=request.context.patience,
    )  # fmt: skip
    trained = judged("context", run, config, Fit(state, fit.loss, fit.epoch, fit.history, fit.seconds), settings)
    files = {CONTEXT: safetensors.torch.save({"context": fit.state["context"].contiguous()})}
    return Learned(trained, vectors.cpu().numpy(), files)


class _Learner:
    """A context's way through its epochs: SGD with momentum and a cosine schedule, as in the paper."""

    def __init__(self, run: Run, tower: PromptedTower, request: PromptRequest):
        self._run, self._tower, self._options, self._scale = run, tower, request.context, request.scale
        self._optimizer = torch.optim.SGD([tower.context], lr=request.context.learning_rate, momentum=0.9)
        config = similarity_config(run.data.dimensions, 1)
        fuse = MultimodalModel(config).to(run.outside.device).fuse
        self._items, self._answers = {}, {}
        for part, rows in (("train", run.parts.train), ("validation", run.parts.validation)):
            batch = make_batch(run.data, rows, run.problem.answers, run.outside.device)
            with torch.inference_mode():
                fused = fuse(batch.vectors, batch.mask)
            self._items[part], self._answers[part] = fused.clone(), batch.answers
        self._best, self._best_epoch, self._best_loss = tower.context.detach().clone(), 0, math.inf
        self._history: list[dict[str, float]] = []
        self._seconds = 0.0

    def run(self) -> Fit:
        """Trains to the end."""
        progress = self._run.outside.progress
        self._restore()
        while not self._is_finished():
            begun = time.monotonic()
            self._epoch()
            self._seconds += time.monotonic() - begun
            progress.report("epoch", model=RUNNING, **self._history[-1])
            if progress.is_due():
                progress.save(RUNNING, self._checkpoint())
        if not math.isfinite(self._best_loss):
            message = "The loss became infinite: lower context.learning_rate."
            raise JobError(message, code="training_diverged", param="context.learning_rate")
        return Fit({"context": self._best.cpu()}, self._best_loss, self._best_epoch, self._history, self._seconds)

    def _is_finished(self) -> bool:
        done = len(self._history)
        failed = done > 0 and not math.isfinite(self._history[-1]["validation_loss"])
        return failed or done >= self._options.epochs or done - self._best_epoch >= self._options.patience

    def _epoch(self) -> None:
        epoch = len(self._history) + 1
        # All that is random in an epoch follows from its number, so that it can be repeated without those before.
        torch.manual_seed(derived_seed(self._run.request.training.seed, "context", epoch))
        count = len(self._answers["train"])
        rate = self._options.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / self._options.epochs))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        order = torch.randperm(count).to(self._run.outside.device)
        for rows in order.tensor_split(-(-count // self._options.batch_size)):  # no small one at the end
            self._run.outside.progress.check()
            self._optimizer.zero_grad()
            loss = self._loss("train", rows)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            self._optimizer.step()
            total += float(loss.detach()) * len(rows)
        with torch.no_grad():
            judged = float(self._loss("validation"))
        self._history.append(
            {"epoch": epoch, "train_loss": total / count, "validation_loss": judged, "learning_rate": rate}
        )
        if judged < self._best_loss:
            self._best, self._best_epoch, self._best_loss = self._tower.context.detach().clone(), epoch, judged

    def _loss(self, part: str, rows: Tensor | slice = slice(None)) -> Tensor:
        vectors: Tensor = self._tower()
        logits = self._scale * self._items[part][rows] @ vectors.repeat(1, len(self._run.data.dimensions)).T
        return functional.cross_entropy(logits, self._answers[part][rows])

    def _checkpoint(self) -> bytes:
        momentum = self._optimizer.state[self._tower.context].get("momentum_buffer")
        tensors = {"context": self._tower.context.detach(), "best": self._best}
        if momentum is not None:
            tensors["momentum"] = momentum
        facts = {"epoch": self._best_epoch, "loss": self._best_loss, "history": self._history, "seconds": self._seconds}
        return pack(tensors, facts)

    def _restore(self) -> None:
        data = self._run.outside.progress.restore(RUNNING)
        if data is None:
            return
        tensors, facts = unpack(data)
        context = self._tower.context
        with torch.no_grad():
            context.copy_(tensors["context"])
        if "momentum" in tensors:
            self._optimizer.state[context]["momentum_buffer"] = tensors["momentum"].to(context.device)
        self._best = tensors["best"].to(context.device)
        self._best_epoch, self._best_loss = facts["epoch"], facts["loss"]
        self._history, self._seconds = facts["history"], facts["seconds"]
