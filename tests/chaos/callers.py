"""Callers who wait: `POST /v1/predictions` again and again. Each call must end in time, with an answer or an excuse."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from services.gateway.auth import PATIENCE_SECONDS
from tests.chaos.content import data_uri, picture, sentence

#: What a caller gives a prediction, and how much longer it may take: to look up a key, on a machine that is busy.
DEADLINE_SECONDS, GRACE_SECONDS = 4.0, PATIENCE_SECONDS + 2.0

#: Documented answers that are none: too many wait, a server is away, nobody answered in time.
EXCUSES = frozenset({429, 503, 504})

#: Other batches, other rounding.
_TOLERANCE = 1e-5

_BODIES = 6


@dataclass(frozen=True)
class Said:
    """What a caller is told of its items."""

    classes: list[list[str] | None]
    probabilities: list[float]
    errors: list[list[tuple[str | None, str]]]

    def agrees(self, other: "Said") -> bool:
        """Whether it is the same, but for rounding."""
        return (self.classes, self.errors) == (other.classes, other.errors) and np.allclose(
            self.probabilities, other.probabilities, rtol=0, atol=_TOLERANCE
        )


class Callers:
    """Threads that ask a model, each with its own connections: one without a key, one with."""

    def __init__(self, url: str, model: str, key: str, seed: str):
        self._url, self._seed = url, seed
        self._headers: tuple[dict[str, str], ...] = ({}, {"Authorization": f"Bearer {key}"})
        self._bodies = [_body(model, number) for number in range(_BODIES)]
        self._expected: list[Said] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        #: How calls ended: `answered`, `refused`, `cut off` (the gateway died).
        self.ended: Counter[str] = Counter()
        #: Calls that did not end in time, and answers that were wrong or nowhere documented.
        self.hanging: list[str] = []
        self.wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._call, args=(number,), name=f"caller-{number}", daemon=True)
            for number in range(len(self._headers))
        ]

    def calm(self) -> None:
        """Takes what is answered now for what is right. Raises httpx.HTTPStatusError."""
        with httpx.Client(base_url=self._url, timeout=90.0) as http:
            for body in self._bodies:
                answer = http.post("/v1/predictions", json={**body, "timeout_seconds": 60.0}).raise_for_status()
                self._expected.append(_said(answer.json()))

    def start(self) -> None:
        """Asks until `stop`."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Asks no more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        choice = random.Random(f"{self._seed}/caller-{number}")
        with httpx.Client(
            base_url=self._url, headers=self._headers[number], timeout=DEADLINE_SECONDS + GRACE_SECONDS
        ) as http:
            while not self._stopping.wait(choice.uniform(0.2, 0.6)):
                self._ask(http, choice.randrange(_BODIES))

    def _ask(self, http: httpx.Client, which: int) -> None:
        began = time.monotonic()
        try:
            answer = http.post("/v1/predictions", json=self._bodies[which])
        except httpx.TimeoutException as error:
            self._note("hanging", f"no answer after {time.monotonic() - began:.1f} s ({type(error).__name__})")
        except httpx.TransportError:
            self._note("cut off")
        else:
            self._judge(answer, which)

    def _judge(self, answer: httpx.Response, which: int) -> None:
        if answer.status_code in EXCUSES:
            self._note("refused")
        elif answer.status_code != httpx.codes.OK:
            self._note("wrong", f"prediction: {answer.status_code} {answer.text[:300]}")
        elif not _said(answer.json()).agrees(self._expected[which]):
            self._note("wrong", f"prediction: {answer.text[:1000]} instead of {self._expected[which]}")
        else:
            self._note("answered")

    def _note(self, how: str, words: str = "") -> None:
        with self._lock:
            self.ended[how] += 1
            if how == "hanging":
                self.hanging.append(f"prediction: {words}")
            elif how == "wrong":
                self.wrong.append(words)


def _body(model: str, number: int) -> dict[str, Any]:
    """One to three items; of every second request the last picture is broken."""
    generator = np.random.default_rng([7, number])
    items = [
        {"id": f"item-{i}", "text": sentence(generator), "image": data_uri("image/png", picture(generator, 12))}
        for i in range(1 + number % 3)
    ]
    if number % 2:
        items[-1]["image"] = data_uri("image/png", b"\x89PNG broken")
    return {"model": model, "items": items, "timeout_seconds": DEADLINE_SECONDS}


def _said(answer: dict[str, Any]) -> Said:
    entries = answer["data"]
    return Said(
        [entry["prediction"] for entry in entries],
        [entry["probability"] or 0.0 for entry in entries],
        [sorted((error["modality"], error["code"]) for error in entry["errors"]) for entry in entries],
    )
