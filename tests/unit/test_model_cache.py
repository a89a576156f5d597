"""The models that a worker keeps: loaded once, and at hand while another one is being loaded."""

import threading
from typing import Any

from shared.catalog import EncoderSpec
from shared.ml.encoders.base import Encoder
from shared.ml.encoders.hashing import HashingEncoder
from shared.ml.models import ModelCache


def make(id: str) -> Encoder:
    return HashingEncoder(EncoderSpec(id=id, modality="text", dimension=2, loader="hashing"))


def test_a_loaded_model_is_at_hand_while_another_is_loaded() -> None:
    cache = ModelCache(2**30)
    first = cache.get("first", lambda: make("first"))
    loading, go = threading.Event(), threading.Event()

    def load() -> Encoder:
        loading.set()
        assert go.wait(30)
        return make("second")

    thread = threading.Thread(target=cache.get, args=("second", load))
    thread.start()
    assert loading.wait(30)
    assert cache.get("first", lambda: make("never")) is first
    assert cache.keys() == ["first"]
    go.set()
    thread.join()
    assert cache.keys() == cache.ids() == ["first", "second"]


def test_callers_at_the_same_time_get_one_model() -> None:
    cache = ModelCache(2**30)
    together = threading.Barrier(4)
    loads: list[Any] = []
    found: list[Encoder] = []

    def load() -> Encoder:
        loads.append(None)
        return make("m")

    def get() -> None:
        together.wait(30)
        found.append(cache.get("m", load))

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(encoder) for encoder in found}) == 1


def test_the_least_recently_used_goes_when_there_is_no_room() -> None:
    cache = ModelCache(-1)
    for name in ("a", "b"):
        cache.get(name, lambda name=name: make(name))  # type: ignore[misc]
    assert cache.keys() == ["b"]
