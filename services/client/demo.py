"""`trivium demo`: the sample dataset through the whole platform, and what a person would want to see of the result."""

import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deploy
import numpy as np
from deploy.local.stack import Stack
from rich.console import Console

from services.client import report
from services.client.client import Client
from services.client.explore import FUSED, FeatureSpace, Score, majority_share, read_features, score
from services.client.picture import draw
from services.client.watching import watch
from shared.queues import Modality
from shared.schemas import Job, JobStatus

SAMPLE = Path(deploy.__file__).parent / "sample" / "emoji.tar"
#: A picture says most about the label and a voice least; on the validation split this is as good as any.
WEIGHTS = {Modality.TEXT: 1.0, Modality.IMAGE: 2.0, Modality.AUDIO: 0.5}


@dataclass(frozen=True)
class Sample:
    """The sample dataset as the demo needs it: its items, and the encoded pictures by item id."""

    items: list[dict[str, Any]]
    pictures: dict[str, bytes]

    def count(self, modality: Modality) -> int:
        """How many items have a modality."""
        return sum(modality.value in item for item in self.items)


@dataclass
class Times:
    """How long each step took, in seconds, in order."""

    steps: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Measures one step."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.steps[step] = time.monotonic() - begin


@dataclass(frozen=True)
class Outcome:
    """What the demo found out."""

    job: Job
    space: FeatureSpace
    scores: dict[str, Score]
    majority: float
    problems: list[str]


def run_demo(*, data_dir: Path | None, output_dir: Path, keep: bool, as_json: bool) -> int:
    """Runs the demo and returns the exit status: 1 if anything is off.

    The Parquet file and the picture go to `output_dir`; the stack's data to `data_dir`, or to a temporary folder that
    is removed. With `as_json`, people's output goes to stderr and one line of figures to stdout.
    """
    console = Console(stderr=as_json, highlight=False)
    times = Times()
    folder = Path(tempfile.mkdtemp(prefix="trivium-demo-")) if data_dir is None else data_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        outcome = _with_stack(folder, output_dir, keep, console, times)
    finally:
        if data_dir is None:
            shutil.rmtree(folder, ignore_errors=True)
    report.conclude(console, times.steps, outcome.problems)
    if as_json:
        print(json.dumps(_figures(outcome, times)))
    return 1 if outcome.problems else 0


def _with_stack(folder: Path, output_dir: Path, keep: bool, console: Console, times: Times) -> Outcome:
    console.print(f"Starting Postgres, Redis, S3, the gateway, the dispatcher and four worker pools in {folder} …")
    stack = Stack(folder)
    try:
        with times.of("start"):
            stack.start()
            stack.wait_ready()
        console.print(f"The gateway answers at {stack.gateway_url}.\n")
        outcome = _run(Client(stack.gateway_url), output_dir, console, times)
        if keep:
            _wait_for_interrupt(stack.gateway_url, console)
    finally:
        with times.of("stop"):
            stack.stop()
    return outcome


def _run(client: Client, output_dir: Path, console: Console, times: Times) -> Outcome:
    sample = read_sample()
    console.print(f"Submitting {SAMPLE.name}: {len(sample.items):,} items.")
    with client:
        with times.of("job"):
            fusion = {"method": "weighted", "weights": {m.value: weight for m, weight in WEIGHTS.items()}}
            job = watch(client, client.features(SAMPLE, fusion=fusion).id, console)
        if job.status is not JobStatus.SUCCEEDED:
            raise _failed(job)
        with times.of("download"):
            features = client.jobs.results(job.id, output_dir / "features.parquet")
    with times.of("look"):
        outcome = _look(job, sample, features)
        report.present(console, job, outcome.space, outcome.scores, outcome.majority)
    with times.of("picture"):
        picture = output_dir / "feature-space.png"
        title = f"{len(sample.items):,} emoji by their fused text, image and audio features (t-SNE)"
        draw(outcome.space, sample.pictures, picture, title)
    console.print(f"The features: [bold]{features}[/]\nA picture of them: [bold]{picture}[/]\n")
    return outcome
