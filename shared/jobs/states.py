"""The states of jobs and shards, and which may follow which."""

from enum import StrEnum

from shared.schemas import JobStatus


class ShardState(StrEnum):
    """`blocked → ready → leased → done | failed | cancelled`; a leased shard may fall back to ready."""

    BLOCKED = "blocked"
    READY = "ready"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: States that a shard does not leave (except by `retry` of a job's failed items).
ENDED_SHARDS = frozenset({ShardState.DONE, ShardState.FAILED, ShardState.CANCELLED})

#: States that a job does not leave (except by `retry`).
ENDED_JOBS = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})

JOB_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.PLANNING, JobStatus.RUNNING, JobStatus.CANCELLING, JobStatus.FAILED}),
    JobStatus.PLANNING: frozenset({JobStatus.RUNNING, JobStatus.CANCELLING, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLING}),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset({JobStatus.RUNNING}),
    JobStatus.FAILED: frozenset({JobStatus.RUNNING, JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset(),
}

SHARD_TRANSITIONS: dict[ShardState, frozenset[ShardState]] = {
    ShardState.BLOCKED: frozenset({ShardState.READY, ShardState.CANCELLED}),
    ShardState.READY: frozenset({ShardState.LEASED, ShardState.CANCELLED}),
    ShardState.LEASED: frozenset({ShardState.READY, ShardState.DONE, ShardState.FAILED, ShardState.CANCELLED}),
    ShardState.DONE: frozenset({ShardState.READY, ShardState.BLOCKED}),
    ShardState.FAILED: frozenset({ShardState.READY, ShardState.BLOCKED}),
    ShardState.CANCELLED: frozenset({ShardState.READY, ShardState.BLOCKED}),
}
