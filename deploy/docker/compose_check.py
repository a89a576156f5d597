"""`make compose-check`: the sample job on docker-compose.yml, with a worker killed in the middle, then the other pools.

Builds the images, brings everything up in a project of its own with two workers for images, and takes it down again,
volumes included. COMPOSE_EXTRA names further compose files, as COMPOSE_FILE does; the variables of .env.example hold.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from deploy.docker.write_env import fill_in, write_private
from services.client.client import Client
from services.client.errors import Unavailable
from shared.errors import TriviumError
from shared.language_models import DEFAULT_LANGUAGE_MODEL
from shared.queues import Modality, Stage
from shared.schemas import Job, JobStatus, WorkerEntry

_ROOT = Path(__file__).resolve().parents[2]
_SAMPLE = _ROOT / "deploy" / "sample" / "emoji.tar"
_PROJECT = "trivium-check"
_REPLICAS = 2
#: Small, so that there are many shards for the two workers, and a middle to kill one in.
_SHARD_SIZE = 32
_SHARDS_BEFORE_KILL = 3
_UP_SECONDS = 600
_JOB_SECONDS = 600.0
_ENGINE_SECONDS = 30


class CheckFailedError(Exception):
    """Something is not as it must be."""


class Compose:
    """`docker compose` on the check's own project, with secrets made for it."""

    def __init__(self, folder: Path):
        env_file = folder / "env"
        content, self.api_key = fill_in((_ROOT / ".env.example").read_text(encoding="utf-8"))
        write_private(env_file, content)
        files = ["docker-compose.yml", *filter(None, os.environ.get("COMPOSE_EXTRA", "").split(os.pathsep))]
        self._command = ["docker", "compose", "--project-name", _PROJECT, "--env-file", str(env_file)]
        for file in files:
            self._command += ["--file", file]

    def run(self, *arguments: str) -> str:
        """Standard output of a command. Raises CheckFailedError with what it said, if it fails."""
        return _run([*self._command, *arguments])

    def up(self) -> None:
        """Starts everything and waits until it is healthy."""
        scale = ["--scale", f"image={_REPLICAS}"]
        self.run("up", "--detach", "--wait", "--wait-timeout", str(_UP_SECONDS), *scale)

    def down(self) -> None:
        """Takes everything down, data included."""
        self.run("down", "--volumes", "--remove-orphans", "--timeout", "10")

    def gateway_url(self) -> str:
        """Where the gateway is published."""
        return "http://" + self.run("port", "gateway", "8000").strip()

    def rows(self, query: str) -> list[list[str]]:
        """Rows of the platform's database."""
        output = self.run("exec", "-T", "postgres", "psql", "-U", "trivium", "-tA", "-F", "\t", "-c", query)
        return [line.split("\t") for line in output.splitlines() if line]

    def built(self) -> dict[str, str]:
        """The services that are built here, and their images."""
        services = json.loads(self.run("config", "--format", "json"))["services"]
        return {name: service["image"] for name, service in sorted(services.items()) if "build" in service}

    def image_sizes(self) -> dict[str, int]:
        """Bytes of each image that is built here."""
        sizes = ["docker", "image", "inspect", "--format", "{{.Size}}"]
        return {image: int(_run([*sizes, image])) for image in self.built().values()}

    def last_words(self) -> str:
        """How the containers are, and the ends of the services' logs."""
        return self.run("ps", "--all") + self.run("logs", "--no-color", "--tail", "8", *self.built())


class Report:
    """Prints what is done, and how long it took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step."""
        start = time.monotonic()
        print(f"[{start - self._start:6.1f} s] {name} ...", flush=True)
        yield
        print(f"[{time.monotonic() - self._start:6.1f} s] {name}: {time.monotonic() - start:.1f} s", flush=True)


@dataclass(frozen=True)
class Victim:
    """A worker that was killed, and the shards it held: pairs of stage and index."""

    worker: str
    held: list[tuple[str, int]]
    killed_at: float


