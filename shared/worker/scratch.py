"""The worker's folder for temporary files: gone when it leaves, or, should it be killed, when the next one starts."""

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "trivium-worker-"


def use_scratch_folder() -> Path:
    """Makes `tempfile` use a folder of this process, and removes those that killed workers left behind.

    Whose folder is whose is said by a lock, which ends with its process, however that ends.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_if_left(left)
    folder = _make()
    tempfile.tempdir = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _make() -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)  # stays open, and locked, as long as the process lives
        if folder.exists():  # another worker, starting now, may have come before the lock
            return folder


def _remove_if_left(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # removed by another, or another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return  # its worker lives
    finally:
        os.close(descriptor)
