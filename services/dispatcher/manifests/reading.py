"""What every reader of a manifest is given."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from shared.errors import JobError
from shared.settings import Limits
from shared.storage.objects import ObjectStore


@dataclass(frozen=True)
class Reading:
    """One attempt at reading a job's manifest. `check` is called now and then, and stops the work by raising."""

    store: ObjectStore
    limits: Limits
    job_id: str
    token: UUID
    check: Callable[[], None] = lambda: None

    def check_members(self, count: int) -> None:
        """Call once a member. Raises JobError (`archive_too_large`) above the limit."""
        if count % 256 == 0:
            self.check()
        if count > self.limits.archive_members:
            raise JobError(
                f"The archive has more than {self.limits.archive_members} members.", code="archive_too_large"
            )

    def check_unpacked(self, unpacked: int, packed: int) -> None:
        """Call as bytes are unpacked. Raises JobError (`archive_too_large`) above the limits on size and ratio."""
        if unpacked > self.limits.archive_bytes:
            message = f"Unpacked, the archive has more than {self.limits.archive_bytes} bytes."
            raise JobError(message, code="archive_too_large")
        if unpacked > max(packed * self.limits.archive_ratio, RATIO_MATTERS_BYTES):
            message = f"The archive unpacks to more than {self.limits.archive_ratio:g} times its size."
            raise JobError(message, code="archive_too_large")


#: A small archive may be packed as tightly as it likes.
RATIO_MATTERS_BYTES = 16 * 1024**2


def corrupt(detail: object) -> JobError:
    """The error of an archive or file that cannot be read to its end."""
    return JobError(f"The manifest file is damaged: {detail}.", code="corrupt_archive")