def main() -> int:
    """Runs the check; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make compose-check", description=__doc__)
    parser.add_argument("--if-available", action="store_true", help="succeed where no Docker engine answers")
    arguments = parser.parse_args()
    if (problem := _why_no_engine()) is not None:
        print(f"compose-check: not run, no Docker engine with Compose answers here: {problem}")
        return 0 if arguments.if_available else 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        check()
    except (CheckFailedError, TriviumError) as error:
        print(f"compose-check: FAILED: {error}", file=sys.stderr)
        return 1
    print("compose-check: passed")
    return 0


def check() -> None:
    """Everything between up and down. Raises CheckFailedError."""
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRIVIUM_PORT"] = "0"
        compose = Compose(folder)
        with report.step("build the images"):
            compose.run("build", "--quiet")
        try:
            with report.step(f"bring everything up, with {_REPLICAS} image workers"):
                compose.up()
            with Client(compose.gateway_url(), compose.api_key) as client:
                job = run_job(compose, client, report)
                with report.step("download and compare"):
                    features = client.jobs.results(job.id, folder / "features.parquet", format="parquet")
                    compare(job, read_manifest(), features)
                train_and_ask(client, job, report)
        except BaseException:
            print(compose.last_words(), file=sys.stderr)
            raise
        finally:
            with report.step("take everything down"):
                compose.down()
        for image, size in compose.image_sizes().items():
            print(f"{image:20} {size / 1e6:6.0f} MB")


def run_job(compose: Compose, client: Client, report: Report) -> Job:
    """The sample job, with one worker killed. Returns it when it has succeeded."""
    with report.step(f"upload {_SAMPLE.name} and submit the job"):
        file = client.files.upload(_SAMPLE)
        job = client.jobs.create(input={"file_id": file.id}, shard_size=_SHARD_SIZE)
    with report.step(f"wait for {_SHARDS_BEFORE_KILL} image shards, then SIGKILL an image worker that holds some"):
        victim = kill_worker(compose, client, job.id)
        print(f"           killed {victim.worker}, which held {_places(victim.held)}")
    with report.step("wait for the job"):
        job = client.jobs.wait(job.id, timeout=_JOB_SECONDS)
        _expect(job.status is JobStatus.SUCCEEDED, f"the job ended as {job.status.value}: {job.error}")
    expect_recovered(compose, job, victim)
    return job


def kill_worker(compose: Compose, client: Client, job_id: str) -> Victim:
    """Kills a worker of the image pool that holds shards, when some but not all shards are done."""
    deadline = time.monotonic() + _JOB_SECONDS
    while time.monotonic() < deadline:
        progress = client.jobs.get(job_id).stages.get(Stage.IMAGE)
        if progress is None or progress.shards_done < _SHARDS_BEFORE_KILL:
            time.sleep(0.2)
            continue
        _expect(progress.shards_done < progress.shards_total, "all image shards were done before a worker was killed")
        for worker in client.workers.list():
            if worker.pool == Stage.IMAGE:
                _signal(worker, "STOP")  # what it holds now is what it holds when it dies
                if held := shards_of(compose, worker.id):
                    _run(["docker", "kill", "--signal", "KILL", worker.host])
                    return Victim(worker.id, held, time.time())
                _signal(worker, "CONT")
    raise CheckFailedError(f"no image worker held a shard within {_JOB_SECONDS:g} s")


def shards_of(compose: Compose, worker: str) -> list[tuple[str, int]]:
    """Stage and index of the shards that a worker holds."""
    query = f"SELECT stage, index FROM shards WHERE worker = '{worker}' AND state = 'leased' ORDER BY stage, index"
    return [(stage, int(index)) for stage, index in compose.rows(query)]


def expect_recovered(compose: Compose, job: Job, victim: Victim) -> None:
    """Every shard is done, those of the killed worker too, which is heard of no more."""
    query = f"SELECT stage, index, state FROM shards WHERE job_id = '{job.id}'"
    states = {(stage, int(index)): state for stage, index, state in compose.rows(query)}
    unfinished = [place for place, state in states.items() if state != "done"]
    _expect(not unfinished, f"the job succeeded, but these shards are not done: {_places(unfinished)}")
    _expect(set(victim.held) <= states.keys(), f"shards of the killed worker are gone: {_places(victim.held)}")
    finished = job.stages[Stage.IMAGE].finished_at or 0.0
    print(
        f"           all {len(states)} shards are done; the killed worker's within {finished - victim.killed_at:.1f} s"
    )


def read_manifest() -> dict[str, dict[str, Any]]:
    """The sample's items by id."""
    with tarfile.open(_SAMPLE) as archive:
        member = archive.extractfile("manifest.jsonl")
        if member is None:
            raise CheckFailedError(f"{_SAMPLE} holds no manifest.jsonl")
        return {item["id"]: item for item in map(json.loads, member.read().splitlines())}


