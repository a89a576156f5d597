"""Jobs submitted without a pause by a few clients at once; each is followed to its end and compared with a calm run."""

import io
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from services.client.client import Client
from services.client.errors import Conflict, ConnectionFailed, NotFound, RateLimited, ServerFailed, Unavailable
from services.client.retries import Retries
from shared.errors import TriviumError
from shared.queues import Stage
from shared.schemas import Job, JobStatus, JobType
from tests.chaos.kinds import Kind, make_foundation

T = TypeVar("T")

#: Stages that leave something to download.
_WITH_RESULTS = frozenset({Stage.FUSION, Stage.PREDICT})

#: Jobs under way at once.
CLIENTS = 6

#: With nothing in their way, one job of each kind ends within this.
_CALM_SECONDS = 300.0

#: Of the jobs that ended, so many are deleted; before, of those in which items failed, so many try them again.
_DELETED, _RETRIED = 0.3, 0.4


class TimeIsUpError(Exception):
    """What a client waited for did not happen before the end of the run."""


@dataclass(frozen=True)
class Outcome:
    """What a job came to: everything that a caller sees, without ids and times."""

    status: JobStatus
    error_code: str | None
    counts: tuple[int, int, int, int]
    errors: tuple[tuple[str, str | None, str], ...]
    #: sha256 of the weights of each model that it trained.
    models: tuple[str, ...]
    table: pa.Table | None

    def faults(self, expected: "Outcome") -> list[str]:
        """How it differs from the expected one, in words that begin with what that is."""
        found = [
            f"wrong: {name}: {getattr(self, name)} instead of {getattr(expected, name)}"
            for name in ("status", "error_code", "counts", "errors", "models")
            if getattr(self, name) != getattr(expected, name)
        ]
        if self.ids == expected.ids and self.table != expected.table:
            found.append("wrong: the results of some items differ")
        if lost := (expected.ids - self.ids).total():
            found.append(f"lost: {lost} items have no row")
        if doubled := (self.ids - expected.ids).total():
            found.append(f"doubled: {doubled} rows too many")
        return [words[:2000] for words in found]

    @property
    def ids(self) -> Counter[str]:
        """How many rows each item has."""
        return Counter([] if self.table is None else self.table["id"].to_pylist())


@dataclass
class Run:
    """One submission and what became of it. Times are time.monotonic's."""

    kind: Kind
    began: float
    key: str
    job_id: str | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    deleted: bool = False
    retried: bool = False
    problems: list[str] = field(default_factory=list)


