"""Leases without a keeper process: for shard loops whose shards end sooner than their leases."""

from shared.jobs.records import Lease
from shared.worker.control import Control


class HeldLeases:
    """In the place of `shared.worker.leases.HeldLeases`: remembers what is held, and renews nothing."""

    def __init__(self) -> None:
        self.leases: dict[int, Lease] = {}

    def add(self, lease: Lease) -> Control:
        """Takes a lease into care."""
        self.leases[lease.shard_id] = lease
        return Control(lease.shard_id)

    def remove(self, lease: Lease) -> None:
        """The shard has ended or was handed back."""
        self.leases.pop(lease.shard_id, None)

    def refresh(self) -> None:
        """Nobody is told."""

    def leave(self) -> None:
        """Nobody is told."""
