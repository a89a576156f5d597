"""Free TCP ports on this machine."""

import random
import socket

from deploy.local.process import StartError

# Below the range from which systems pick ports for outgoing connections (32768 and up on Linux): a port of ours
# must still be free when a server comes back after a crash.
_LOWEST, _HIGHEST = 10_000, 22_000


def free_port(offsets: tuple[int, ...] = (0,)) -> int:
    """A random port p such that p + offset is free for each of `offsets` (all below 10,768)."""
    for _ in range(200):
        port = random.randint(_LOWEST, _HIGHEST)
        if all(is_free(port + offset) for offset in offsets):
            return port
    raise StartError("no free TCP ports were found")


def is_free(port: int) -> bool:
    """Whether nothing listens on the port, on any address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
