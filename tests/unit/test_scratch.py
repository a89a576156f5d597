"""Temporary files of workers: removed when a worker leaves, and by the next one when it was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, tempfile
from shared.worker.scratch import use_scratch_folder
use_scratch_folder()
file = tempfile.NamedTemporaryFile(delete=False)
print(file.name, flush=True)
sys.stdin.read()
"""


def start(folder: Path, root: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process with a temporary file, and the file."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def leave(process: "subprocess.Popen[str]") -> None:
    """Ends it in good order."""
    process.communicate("")


def test_what_a_killed_worker_left_goes_with_the_next(tmp_path: Path, root: Path) -> None:
    """A living worker's files stay, a dead one's go, and those who leave clean up."""
    living, kept = start(tmp_path, root)
    killed, left = start(tmp_path, root)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert left.exists()
    following, _ = start(tmp_path, root)
    assert kept.exists()
    assert not left.parent.exists()
    leave(following)
    leave(living)
    assert list(tmp_path.iterdir()) == []