def compare(job: Job, manifest: dict[str, dict[str, Any]], features: Path) -> None:
    """Every item of the manifest ended once, and each has a vector for each modality it came with."""
    counts = job.items
    ended = counts.succeeded + counts.partial + counts.failed
    _expect(ended == counts.total == len(manifest), f"{ended} of {len(manifest)} items ended; the job counts {counts}")
    table = pq.read_table(features)
    ids = table["id"].to_pylist()
    _expect(len(ids) == len(set(ids)), "an item is in the feature set twice")
    _expect(set(ids) == set(manifest), f"{len(set(manifest) ^ set(ids))} ids differ between manifest and feature set")
    for modality in Modality:
        column = table[f"{modality}_vector"]
        present = {id for id, valid in zip(ids, column.is_valid().to_pylist(), strict=True) if valid}
        expected = {id for id, item in manifest.items() if item.get(modality) is not None}
        _expect(present == expected, f"{len(present ^ expected)} items differ in whether they have a {modality} vector")
        print(f"           {modality:6} {len(present):5} vectors of {column.type.list_size} numbers")
    fused = table["fused"]
    _expect(fused.null_count == 0, f"{fused.null_count} items have no fused vector")
    print(f"           fused  {len(fused):5} vectors of {fused.type.list_size} numbers")


def train_and_ask(client: Client, features: Job, report: Report) -> None:
    """The pools behind fusion: a classifier of the features, and words of the language model in the image."""
    with report.step("train a classifier on the features"):
        job = client.jobs.wait(client.fine_tune(features.id, preset="fast").id, timeout=_JOB_SECONDS)
        _expect(job.status is JobStatus.SUCCEEDED, f"the job ended as {job.status.value}: {job.error}")
        trained = client.models.get(job.models[0]).fine_tuned
        print(f"           accuracy {trained.metrics['test']['accuracy'] if trained else 0:.3f} on test items")
    with report.step(f"ask {DEFAULT_LANGUAGE_MODEL}"):
        said = _answer(client, "The capital of Japan is")
        _expect(bool(said.strip()), "the language model said nothing")
        print(f"           it says {said!r}")


def _answer(client: Client, question: str) -> str:
    """Of the language model, which unpacks its weights first; a question does not wait that long."""
    deadline = time.monotonic() + _JOB_SECONDS
    while True:
        try:
            answer = client.chat.create(
                model=DEFAULT_LANGUAGE_MODEL,
                messages=[{"role": "user", "content": question}],
                max_completion_tokens=8,
                temperature=0,
            )
        except Unavailable as error:
            if error.code != "deadline_exceeded" or time.monotonic() > deadline:
                raise
        else:
            return answer.choices[0].message.content or ""


def _signal(worker: WorkerEntry, name: str) -> None:
    """Sends a signal to a worker's process; its host is its container's id."""
    _run(["docker", "exec", worker.host, "sh", "-c", f"kill -{name} {worker.pid}"])


def _why_no_engine() -> str | None:
    for command in (["docker", "compose", "version"], ["docker", "info", "--format", "{{.ServerVersion}}"]):
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=_ENGINE_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if answer.returncode:
            return answer.stderr.strip() or f"{' '.join(command)} ended with {answer.returncode}"
    return None


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        shown = " ".join(command[:2] + command[-3:])
        raise CheckFailedError(f"{shown} ended with {done.returncode}:\n{done.stderr[-4000:]}{done.stdout[-4000:]}")
    return done.stdout


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckFailedError(otherwise)


def _places(shards: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{stage} shard {index}" for stage, index in shards)


if __name__ == "__main__":
    sys.exit(main())
