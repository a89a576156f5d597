"""The members of an archive or prefix: where each is, and which belong to one item."""

import re
import sqlite3
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath

from shared.errors import JobError
from shared.items import MediaLocation
from shared.queues import Modality

MANIFEST = "manifest.jsonl"

#: What a member is to its item, by extension; WebDataset's, and what media are usually called.
FIELDS = "json"
LABEL = "cls"
ROLES: dict[str, str] = {
    ".txt": Modality.TEXT,
    ".json": FIELDS,
    ".cls": LABEL,
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"), Modality.IMAGE),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a"), Modality.AUDIO),
}

#: Roles whose content is needed while planning.
TEXTUAL = frozenset({Modality.TEXT, FIELDS, LABEL})


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive or prefix; `content` is kept of small textual ones."""

    name: str
    role: str | None
    location: MediaLocation
    content: bytes | None = None


_CONTROL = re.compile(r"[\x01-\x1f\x7f-\x9f\u2028\u2029]")


def member_name(name: str) -> str:
    """The name by which a member is found: relative, without `.` parts and control characters (macOS has `Icon\\r`), in
    Unicode's composed form (NFC).

    Raises JobError (`unsafe_archive`) for absolute names, those that lead out of the archive, and NUL.
    """
    name = _CONTROL.sub("", name)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\x00" in name or name[1:3] == ":/":
        raise JobError(f"The archive has a member that leads out of it: {name[:200]!r}.", code="unsafe_archive")
    return unicodedata.normalize("NFC", str(path))


def role_of(name: str) -> str | None:
    """What a member is to its item; None for those that are not media, hidden ones (`.x`, `__MACOSX/`) included."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts) or path.parts[:1] == ("__MACOSX",):
        return None
    return ROLES.get(path.suffix.lower())


class MemberIndex:
    """Members by name and by stem, in a temporary database on disk that vanishes with it."""

    def __init__(self, bucket: str | None = None) -> None:
        self._bucket = bucket
        self._folder = ""
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript("""
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32768;
            CREATE TABLE members (
                position INTEGER PRIMARY KEY, name TEXT UNIQUE, stem TEXT, role TEXT,
                key TEXT, start INTEGER, size INTEGER, sha256 TEXT, content BLOB
            );
            BEGIN;
        """)

    def add(self, member: Member) -> None:
        """Adds a member; a later one of the same name replaces the earlier, as when an archive is unpacked."""
        at = member.location
        stem = str(PurePosixPath(member.name).with_suffix("")) if member.role else None
        row = (member.name, stem, member.role, at.key, at.offset, at.size, at.sha256, member.content)
        self._db.execute(
            "INSERT OR REPLACE INTO members (name, stem, role, key, start, size, sha256, content)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )

    def keep(self, name: str, content: bytes) -> None:
        """Adds the content of a textual member that is there already."""
        self._db.execute("UPDATE members SET content = ? WHERE name = ?", (content, name))

    def manifest(self) -> MediaLocation | None:
        """The `manifest.jsonl` nearest to the root; names in it are looked up beside it from now on.

        Raises JobError (`unsupported_manifest`) if two are equally near.
        """
        depth = "length(name) - length(replace(name, '/', ''))"
        query = f"SELECT name, {depth} FROM members WHERE name = ? OR name GLOB ? ORDER BY {depth}, name LIMIT 2"
        found = self._db.execute(query, (MANIFEST, f"*/{MANIFEST}")).fetchall()
        if not found:
            return None
        nearest = [name for name, depth in found if depth == found[0][1]]
        if len(nearest) > 1:
            raise JobError(f"There is more than one manifest: {', '.join(nearest)}.", code="unsupported_manifest")
        self._folder = nearest[0].removesuffix(MANIFEST)
        return self._find(self._folder, [MANIFEST])[MANIFEST]

    def bytes(self) -> int:
        """The size of all members together."""
        return int(self._db.execute("SELECT coalesce(sum(size), 0) FROM members").fetchone()[0])

    def find(self, names: Collection[str]) -> dict[str, MediaLocation]:
        """Where the members are that a manifest calls so; those that do not exist are left out."""
        return self._find(self._folder, names)

    def textual(self) -> Iterator[Member]:
        """The members whose content is needed, if there is no manifest."""
        return self._members("WHERE role IN ('text', 'json', 'cls') ORDER BY position")

    def groups(self) -> Iterator[tuple[str, list[Member]]]:
        """Members by stem (the name without its extension), in the order in which the stems first appear."""
        found = self._members(
            "JOIN (SELECT stem, min(position) AS first FROM members WHERE stem IS NOT NULL GROUP BY stem) USING (stem)"
            " ORDER BY first, position"
        )
        for stem, members in groupby(found, key=lambda member: str(PurePosixPath(member.name).with_suffix(""))):
            yield stem, list(members)

    def _find(self, folder: str, names: Collection[str]) -> dict[str, MediaLocation]:
        wanted: dict[str, list[str]] = {}
        for name in names:
            try:
                wanted.setdefault(folder + member_name(name), []).append(name)
            except JobError:
                continue  # a manifest may ask for anything; what leads out of the archive does not exist
        marks = ", ".join("?" * len(wanted))
        members = self._members(f"WHERE name IN ({marks})", list(wanted))
        return {name: member.location for member in members for name in wanted[member.name]}

    def _members(self, which: str, arguments: list[str] | None = None) -> Iterator[Member]:
        columns = "name, role, key, start, size, sha256, content"
        for name, role, key, start, size, sha256, content in self._db.execute(
            f"SELECT {columns} FROM members {which}", arguments or []
        ):
            location = MediaLocation(bucket=self._bucket, key=key, offset=start, size=size, sha256=sha256, ref=name)
            yield Member(name, role, location, content)
