"""A service with crash points: `python -m tests.chaos.points services.image` runs it, ready to die at a named moment.

A point is armed by a file of its name in the folder CHAOS_POINTS; the process that comes by takes the file and dies as
by SIGKILL. The hooks are wrapped around the service's functions from here: production code knows nothing of them.
CHAOS_MODEL_SECONDS lets a batch of the hashing encoders take so long, as a model would, CHAOS_EPOCH_SECONDS an epoch of
training: load without a load.
"""

import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Where a service may be told to die, and which services pass there.
WORKERS = ("text", "image", "audio", "fusion", "finetune")
SERVICES = (*WORKERS, "dispatcher", "gateway")
POINTS: dict[str, tuple[str, ...]] = {
    "before object": SERVICES,
    "after object, before row": SERVICES,
    "after claim": (*WORKERS, "dispatcher"),
    "before start": (*WORKERS, "dispatcher"),
    "before commit": (*WORKERS, "dispatcher"),
    "after commit, before hint": (*WORKERS, "dispatcher"),
    "after hint": (*WORKERS, "dispatcher"),
    "before commit of a job": ("gateway",),
    "after commit of a job": ("gateway",),
    "before commit of a checkpoint": ("finetune",),
    "after commit of a checkpoint": ("finetune",),
    "before commit of a model": ("text", "finetune"),
    "in a rescue": ("dispatcher",),
}

#: Training checkpoints so often, in seconds: a kill in the middle finds one.
_CHECKPOINT_SECONDS = 0.3


def points_of(service: str) -> list[str]:
    """The points that a service passes."""
    return [point for point, services in POINTS.items() if service in services]


def file_of(folder: Path, point: str, service: str) -> Path:
    """The file that arms a point in a service (`image`)."""
    return folder / f"{service}.{point.replace(' ', '-').replace(',', '')}"


def pass_by(point: str) -> None:
    """Dies here, if the point is armed."""
    try:
        file_of(Path(os.environ["CHAOS_POINTS"]), point, _service()).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def hook(owner: Any, name: str, *, before: str | None = None, after: str | None = None) -> None:
    """Puts points before and after a function."""
    original: Callable[..., Any] = getattr(owner, name)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        if before:
            pass_by(before)
        result = original(*args, **kwargs)
        if after:
            pass_by(after)
        return result

    setattr(owner, name, hooked)


def hook_everything(service: str) -> None:
    """All the points of a service."""
    from shared.jobs import engine
    from shared.storage.objects import ObjectStore

    hook(ObjectStore, "put", before="before object", after="after object, before row")
    hook(ObjectStore, "put_stream", before="before object", after="after object, before row")
    if service == "gateway":
        from services.gateway import submission
        from shared.jobs import repository

        hook(repository, "create", after="before commit of a job")
        hook(submission, "_insert", after="after commit of a job")
        return
    from shared.worker import leases, loop, progress

    hook(leases.HeldLeases, "add", before="after claim")
    hook(engine, "start", before="before start")
    hook(engine, "finish", after="before commit")
    hook(engine, "checkpoint", after="before commit of a checkpoint")
    hook(progress.JobProgress, "_discard", before="after commit of a checkpoint")
    hook(engine, "register_model", after="before commit of a model")
    hook(engine, "reclaim_expired", after="in a rescue")
    hook(loop, "finish_plan", after="before commit")
    hook(loop, "send_hints", before="after commit, before hint", after="after hint")


def slow_down(seconds: float) -> None:
    """A batch takes up to twice `seconds` longer."""
    from shared.ml.encoders.hashing import HashingEncoder

    encode = HashingEncoder.encode

    def slowly(self: Any, batch: Any) -> Any:
        time.sleep(random.uniform(0, 2 * seconds))
        return encode(self, batch)

    HashingEncoder.encode = slowly  # type: ignore[method-assign]


def slow_down_training(seconds: float) -> None:
    """An epoch takes `seconds` longer."""
    from services.finetune import training

    epoch = training.Trainer._epoch

    def slowly(self: Any, *batches: Any) -> None:
        time.sleep(seconds)
        epoch(self, *batches)

    training.Trainer._epoch = slowly  # type: ignore[method-assign]
    os.environ["TRIVIUM_CHECKPOINT_SECONDS"] = str(_CHECKPOINT_SECONDS)  # settings are read after this


def _service() -> str:
    return os.environ["CHAOS_SERVICE"]


def main() -> None:
    """Runs the service with what follows its name as its arguments."""
    module, *arguments = sys.argv[1:]
    os.environ["CHAOS_SERVICE"] = module.rpartition(".")[2]
    hook_everything(_service())
    if _service() in {"text", "image", "audio"}:
        slow_down(float(os.environ.get("CHAOS_MODEL_SECONDS", "0")))
    if _service() == "finetune":
        slow_down_training(float(os.environ.get("CHAOS_EPOCH_SECONDS", "0")))
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
