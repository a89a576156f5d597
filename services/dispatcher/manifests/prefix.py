"""S3 prefixes: a manifest and media that lie in a bucket already."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from minio.error import S3Error

from services.dispatcher.manifests.members import Member, MemberIndex, member_name, role_of
from services.dispatcher.manifests.reading import Reading
from shared.errors import JobError, NotFoundError, UnavailableError
from shared.items import MediaLocation

#: Small objects read at the same time.
READERS = 8


def index_prefix(reading: Reading, bucket: str, folder: str) -> MemberIndex:
    """The objects under a folder, by their names within it. Nothing outside can be found in the index.

    Raises JobError: `prefix_not_found`, `prefix_not_readable`, `archive_too_large`.
    """
    index = MemberIndex(None if bucket == reading.store.bucket else bucket)
    count = 0
    try:
        for count, found in enumerate(reading.store.list(folder, bucket=bucket), 1):
            reading.check_members(count)
            name = found.key.removeprefix(folder)
            if name and not name.endswith("/") and ".." not in name.split("/"):
                name = member_name(name.lstrip("/"))
                location = MediaLocation(key=found.key, size=found.bytes, ref=name)
                index.add(Member(name, role_of(name), location))
    except NotFoundError:
        raise JobError(f"There is no bucket {bucket!r}.", code="prefix_not_found") from None
    except UnavailableError as error:
        if isinstance(error.__cause__, S3Error) and error.__cause__.code == "AccessDenied":
            message = f"The platform may not read s3://{bucket}/{folder}."
            raise JobError(message, code="prefix_not_readable") from error
        raise
    if count == 0:
        raise JobError(f"There is nothing under s3://{bucket}/{folder}.", code="prefix_not_found")
    return index


def read_texts(reading: Reading, index: MemberIndex, bucket: str) -> None:
    """Adds to the index what the small textual objects say, for when there is no manifest to say it."""
    small = (m for m in index.textual() if (m.location.size or 0) <= reading.limits.text_bytes)
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as threads:
        for batch in _batches(small):
            reading.check()
            contents = threads.map(lambda m: reading.store.get(m.location.key or "", bucket=bucket), batch)
            for member, content in zip(batch, contents, strict=True):
                index.keep(member.name, content)


def _batches(members: Iterator[Member]) -> Iterator[list[Member]]:
    while batch := list(islice(members, READERS * 4)):
        yield batch
