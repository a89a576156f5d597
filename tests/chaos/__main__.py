"""`make chaos`: the embedded stack under attack for some minutes, then the verdict. Exit status 1 if anything is off.

First every kind of job runs once in calm, which says what is expected of it; then, while jobs of all kinds go on
being submitted and callers ask for predictions, workers are killed with nothing else about (recovery times); then
processes of every service die at each named point; then all faults at once.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from shared.db import Sessions, make_engine, make_sessions
from shared.settings import Settings, load_settings
from shared.storage.objects import make_store
from tests.chaos import report, verdict
from tests.chaos.attack import Attack
from tests.chaos.callers import Callers
from tests.chaos.faults import ALONE, CRASHES, LANES, Ground
from tests.chaos.kinds import make_kinds
from tests.chaos.stack import ChaosStack
from tests.chaos.watch import Watch
from tests.chaos.workload import Workload, make_client

#: The shares of the time in which workers are only killed, and in which crash points are gone through.
_ALONE_SHARE, _POINTS_SHARE = 0.25, 0.3
#: Shards of dead workers whose jobs are over by then are looked at for so long.
_LAST_LOOK_SECONDS = 60.0


@dataclass
class Course:
    """One run in the making: what takes part in it, and what it came to."""

    stack: ChaosStack
    settings: Settings
    sessions: Sessions
    workload: Workload
    watch: Watch
    attack: Attack
    judged: verdict.Verdict
    callers: Callers
    calm: report.Load | None = None
    chaos: report.Load | None = None


def main() -> int:
    """Runs as the command line says; returns the exit status."""
    arguments = _parse_arguments()
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="trivium-chaos-"))
    try:
        good = run(folder, arguments)
    except BaseException:
        arguments.keep = True
        raise
    finally:
        if arguments.keep:
            print(f"The folder is kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


def run(folder: Path, arguments: argparse.Namespace) -> bool:
    """One run in an empty folder; prints the report and says whether all is well."""
    began = time.monotonic()
    stack = ChaosStack(folder)
    try:
        with stack:
            stack.wait_ready()
            stack.wait_all_workers()
            course = _prepare(stack, folder, arguments.seed)
            _keep_calm(course)
            seconds = arguments.minutes * 60
            _attack(course, max(began + seconds - time.monotonic(), seconds / 2), arguments.only)
            _settle(course, arguments.settle)
            _judge(course)
        verdict.judge_machine(course.judged, folder, stack.temporary)
    finally:
        stack.release_disks(folder / "logs")
    assert course.calm is not None
    assert course.chaos is not None
    recoveries = course.watch.recoveries
    print(report.table(course.attack, course.workload.runs, recoveries))
    print(report.findings(course.attack, course.judged, recoveries))
    figures = {
        **report.summary(course.attack, course.judged, recoveries),
        **report.load(course.calm, course.chaos, course.callers),
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began),
    }
    print(report.json_line(figures), flush=True)
    return bool(figures["ok"])


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.0,
        help="from the start to the end of the faults, which get at least half of it (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="a new one unless given")
    parser.add_argument("--only", default="", help="only faults whose name holds this")
    parser.add_argument("--settle", type=float, default=240.0, help="seconds that jobs get to end then (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    return parser.parse_args()


def _prepare(stack: ChaosStack, folder: Path, seed: int) -> Course:
    settings = _settings(stack)
    sessions = make_sessions(make_engine(settings.database_url.get_secret_value(), application="chaos"))
    workload, watch = _workload(stack, folder, seed), Watch(sessions)
    attack = Attack(Ground(stack, watch, workload), str(seed))
    workload.lay_foundation()
    key = make_client(stack.gateway_url).keys.create(name="callers").key
    callers = Callers(stack.gateway_url, workload.foundation["model"], key, str(seed))
    return Course(stack, settings, sessions, workload, watch, attack, verdict.Verdict(), callers)


def _keep_calm(course: Course) -> None:
    """Every kind of job once, and every prediction."""
    course.callers.calm()
    began = time.monotonic()
    course.workload.calm(make_kinds())
    course.calm = report.load_of(course.workload.runs, began, time.monotonic())
    print(f"calm: {course.calm.jobs} jobs, {course.calm.items_per_second} items/s", flush=True)


def _attack(course: Course, seconds: float, only: str) -> None:
    """Kills alone, crash points, then everything at once, while jobs are submitted."""
    began = time.monotonic()
    course.watch.start()
    course.workload.start(make_kinds())
    course.callers.start()
    course.attack.run({"alone": (ALONE, (0.5, 2.0))}, seconds * _ALONE_SHARE, only)
    course.attack.run(CRASHES, seconds * _POINTS_SHARE, only)
    course.attack.run(LANES, began + seconds - time.monotonic(), only)
    course.chaos = report.load_of(course.workload.runs, began, time.monotonic())


def _settle(course: Course, seconds: float) -> None:
    """Everything is in order again: what runs has to end now."""
    for proxy in course.stack.proxies.values():
        proxy.heal()
    course.callers.stop()
    course.workload.stop(seconds)
    course.stack.wait_all_workers()  # those that start just now would be stopped before they can clean up
    deadline = time.monotonic() + _LAST_LOOK_SECONDS
    while time.monotonic() < deadline and course.watch.waiting():
        time.sleep(0.2)
    course.watch.stop()


def _judge(course: Course) -> None:
    """Everything that can be judged while the servers run."""
    judged, runs = course.judged, course.workload.runs
    verdict.judge_rows(judged, runs, course.sessions, course.watch)
    verdict.judge_runs(judged, runs)
    verdict.judge_callers(judged, course.callers)
    course.stack.services.stop()  # so that nothing is written while the bucket is looked at
    verdict.judge_objects(judged, course.sessions, make_store(course.settings), course.settings)
    judged.wrong += [f"strange answer: {words}" for words in course.workload.strange]


def _workload(stack: ChaosStack, folder: Path, seed: int) -> Workload:
    client = make_client(stack.gateway_url)
    other = make_client(stack.gateway_url, client.keys.create(name="chaos", tenant="other").key)
    downloads = folder / "client"
    downloads.mkdir()
    return Workload({"default": client, "other": other}, downloads, str(seed))


def _settings(stack: ChaosStack) -> Settings:
    """Settings that lead past the proxies."""
    for name in [name for name in os.environ if name.startswith("TRIVIUM_")]:
        del os.environ[name]
    os.environ.update(stack.servers.environment)
    os.environ["TRIVIUM_ENCODERS_FILE"] = stack.environment["TRIVIUM_ENCODERS_FILE"]
    return load_settings()


if __name__ == "__main__":
    sys.exit(main())
