"""Lets the faults loose: several lanes of them at once, each drawing from its own shuffled deck."""

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.faults import Fault, Ground

#: By name: what each may do, and the pause between two faults, in seconds.
Lanes = Mapping[str, tuple[Mapping[str, Fault], tuple[float, float]]]


@dataclass(frozen=True)
class Strike:
    """A fault that was done so many times, from when to when (time.monotonic)."""

    kind: str
    times: int
    began: float
    ended: float


@dataclass
class Attack:
    """What was done, and what there was nothing to do it to."""

    ground: Ground
    seed: str
    strikes: list[Strike] = field(default_factory=list)
    idle: Counter[str] = field(default_factory=Counter)
    #: Faults of the suite itself.
    broken: list[str] = field(default_factory=list)

    def run(self, lanes: Lanes, seconds: float, only: str = "") -> None:
        """Runs the lanes for so long, with the faults that have `only` in their names; none, and it is over at once.

        When this returns, every fault has been made good.
        """
        chosen = {
            lane: ({name: fault for name, fault in faults.items() if only in name}, pause)
            for lane, (faults, pause) in lanes.items()
        }
        self.ground.stopping.clear()
        threads = [
            threading.Thread(target=self._lane, args=(name, faults, pause), name=name, daemon=True)
            for name, (faults, pause) in chosen.items()
            if faults
        ]
        for thread in threads:
            thread.start()
        if threads:
            time.sleep(max(seconds, 0.0))
        self.ground.stopping.set()
        for thread in threads:
            thread.join()

    def _lane(self, name: str, faults: Mapping[str, Fault], pause: tuple[float, float]) -> None:
        choice = random.Random(f"{self.seed}/{name}")
        deck: list[str] = []
        while not self.ground.stopping.is_set():
            if not deck:
                deck = choice.sample(list(faults), len(faults))
            kind = deck.pop()
            began = time.monotonic()
            try:
                done = faults[kind](self.ground, choice)
            except Exception:
                self.broken.append(f"{kind}: {traceback.format_exc()}")
                return
            if done:
                self.strikes.append(Strike(kind, int(done), began, time.monotonic()))
            else:
                self.idle[kind] += 1
            self.ground.wait(choice.uniform(*pause))