class Workload:
    """Submits jobs from `CLIENTS` threads. Every client is patient: it asks again until `deadline`."""

    def __init__(self, clients: dict[str, Client], folder: Path, seed: str):
        self._clients, self._folder, self._seed = clients, folder, seed
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.deadline = float("inf")
        self.expected: dict[str, Outcome] = {}
        #: The ids of what is given to jobs that need it: `features` (a job), `model`.
        self.foundation: dict[str, str] = {}
        self.runs: list[Run] = []
        #: Answers that no outage explains (500 and the like).
        self.strange: list[str] = []
        self._threads: list[threading.Thread] = []

    def lay_foundation(self) -> None:
        """Makes what jobs are given that need it, in calm; it stays. Raises TimeIsUpError."""
        for name, kind in make_foundation().items():
            [run] = self.calm([kind])
            job = self._client(run).jobs.get(run.job_id or "")
            self.foundation[name] = job.models[0] if job.models else job.id

    def calm(self, kinds: Sequence[Kind]) -> list[Run]:
        """Runs each kind once and takes what comes out as what is expected of it. Raises TimeIsUpError."""
        self.deadline = time.monotonic() + _CALM_SECONDS
        with ThreadPoolExecutor(CLIENTS) as pool:
            runs = list(pool.map(lambda kind: self._follow(kind, random.Random(kind.name), calm=True), kinds))
        for run in runs:
            if run.outcome is None:
                raise TimeIsUpError(f"the calm run of {run.kind.name} did not end: {run.problems}")
            self.expected[run.kind.name] = run.outcome
        self.deadline = float("inf")
        return runs

    def start(self, kinds: Sequence[Kind]) -> None:
        """Submits jobs until `stop`."""
        self._threads = [
            threading.Thread(target=self._submit, args=(kinds, number), name=f"client-{number}", daemon=True)
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Submits no more, and gives what runs so many seconds to end."""
        self.deadline = time.monotonic() + seconds
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _submit(self, kinds: Sequence[Kind], number: int) -> None:
        choice = random.Random(f"{self._seed}/client-{number}")
        deck: list[Kind] = []
        while not self._stopping.is_set():
            if not deck:
                deck = choice.sample(list(kinds), len(kinds))
            self._follow(deck.pop(), choice)

    def _follow(self, kind: Kind, choice: random.Random, *, calm: bool = False) -> Run:
        run = Run(kind, time.monotonic(), str(uuid.UUID(int=choice.getrandbits(128))))
        with self._lock:
            self.runs.append(run)
        try:
            job = self._run(run, choice, cancel="cancel" in kind.tags and not calm)
            run.outcome = self._outcome(run, job)
            if not calm:
                self._compare(run)
                if choice.random() < _RETRIED and not run.problems:
                    self._retry(run)
                if choice.random() < _DELETED:
                    self._patiently(lambda: self._delete(run))
        except TimeIsUpError as error:
            run.problems.append(f"stuck: {error}")
        except TriviumError as error:
            run.problems.append(f"refused: {error.error_code}: {error.message}")
        except Exception as error:
            run.problems.append(f"client failed: {type(error).__name__}: {error}")
        run.ended = time.monotonic()
        return run

    def _run(self, run: Run, choice: random.Random, *, cancel: bool) -> Job:
        client, kind = self._client(run), run.kind
        options = {**kind.options, **{name: self.foundation[name] for name in kind.given}}
        if kind.filename:
            options["input"] = {"file_id": self._patiently(lambda: self._upload(client, kind))}
        elif kind.items is not None:
            options["items"] = kind.items
        job = self._patiently(lambda: client.jobs.create(idempotency_key=run.key, **options))
        run.job_id = job.id
        if cancel:
            time.sleep(choice.uniform(0, 4))
            self._patiently(lambda: client.jobs.cancel(job.id))
        return self._wait(client, job)

    def _retry(self, run: Run) -> None:
        """What failed once fails again: the job has to come to the same end."""
        client, id = self._client(run), run.job_id or ""
        try:
            job = self._patiently(lambda: client.jobs.retry(id))
        except Conflict as error:
            if error.error_code not in {"nothing_to_retry", "job_cancelled"}:
                raise
            return
        outcome, earlier = self._outcome(run, self._wait(client, job)), len(run.outcome.models if run.outcome else ())
        # What is trained again is a model beside the first, and the same.
        run.outcome = replace(outcome, models=outcome.models[earlier:] or outcome.models)
        run.retried = True
        self._compare(run)

    def _wait(self, client: Client, job: Job) -> Job:
        while job.status not in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}:
            self._pause(f"{job.id} is {job.status}")
            job = self._patiently(partial(client.jobs.get, job.id))
        return job

    def _upload(self, client: Client, kind: Kind) -> str:
        path = self._folder / f"{kind.name.replace(' ', '-')}-{kind.filename}"
        if not path.exists():
            path.write_bytes(kind.content)
        return client.files.upload(path).id

    def _outcome(self, run: Run, job: Job) -> Outcome:
        client = self._client(run)
        errors = self._patiently(lambda: list(client.jobs.errors(job.id)))
        trained = job.models if job.type == JobType.FINE_TUNE else []
        models = [self._patiently(partial(client.models.get, id)) for id in trained]
        table = None
        if job.status == JobStatus.SUCCEEDED and _WITH_RESULTS & job.stages.keys():
            path = self._folder / f"{run.key}.parquet"
            self._patiently(lambda: client.jobs.results(job.id, path))
            table = pq.read_table(io.BytesIO(path.read_bytes())).replace_schema_metadata(None)
            path.unlink()
        counts = (job.items.total, job.items.succeeded, job.items.partial, job.items.failed)
        code = job.error.code if job.error else None
        found = tuple((e.item_id, e.modality, e.code) for e in errors)
        return Outcome(job.status, code, counts, found, tuple(str(model.revision) for model in models), table)

    def _compare(self, run: Run) -> None:
        assert run.outcome is not None
        if run.outcome.status == JobStatus.CANCELLED and "cancel" in run.kind.tags:
            return
        run.problems += run.outcome.faults(self.expected[run.kind.name])

    def _delete(self, run: Run) -> None:
        run.deleted = True
        with suppress(NotFound):  # an earlier try did it, and its answer was lost
            self._client(run).jobs.delete(run.job_id or "")

    def _client(self, run: Run) -> Client:
        return self._clients[run.kind.tenant]

    def _patiently(self, action: Callable[[], T]) -> T:
        """Repeats what failed because the gateway, or what it stands on, was away."""
        while True:
            try:
                return action()
            except (ConnectionFailed, Unavailable, RateLimited) as error:
                reason = f"{error.error_code}: {error.message}"
            except ServerFailed as error:
                reason = f"{error.status_code} {error.error_code}: {error.message} ({error.request_id})"
                if error.status_code != 507:
                    self.strange.append(reason)
            except Conflict as error:
                if error.error_code != "job_not_finished":
                    raise
                reason = error.message
            self._pause(reason)

    def _pause(self, reason: str) -> None:
        if time.monotonic() > self.deadline:
            raise TimeIsUpError(reason)
        time.sleep(0.3)


def make_client(url: str, key: str | None = None) -> Client:
    """A client that gives up soon: patience is the workload's."""
    return Client(url, key, retries=Retries(limit=1, base=0.2))
