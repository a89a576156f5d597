"""`make chaos`: the embedded stack under attack for some minutes, then the verdict. Exit status 1 if anything is off.

First every kind of job runs once in calm, which says what is expected of it; then, while jobs of all kinds go on
being submitted, workers are killed with nothing else about (recovery times); then all faults at once.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from shared.db import make_engine, make_sessions
from shared.settings import Settings, load_settings
from shared.storage.objects import make_store
from tests.chaos import report, verdict
from tests.chaos.attack import Attack
from tests.chaos.faults import ALONE, LANES, Ground
from tests.chaos.kinds import make_kinds
from tests.chaos.stack import REPLICAS, ChaosStack
from tests.chaos.watch import Watch
from tests.chaos.workload import Workload, make_client

#: The share of the time in which workers are only killed.
_ALONE_SHARE = 0.3
#: What runs when the attack is over gets so long to end.
_SETTLE_SECONDS = 240.0


def main() -> int:
    """Runs as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="how long faults are done (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="a new one unless given")
    parser.add_argument("--only", default="", help="only faults whose name holds this")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="trivium-chaos-"))
    try:
        good = run(folder, arguments.minutes * 60, arguments.seed, arguments.only)
    except BaseException:
        arguments.keep = True
        raise
    finally:
        if arguments.keep:
            print(f"The folder is kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


def run(folder: Path, seconds: float, seed: int, only: str) -> bool:
    """One run in an empty folder; prints the report and says whether all is well."""
    stack = ChaosStack(folder)
    judged = verdict.Verdict()
    try:
        with stack:
            stack.wait_ready()
            stack.wait_workers(REPLICAS)
            figures = _attack(stack, judged, folder, seconds, seed, only)
        verdict.judge_machine(judged, folder, stack.temporary)
    finally:
        stack.release_disk()
    attack, workload, watch, calm, chaos = figures
    print(report.table(attack, workload.runs, watch.recoveries))
    print(report.findings(attack, judged))
    result = report.summary(seed, attack, judged, watch.recoveries, calm, chaos)
    print(report.json_line(result), flush=True)
    return bool(result["ok"])


def _attack(
    stack: ChaosStack, judged: verdict.Verdict, folder: Path, seconds: float, seed: int, only: str
) -> tuple[Attack, Workload, Watch, report.Load, report.Load]:
    """Calm, attack, and everything about it that can be judged while the servers run."""
    settings = _settings(stack)
    db = make_engine(settings.database_url.get_secret_value(), application="chaos")
    sessions = make_sessions(db)
    workload, watch = _workload(stack, folder, seed), Watch(sessions)
    kinds = make_kinds()
    began = time.monotonic()
    workload.calm(kinds)
    calm = report.load_of(workload.runs, began, time.monotonic())
    print(f"calm: {calm.jobs} jobs, {calm.items_per_second} items/s", flush=True)
    watch.start()
    workload.start(kinds)
    attack = Attack(Ground(stack, watch, workload), str(seed))
    began = time.monotonic()
    alone = {name: fault for name, fault in ALONE.items() if only in name}
    share = _ALONE_SHARE if alone else 0.0
    if alone:
        attack.run({"alone": (alone, (0.5, 2.0))}, seconds * share)
    lanes = {
        lane: ({name: f for name, f in faults.items() if only in name}, pause)
        for lane, (faults, pause) in LANES.items()
    }
    attack.run({lane: chosen for lane, chosen in lanes.items() if chosen[0]}, seconds * (1 - share))
    chaos = report.load_of(workload.runs, began, time.monotonic())
    _settle(stack, workload, watch)
    verdict.judge_runs(judged, workload.runs)
    verdict.judge_rows(judged, workload.runs, sessions, watch)
    stack.services.stop()  # so that nothing is written while the bucket is looked at
    verdict.judge_objects(judged, sessions, make_store(settings), settings)
    judged.wrong += [f"strange answer: {words}" for words in workload.strange]
    db.dispose()
    return attack, workload, watch, calm, chaos


def _workload(stack: ChaosStack, folder: Path, seed: int) -> Workload:
    client = make_client(stack.gateway_url)
    other = make_client(stack.gateway_url, client.keys.create(name="chaos", tenant="other").key)
    downloads = folder / "client"
    downloads.mkdir()
    return Workload({"default": client, "other": other}, downloads, str(seed))


def _settle(stack: ChaosStack, workload: Workload, watch: Watch) -> None:
    """Everything is in order again: what runs has to end now."""
    for proxy in stack.proxies.values():
        proxy.heal()
    workload.stop(_SETTLE_SECONDS)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and watch.waiting():
        time.sleep(0.2)
    watch.stop()


def _settings(stack: ChaosStack) -> Settings:
    """Settings that lead past the proxies."""
    for name in [name for name in os.environ if name.startswith("TRIVIUM_")]:
        del os.environ[name]
    os.environ.update(stack.servers.environment)
    os.environ["TRIVIUM_ENCODERS_FILE"] = stack.environment["TRIVIUM_ENCODERS_FILE"]
    return load_settings()


if __name__ == "__main__":
    sys.exit(main())
