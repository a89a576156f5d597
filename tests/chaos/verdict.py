"""After the attack: what was lost, doubled, stuck or wrong, and what was left behind."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from services.dispatcher.steps import deletion
from services.dispatcher.steps.context import SweepContext
from services.dispatcher.steps.orphans import PAGE, OrphanSearch
from shared.db import Sessions
from shared.jobs.models import Job, Shard
from shared.jobs.states import ShardState
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing import oracle
from tests.chaos.callers import Callers
from tests.chaos.stack import processes_in
from tests.chaos.watch import Watch
from tests.chaos.workload import Run

#: Files that mean that something was not finished. Postgres has names of its own.
_UNFINISHED = re.compile(r"\.(unfinished|part|tmp)$")


@dataclass
class Verdict:
    """Findings, in words, by what they are."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    #: Objects that no row named before the dispatcher's search for orphans; no fault.
    orphans: int = 0

    @property
    def good(self) -> bool:
        """Nothing was found."""
        return not (self.lost or self.doubled or self.stuck or self.wrong or self.left_behind)


def judge_runs(verdict: Verdict, runs: Iterable[Run]) -> None:
    """What the clients saw, and what `judge_rows` found out about their jobs."""
    for run in runs:
        for problem in run.problems:
            kind = problem.partition(":")[0]
            lists = {"lost": verdict.lost, "doubled": verdict.doubled, "stuck": verdict.stuck}
            lists.get(kind, verdict.wrong).append(f"{run.kind.name} ({run.job_id}): {problem}")


def judge_callers(verdict: Verdict, callers: Callers) -> None:
    """What those were told who waited for predictions."""
    verdict.stuck += callers.hanging
    verdict.wrong += callers.wrong
    if not callers.ended["answered"]:
        verdict.wrong.append("no prediction was answered")


def judge_rows(verdict: Verdict, runs: list[Run], sessions: Sessions, watch: Watch) -> None:
    """What Postgres says: accepted jobs are there, once; everything has ended; counters are right."""
    verdict.stuck += oracle.unended(sessions)
    verdict.wrong += oracle.wrong_counters(sessions)
    verdict.wrong += [f"a zombie wrote {key}" for key in watch.zombie_writes()]
    with sessions() as session:
        jobs = {row[0]: row[1] for row in session.execute(select(Job.id, Job.idempotency_key))}
        failed = session.scalars(select(Shard).where(Shard.state == ShardState.FAILED)).all()
    verdict.wrong += [f"{s.job_id} {s.stage} {s.index} failed: {s.error_code}: {s.error_message}" for s in failed]
    known = {run.job_id for run in runs}
    keys = {run.key for run in runs if run.job_id is None}
    for run in runs:
        if run.job_id and run.job_id not in jobs and not run.deleted:
            run.problems.append("lost: it was accepted and is not there")
    verdict.doubled += [
        f"{id} was never answered for" for id, key in jobs.items() if id not in known and key not in keys
    ]


def judge_objects(verdict: Verdict, sessions: Sessions, store: ObjectStore, settings: Settings) -> None:
    """What the bucket says, after a search for orphans: what rows name is there, and nothing else is."""
    context = SweepContext(
        settings.model_copy(update={"engine": settings.engine.model_copy(update={"orphan_seconds": 0.0})}),
        sessions,
        store,
        lambda queues: None,
    )
    now = datetime.now(UTC) + timedelta(minutes=1)
    while deletion.delete_jobs(context, now):
        pass
    verdict.orphans = len(oracle.unnamed_objects(sessions, store))
    search = OrphanSearch()
    for _ in range(sum(1 for _ in store.list("")) // PAGE + 10):  # a page at a time, the last of each folder not full
        search(context, now)
    verdict.left_behind += [f"object {key}" for key in oracle.unnamed_objects(sessions, store)]
    verdict.lost += oracle.missing_objects(sessions, store)


def judge_machine(verdict: Verdict, folder: Path, temporary: Path) -> None:
    """What the machine says, once everything is stopped: no process, no temporary file."""
    verdict.left_behind += [f"process {p.pid}: {' '.join(p.cmdline())[:200]}" for p in processes_in(folder)]
    verdict.left_behind += [f"temporary file {path}" for path in temporary.rglob("*")]
    for path in (folder / "data").rglob("*"):
        if _UNFINISHED.search(path.name) and "postgres" not in path.relative_to(folder).parts:
            verdict.left_behind.append(f"unfinished file {path}")
