"""Leases without a keeper: for shard loops inside a test."""

from shared.jobs.records import Lease
from shared.worker.control import Control


class Unkept:
    """In the place of `HeldLeases`: knows what is held, and renews nothing."""

    def __init__(self) -> None:
        self.leases: dict[int, Lease] = {}

    def add(self, lease: Lease) -> Control:
        """Takes a lease."""
        self.leases[lease.shard_id] = lease
        return Control(lease.shard_id)

    def remove(self, lease: Lease) -> None:
        """The shard has ended."""
        self.leases.pop(lease.shard_id, None)

    def refresh(self) -> None:
        """Nobody is told."""

    def drain(self, *, now: bool) -> None:
        """Nobody is told."""

    def close(self) -> None:
        """Nothing to end."""
