"""The report: a table of the faults, what was found, and one JSON line at the end."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.chaos.attack import Attack, Strike
from tests.chaos.callers import Callers
from tests.chaos.faults import ALONE
from tests.chaos.verdict import Verdict
from tests.chaos.watch import Recovery
from tests.chaos.workload import Run

#: Work of a dead worker can be claimed by another after this many seconds.
RECOVERY_LIMIT = 35.0


@dataclass(frozen=True)
class Load:
    """What was worked off in some time."""

    jobs: int
    items: int
    seconds: float

    @property
    def jobs_per_second(self) -> float:
        """Jobs a second."""
        return round(self.jobs / self.seconds, 2)

    @property
    def items_per_second(self) -> float:
        """Items a second."""
        return round(self.items / self.seconds, 1)


def load_of(runs: Sequence[Run], began: float, ended: float) -> Load:
    """Of the jobs that ended between two moments."""
    done = [run for run in runs if run.ended is not None and run.outcome is not None and began <= run.ended <= ended]
    return Load(len(done), sum(run.outcome.counts[0] for run in done if run.outcome), ended - began)


def table(attack: Attack, runs: Sequence[Run], recoveries: Sequence[Recovery]) -> str:
    """A line a kind of fault: how often, how many jobs ran meanwhile, and how many of those went wrong, and how."""
    kinds = sorted({strike.kind for strike in attack.strikes} | set(attack.idle))
    heads = f"{'times':>6}{'idle':>6}{'jobs hit':>10}{'lost':>6}{'doubled':>9}{'stuck':>7}{'wrong':>7}"
    lines = [f"{'fault':42}{heads}  recovery s"]
    for kind in kinds:
        strikes = [strike for strike in attack.strikes if strike.kind == kind]
        hit = [run for run in runs if any(_met(run, strike) for strike in strikes)]
        counts = [sum(_has(run, word) for run in hit) for word in ("lost", "doubled", "stuck", "wrong")]
        seconds = [r.seconds for r in recoveries if r.kind == kind and r.seconds is not None]
        times = f"median {median(seconds):.1f}, max {max(seconds):.1f} (n={len(seconds)})" if seconds else ""
        lines.append(
            f"{kind:42}{sum(strike.times for strike in strikes):6}{attack.idle[kind]:6}{len(hit):10}"
            f"{counts[0]:6}{counts[1]:9}{counts[2]:7}{counts[3]:7}  {times}"
        )
    return "\n".join(lines)


def summary(attack: Attack, verdict: Verdict, recoveries: Sequence[Recovery]) -> dict[str, object]:
    """The figures of the JSON line; `ok` decides about the exit status."""
    killed_alone = [r for r in recoveries if r.alone]
    alone = [r.seconds for r in killed_alone if r.seconds is not None]
    mixed = [r.seconds for r in recoveries if not r.alone and r.seconds is not None]
    free = [r.free for r in killed_alone if r.free is not None]
    # A run with kills in which nothing had to recover has not shown that it can.
    killed = any(strike.kind in ALONE for strike in attack.strikes)
    late = (killed and not killed_alone) or any(r.seconds is None or r.seconds > RECOVERY_LIMIT for r in killed_alone)
    return {
        "ok": verdict.good and not late and not attack.broken,
        "faults": sum(strike.times for strike in attack.strikes),
        "lost": len(verdict.lost),
        "doubled": len(verdict.doubled),
        "stuck": len(verdict.stuck),
        "wrong": len(verdict.wrong),
        "left_behind": len(verdict.left_behind),
        "orphans_removed": verdict.orphans,
        "recoveries": len(alone),
        "recovery_s_median": round(median(alone), 1) if alone else None,
        "recovery_s_max": round(max(alone), 1) if alone else None,
        "free_again_s_max": round(max(free), 1) if free else None,
        "recovery_amid_faults_s_median": round(median(mixed), 1) if mixed else None,
        "recovery_amid_faults_s_max": round(max(mixed), 1) if mixed else None,
        "trainings_killed_midway": sum(r.held.midway for r in recoveries),
    }


def load(calm: Load, chaos: Load, callers: Callers) -> dict[str, object]:
    """The figures of the JSON line that say what was worked off, and how callers fared who wait."""
    return {
        "jobs": chaos.jobs,
        "calm_items_per_s": calm.items_per_second,
        "chaos_items_per_s": chaos.items_per_second,
        "calm_jobs_per_s": calm.jobs_per_second,
        "chaos_jobs_per_s": chaos.jobs_per_second,
        "predictions": callers.ended["answered"],
        "predictions_refused": callers.ended["refused"],
        "predictions_cut_off": callers.ended["cut off"],
    }


def findings(attack: Attack, verdict: Verdict, recoveries: Sequence[Recovery], most: int = 20) -> str:
    """Everything that was found, some of each."""
    slow = [
        f"shard {r.held.shard_id} after {r.kind}: free after {r.free} s, in other hands after {r.seconds} s"
        for r in recoveries
        if r.alone and (r.seconds is None or r.seconds > RECOVERY_LIMIT)
    ]
    lists = {
        "LOST": verdict.lost, "DOUBLED": verdict.doubled, "STUCK": verdict.stuck, "WRONG": verdict.wrong,
        "LEFT BEHIND": verdict.left_behind, "SLOW": slow, "BROKEN FAULTS": attack.broken,
    }  # fmt: skip
    return "\n".join(f"{name} {words}" for name, found in lists.items() for words in found[:most])


def json_line(figures: dict[str, object]) -> str:
    """One line of JSON."""
    return json.dumps(figures)


def _met(run: Run, strike: Strike) -> bool:
    return run.began <= strike.ended and (run.ended is None or run.ended >= strike.began)


def _has(run: Run, word: str) -> bool:
    return any(problem.startswith(word) for problem in run.problems)
