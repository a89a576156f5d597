"""What planning has to remember of every item without holding it in memory."""

import sqlite3
from collections.abc import Iterator
from hashlib import blake2b

from shared.jobs.records import ItemFailure
from shared.queues import Modality

#: Memory for the pages of the database, KiB; what does not fit goes to a temporary file.
CACHE_KIB = 32 * 1024


class Ledger:
    """The ids that were seen and the items that failed, in a temporary database on disk that vanishes with it.

    An id is remembered as 16 bytes of its hash: ten million take 300 MB of disk and no more memory than one does.
    Iterating gives the failures in the order of the manifest, as often as wanted.
    """

    def __init__(self) -> None:
        # The empty name is SQLite's private temporary database, spilled to disk as it grows. The thread that stores a
        # plan is not the one that made it, but never works beside it.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript(f"""
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KIB};
            CREATE TABLE ids (hash BLOB PRIMARY KEY) WITHOUT ROWID;
            CREATE TABLE failures (item_index INTEGER, item_id TEXT, modality TEXT, code TEXT, message TEXT);
            BEGIN;
        """)
        self.failed_items = 0

    def is_new(self, id: str) -> bool:
        """Remembers an id; False if it was there before."""
        digest = blake2b(id.encode(), digest_size=16).digest()
        return self._db.execute("INSERT OR IGNORE INTO ids VALUES (?)", (digest,)).rowcount == 1

    def add(self, failure: ItemFailure) -> None:
        """Records that a modality of an item, or the whole item, cannot be used."""
        self.failed_items += failure.modality is None
        row = (failure.item_index, failure.item_id, failure.modality, failure.code, failure.message)
        self._db.execute("INSERT INTO failures VALUES (?, ?, ?, ?, ?)", row)

    def __iter__(self) -> Iterator[ItemFailure]:
        for index, id, modality, code, message in self._db.execute("SELECT * FROM failures ORDER BY item_index, rowid"):
            yield ItemFailure(index, id, Modality(modality) if modality else None, code, message)
