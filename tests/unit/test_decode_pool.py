"""The decode processes: results, errors, crashes, endless loops and memory, each costing only its own item."""

import ctypes
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import ItemError
from shared.testing.jobs import wait_for
from shared.worker.decode import DecodePool, DecoderUnavailableError, serve


def decode(data: bytes, options: dict[str, Any]) -> np.ndarray:
    """Does what its input says; runs in the child."""
    match data:
        case b"crash":
            ctypes.string_at(0)
        case b"exit":
            os._exit(3)
        case b"loop":
            while True:
                pass
        case b"memory":
            np.ones(1 << 30)
        case b"bug":
            raise RuntimeError("surprise")
        case b"bad":
            raise ItemError("no good", code="corrupt_media")
        case b"nonsense" | b"shape" | b"flood":
            lies = {b"nonsense": b"[]\n", b"shape": b'{"bytes": 0, "dtype": "<f4", "shape": [7]}\n'}
            os.write(_answers(), lies.get(data, b'{"bytes": 1000000000000}\n'))
        case b"print":
            print("noise on standard output", flush=True)
    return np.frombuffer(data, np.uint8).reshape(1, -1) * np.float32(options.get("factor", 1))


def _answers() -> int:
    """The pipe on which the child answers, as code that took it over would find it."""
    pipes = {int(fd.name): fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.exists() or fd.is_symlink()}
    return min(fd for fd, target in pipes.items() if fd > 2 and str(target).startswith("pipe:"))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodePool]:
    """Two processes, half a second and 256 MiB an item."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{Path(__file__).parent}")
    running = DecodePool("test_decode_pool:decode", processes=2, seconds=0.5, memory_bytes=256 * 1024**2)
    yield running
    running.close()


def test_arrays_come_back_as_they_were(pool: DecodePool) -> None:
    """Shape, dtype and values; also of an empty one."""
    result = pool.submit(b"abc", {"factor": 2}).result()
    np.testing.assert_array_equal(result, np.array([[194, 196, 198]], np.float32))
    assert result.dtype == np.float32
    assert pool.submit(b"", {}).result().shape == (1, 0)
    assert pool.submit(b"print", {}).result().shape == (1, 5)


def test_what_is_urgent_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before what waits already; among themselves, in the order in which they came."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{Path(__file__).parent}")
    pool = DecodePool("test_decode_pool:decode", processes=1, seconds=1, memory_bytes=256 * 1024**2)
    done: list[str] = []

    def submit(name: str, data: bytes, *, urgent: bool) -> Future[Any]:
        future = pool.submit(data, {}, urgent=urgent)
        future.add_done_callback(lambda _: done.append(name))
        return future

    running = [submit("first", b"loop", urgent=False)]
    wait_for(running[0].running, what="the beginning of the first")
    running += [submit(f"usual {i}", b"x", urgent=False) for i in range(2)]
    running += [submit(f"urgent {i}", b"x", urgent=True) for i in range(2)]
    wait(running)
    pool.close()
    assert done == ["first", "urgent 0", "urgent 1", "usual 0", "usual 1"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"crash", "decode_crashed"),
        (b"exit", "decode_crashed"),
        (b"loop", "decode_timeout"),
        (b"memory", "media_too_large"),
        (b"bug", "corrupt_media"),
        (b"bad", "corrupt_media"),
        (b"nonsense", "decode_crashed"),
        (b"shape", "decode_crashed"),
        (b"flood", "decode_crashed"),
    ],
)
def test_a_bad_item_fails_alone(pool: DecodePool, data: bytes, code: str) -> None:
    """Whatever an item does to its process, the others get their arrays."""
    futures = [pool.submit(content, {}) for content in (b"one", data, b"two", data, b"three")]
    for future, content in zip(futures, (b"one", data, b"two", data, b"three"), strict=True):
        if content == data:
            with pytest.raises(ItemError) as caught:
                future.result()
            assert caught.value.error_code == code
        else:
            assert bytes(future.result().astype(np.uint8)) == content


def test_the_alarm_is_off_between_items() -> None:
    """Whatever became of an item, a child that waits for the next one is not ended by the last one's time limit."""
    for data in (b"good", b"bad", b"bug"):
        request = json.dumps({"bytes": len(data), "seconds": 1, "options": {}}).encode() + b"\n" + data
        serve(decode, io.BytesIO(request), io.BytesIO())
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_decoder_that_does_not_start_is_no_items_fault() -> None:
    """The future has an error, but none of the item's."""
    pool = DecodePool("no_such_module:decode", processes=1, seconds=1, memory_bytes=256 * 1024**2)
    with pytest.raises(DecoderUnavailableError):
        pool.submit(b"x", {}).result()
    pool.close()


def test_close_leaves_no_process(pool: DecodePool) -> None:
    """The children end with the pool."""
    pool.submit(b"x", {}).result()
    pool.close()
    children = [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"test_decode_pool:decode" in _read(p)]
    deadline = time.monotonic() + 5
    while any(b"test_decode_pool:decode" in _read(p) for p in children) and time.monotonic() < deadline:
        pass
    assert not any(b"test_decode_pool:decode" in _read(p) for p in children)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
