"""Times the training of a classifier against a plain PyTorch loop, on the same features in one process.

    python tests/benchmarks/training.py [items] [epochs] [threads]

The plain loop is what one would write by hand: the same layers, with the same dropout of values and modalities, loss,
optimizer, schedule, gradient clipping and batches, a validation loss after each epoch and a copy of the best weights.
Trivium does that, and besides: heeds missing modalities, leaves no item without any, repeats itself bit by bit, looks
at each batch whether it has to stop, and tells of each epoch.

Prints items per second (best of the rounds, which alternate), the ratios, and the losses that both end with. What is
measured is processor time, which other processes disturb less; with one thread it is the time on an idle machine.
"""

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from services.finetune.candidates import Candidate
from services.finetune.library import Bench
from services.finetune.objectives import Batch, Supervised
from services.finetune.settings import Settings
from shared.ml.device import configure_threads
from shared.ml.repeatable import repeatable
from shared.queues import Modality
from shared.schemas import FusionMethod
from shared.worker.progress import Silence

ROUNDS = 5
CLASSES = 10
DIMENSIONS = {Modality.TEXT: 384, Modality.IMAGE: 1280, Modality.AUDIO: 438}  # of the default encoders
CPU = torch.device("cpu")


class Plain(nn.Module):
    """An embedding of each modality, joined, and a linear head."""

    def __init__(self, settings: Settings):
        super().__init__()
        self.embeddings = nn.ModuleList(
            nn.Sequential(nn.Linear(d, settings.hidden), nn.GELU(), nn.Dropout(settings.dropout))
            for d in DIMENSIONS.values()
        )
        self.modality_dropout = settings.modality_dropout
        self.head = nn.Linear(len(DIMENSIONS) * settings.hidden, CLASSES)

    def forward(self, vectors: list[Tensor]) -> Tensor:
        embedded = [embedding(rows) for embedding, rows in zip(self.embeddings, vectors, strict=True)]
        if self.training:
            kept = (torch.rand(len(embedded), len(embedded[0]), 1) >= self.modality_dropout).float()
            embedded = [rows * keep for rows, keep in zip(embedded, kept, strict=True)]
        output: Tensor = self.head(torch.cat(embedded, dim=1))
        return output


def train_plainly(settings: Settings, train: Batch, validation: Batch) -> float:
    """The lowest validation loss."""
    stats = {m: torch.std_mean(rows, dim=0) for m, rows in train.vectors.items()}
    known, held = ([(part.vectors[m] - mean) / std for m, (std, mean) in stats.items()] for part in (train, validation))
    torch.manual_seed(0)
    model = Plain(settings)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    steps = math.ceil(len(train) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
    lowest, best = math.inf, {}
    for _ in range(settings.epochs):
        model.train()
        for rows in torch.randperm(len(train)).split(settings.batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model([v[rows] for v in known]), train.answers[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            held_out = float(nn.functional.cross_entropy(model(held), validation.answers))
        if held_out < lowest:
            lowest, best = held_out, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert best
    return lowest


def train_here(settings: Settings, train: Batch, validation: Batch) -> float:
    """The same with what a fine_tune job does."""
    candidate = Candidate("concat", FusionMethod.CONCAT, settings)
    objective: Callable[[], Supervised] = lambda: Supervised("cross_entropy")  # noqa: E731
    with repeatable(CPU, len(train) * sum(DIMENSIONS.values())):
        return Bench.of("bench", train, validation, objective, CLASSES, Silence()).fit(candidate).fit.loss


def clouds(count: int, seed: int) -> Batch:
    """Items of ten classes, with noise."""
    rng = np.random.default_rng(seed)
    which = rng.integers(CLASSES, size=count)
    centres = {m: np.random.default_rng(d).normal(size=(CLASSES, d)) for m, d in DIMENSIONS.items()}
    vectors = {
        m: torch.from_numpy((0.2 * centres[m][which] + rng.normal(size=(count, d))).astype(np.float32))
        for m, d in DIMENSIONS.items()
    }
    return Batch(vectors, {m: torch.ones(count, dtype=torch.bool) for m in vectors}, torch.from_numpy(which))


def fresh(batch: Batch) -> Batch:
    """A copy, since what is trained on is standardised in place."""
    return Batch({m: rows.clone() for m, rows in batch.vectors.items()}, batch.mask, batch.answers)


def main(items: int = 1000, epochs: int = 30, threads: int = 1) -> None:
    configure_threads(threads)
    batch = min(max(2 ** round(math.log2(items / 16)), 32), 1024)
    settings = Settings(
        epochs=epochs, batch_size=batch, patience=epochs, dropout=0.5, modality_dropout=0.5, weight_decay=2.0, warmup=0
    )
    train, validation = clouds(items, 0), clouds(items // 5, 1)
    runs = {"plain PyTorch": train_plainly, "trivium": train_here}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            parts = (fresh(train), fresh(validation))
            start = time.process_time()
            losses[name] = run(settings, *parts)
            seconds[name].append(time.process_time() - start)
    for name, times in seconds.items():
        ratio = min(seconds["plain PyTorch"]) / min(times)
        print(
            f"{name:14} {items * epochs / min(times):9.0f} items/s   {ratio:5.2f} x   "
            f"validation loss {losses[name]:.4f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
