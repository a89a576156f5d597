"""The processes of a training, as a test sees them from outside."""

import json
from pathlib import Path


def ranks_of(worker: int) -> list[int]:
    """The ids of the processes that train together for a worker, the first first; none if it trains alone."""
    children = Path(f"/proc/{worker}/task").glob("*/children")
    found: dict[int, int] = {}
    for pid in (int(word) for file in children for word in file.read_text().split()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"shared.ml.rank" in command:
            found[json.loads(command[3])["rank"]] = pid
    return [found[rank] for rank in sorted(found)]


def is_alive(pid: int) -> bool:
    """Whether it runs; what has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
