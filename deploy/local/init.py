"""A small init process: runs one command so that nothing of it can outlive the stack, as a container's init does.

Run as a script, `python -I -S init.py CONTROL_FD COMMAND...`, with the standard library alone. `CONTROL_FD` is a
socket to the supervisor. The command's process id goes out on it; each byte that comes in is the number of a
signal to send to the command; its end of file means that the supervisor is gone, however it died.

When the command or the supervisor ends, every process the command left behind is killed (orphans are inherited:
PR_SET_CHILD_SUBREAPER), and only then does init exit, with the command's status (128 + n after signal n).
"""

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
EXEC_FAILED = 127


def main() -> int:
    """Runs the command to its end, or to the supervisor's; returns the exit status."""
    control, command = int(sys.argv[1]), sys.argv[2:]
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakeup_read, wakeup_write = os.pipe()
    for fd in (wakeup_read, wakeup_write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    init_pid = os.getpid()
    child = os.fork()
    if child == 0:
        _exec(command, init_pid)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda received, _: os.kill(child, received))
    os.write(control, f"{child}\n".encode())
    status = _serve(child, control, wakeup_read)
    _kill_descendants()
    return 128 - status if status < 0 else status


def _serve(child: int, control: int, wakeup: int) -> int:
    """Relays signals until the command has ended (its status) or the supervisor is gone (-SIGKILL)."""
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(wakeup, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            received = _read(fd)
            if fd == wakeup:
                status = _reap().get(child)
                if status is not None:
                    return status
            elif not received:
                return -signal.SIGKILL
            else:
                for signum in received:
                    os.kill(child, signum)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1024)
    except ConnectionResetError:
        return b""


def _reap() -> dict[int, int]:
    """Collects the children that have ended: exit status (negative after a signal) by process id."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def _kill_descendants(grace: float = 2.0, timeout: float = 30.0) -> None:
    """Waits `grace` seconds for whatever descends from this process to end, then kills until nothing is left.

    What notices by itself that its parent is gone gets to say its last words: a worker's keeper gives up its leases.
    """
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < timeout:
        _reap()
        living = _descendants()
        if not living:
            return
        if elapsed > grace:
            for pid in living:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        time.sleep(0.005)


def _descendants() -> list[int]:
    """The process ids of everything that descends from this process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(os.getpid(), []))
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def _exec(command: list[str], init_pid: int) -> None:
    """In the child: becomes the command, which dies with its init."""
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    os.closerange(3, 1024)  # what init holds for itself: the control socket, the lock of the data folder
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != init_pid:
        os._exit(EXEC_FAILED)
    try:
        os.execvp(command[0], command)  # noqa: S606  # no shell is wanted
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(EXEC_FAILED)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    sys.exit(main())
