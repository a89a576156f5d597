"""A rolling upgrade from the release before, its real code, while jobs of all kinds go on being submitted.

Everything is old, on the old schema; then migrations run; the gateway and the dispatcher are replaced, new workers come
up beside the old ones, and these leave one after the other by SIGTERM.
"""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select

from deploy.local.servers import Servers
from shared.db import Sessions, make_engine, make_sessions
from shared.jobs.models import Event, Shard
from shared.settings import load_settings
from shared.storage.objects import make_store
from shared.testing import oracle
from shared.testing.jobs import wait_for
from tests.chaos import workload as chaos_workload
from tests.chaos.kinds import Kind, make_kinds
from tests.chaos.verdict import Verdict, judge_objects
from tests.chaos.workload import Workload, make_client
from tests.e2e.fleet import Fleet

#: The last commit before shards had protocols; its schema is the first one.
OLD = "064053ce34602813beeec36b79cecfc0fc640743"

POOLS = ("text", "image", "audio", "fusion")


@pytest.fixture(scope="module")
def old_tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the release before."""
    git = ["git", "-C", str(root)]
    if subprocess.run([*git, "cat-file", "-e", f"{OLD}^{{commit}}"], capture_output=True, check=False).returncode:
        pytest.skip(f"this clone lacks the commit {OLD[:12]}, of which the release before is made: it is shallow")
    archive = subprocess.run(
        [*git, "archive", OLD, "services", "shared", "tests/chaos"], capture_output=True, check=True
    )
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """No services yet, on empty servers."""
    with Servers(tmp_path / "servers", durable=False) as servers:
        running = Fleet(servers, tmp_path)
        yield running
        running.stop_all()


@pytest.fixture
def sessions(fleet: Fleet) -> Iterator[Sessions]:
    """Sessions on the fleet's database."""
    engine = make_engine(fleet.environment["TRIVIUM_DATABASE_URL"])
    yield make_sessions(engine)
    engine.dispose()


def kinds() -> list[Kind]:
    """Jobs that pass through every stage: planned by the gateway or the dispatcher, fitted, cancelled, bad items."""
    chosen = {"inline mixed 0", "inline planned later 0", "tar 0", "word2vec 0", "cancelled 0"}
    return [replace(kind, tenant="default") for kind in make_kinds() if kind.name in chosen]


@pytest.mark.timeout(600)  # on a crowded machine a dozen processes take their time to start
def test_a_rolling_upgrade_loses_nothing_and_repeats_little(
    fleet: Fleet, sessions: Sessions, old_tree: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fleet.environment.items():
        monkeypatch.setenv(name, value)
    fleet.migrate(old_tree)
    old = {service: fleet.start(service, old_tree, "old") for service in ("gateway", "dispatcher", *POOLS)}
    fleet.processes[old["gateway"]].wait_ready(60)
    fleet.wait_registered(sessions, *(old[pool] for pool in POOLS))
    (tmp_path / "downloads").mkdir()
    with make_client(fleet.url) as client:
        workload = Workload({"default": client}, tmp_path / "downloads", "upgrade")
        workload.calm(kinds())
        monkeypatch.setattr(chaos_workload, "CLIENTS", 2)
        workload.start(kinds())
        roll(fleet, sessions, old, old_tree, root)
        workload.stop(60)
    problems = [f"{run.kind.name} ({run.job_id}): {words}" for run in workload.runs for words in run.problems]
    assert problems == workload.strange == []
    assert len(workload.runs) > 2 * len(kinds())
    assert oracle.unended(sessions) == oracle.wrong_counters(sessions) == []
    fleet.stop_all()
    judged = Verdict()
    judge_objects(judged, sessions, make_store(load_settings()), load_settings())
    assert (judged.lost, judged.left_behind) == ([], [])
    with sessions() as session:
        repeated = session.scalars(select(Event.data).where(Event.type.in_(["shard.retried", "shard.rescued"]))).all()
        again = session.scalar(select(func.count()).select_from(Shard).where(Shard.attempts > 1))
        done = session.scalar(select(func.count()).select_from(Shard).where(Shard.state == "done"))
    print(f"{len(workload.runs)} jobs, {done} shards, {fleet.handed_back()} handed back, {len(repeated)} repeated")
    assert (repeated, again) == ([], 0)


def roll(fleet: Fleet, sessions: Sessions, old: dict[str, str], old_tree: Path, new_tree: Path) -> None:
    """The upgrade itself, in the order of the README."""
    fleet.migrate(new_tree)
    with sessions() as session:
        migrated = session.scalar(select(func.clock_timestamp()))
    new = {service: fleet.start(service, new_tree, "new") for service in ("dispatcher", *POOLS)}
    fleet.stop(old["gateway"])
    new["gateway"] = fleet.start("gateway", new_tree, "new")
    # An old worker that starts on the new schema, as after a crash.
    assert fleet.stop(old["fusion"]) == 0
    old["fusion"] = fleet.start("fusion", old_tree, "old-again")
    fleet.processes[new["gateway"]].wait_ready(60)
    ids = {fleet.wait_registered(sessions, side[pool])[side[pool]] for side in (old, new) for pool in POOLS}

    def both_at_work() -> bool:
        with sessions() as session:
            query = select(Shard.worker).where(Shard.state == "done", Shard.finished_at > migrated)
            return ids <= set(session.scalars(query.distinct()))

    wait_for(both_at_work, what="shards done by each worker of either release")
    for service in ("dispatcher", *POOLS):
        assert fleet.stop(old[service]) == 0
