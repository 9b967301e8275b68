"""The file behind the library: one SQLite database, shared by several threads and programs.

Whoever changes something holds the file's write lock from the first read to the last write of it
(`BEGIN IMMEDIATE`), so no decision is made on what another program is changing. What was committed survives
a power cut (`synchronous=FULL`). SQLite's errors become `StoreError`, with what to do next.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ovi_studio.errors import StoreError
from ovi_studio.folders import make_folder

BUSY_SECONDS = 15.0  # guessed: how long another program may write; ours take milliseconds
_CACHE_KIB = 32 << 10  # measured: what a search of 10,000 clips walks through is 7 MB
_APPLICATION_ID = 0x4F766953  # "OviS": tells the file from any other program's database

# Each entry brings a database from the version of its index to the next one.
MIGRATIONS = (
    # Large columns come last: SQLite then finds the others without reading them. `search` is what a search
    # looks into, casefolded. The index by age holds all that lists are filtered by, so that a search reads no clip.
    """
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'paused', 'done', 'failed', 'cancelled')),
        position INTEGER NOT NULL,
        created REAL NOT NULL,
        started REAL,
        finished REAL,
        seconds REAL,
        stage TEXT NOT NULL DEFAULT '',
        progress REAL NOT NULL DEFAULT 0,
        seconds_left REAL,
        interruptions INTEGER NOT NULL DEFAULT 0,
        wish TEXT NOT NULL DEFAULT '' CHECK (wish IN ('', 'cancel', 'pause', 'keep')),
        runner TEXT NOT NULL DEFAULT '',
        heartbeat REAL,
        variant TEXT NOT NULL,
        seed INTEGER NOT NULL,
        output TEXT NOT NULL UNIQUE,
        predicted_gpu_bytes INTEGER,
        predicted_host_bytes INTEGER,
        measured_gpu_bytes INTEGER,
        measured_host_bytes INTEGER,
        favourite INTEGER NOT NULL DEFAULT 0,
        name TEXT NOT NULL DEFAULT '',
        tags TEXT NOT NULL DEFAULT '[]',
        owner TEXT NOT NULL DEFAULT '',
        parent TEXT,
        batch TEXT NOT NULL DEFAULT '',
        batch_key TEXT,
        batch_row INTEGER,
        problem TEXT NOT NULL DEFAULT '',
        remedy TEXT NOT NULL DEFAULT '',
        search TEXT NOT NULL,
        request TEXT NOT NULL,
        plan TEXT,
        stages TEXT,
        thumbnail BLOB
    );
    CREATE INDEX jobs_by_position ON jobs (position);
    CREATE INDEX jobs_by_status ON jobs (status, position);
    CREATE INDEX jobs_by_age ON jobs (created, status, favourite, variant, owner, batch, tags, search);
    CREATE UNIQUE INDEX jobs_by_batch ON jobs (batch, batch_key) WHERE batch_key IS NOT NULL;
    """,
    # What was thrown away, each row whole as JSON (but for its picture); and what ended last, found at once.
    """
    CREATE TABLE trash (
        id TEXT PRIMARY KEY,
        deleted REAL NOT NULL,
        owner TEXT NOT NULL,
        output TEXT NOT NULL,
        job TEXT NOT NULL,
        thumbnail BLOB
    );
    CREATE INDEX trash_by_age ON trash (owner, deleted);
    CREATE INDEX jobs_by_end ON jobs (finished, status, variant, seconds);
    """,
)


class Store:
    """One open database. Its methods may be called from any thread.

    Args:
        path: the file; it and its folder are made when missing.
        timeout: seconds to wait for another program's writing.
        migrations: what makes its tables; tests give their own.

    Raises:
        StoreError: it cannot be opened, is damaged, or is not ours.
    """

    def __init__(self, path: Path, timeout: float = BUSY_SECONDS, migrations: Sequence[str] = MIGRATIONS) -> None:
        self.path = path
        self._timeout = timeout
        self._lock = threading.RLock()
        make_folder(path.parent)
        with self._in_words():
            self._connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(migrations)
        except BaseException:
            self._connection.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's changes or none; nobody else changes anything meanwhile."""
        with self._lock, self._in_words():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself gives up where the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock, self._in_words():
            return self._connection.execute(sql, parameters).fetchall()

    def numbers(self, sql: str, parameters: Sequence[Any] = ()) -> list[int]:
        """The one column that a query finds, of many rows."""
        with self._lock, self._in_words():
            cursor = self._connection.cursor()
            cursor.row_factory = None
            return [number for (number,) in cursor.execute(sql, parameters)]

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """One change in a transaction of its own; returns how many rows it changed."""
        with self.transaction() as connection:
            return connection.execute(sql, parameters).rowcount

    def check(self) -> None:
        """Read all of it.

        Raises:
            StoreError: it is damaged.
        """
        (answer,) = self.rows("PRAGMA integrity_check(1)")
        if answer[0] != "ok":
            raise self._told("malformed")

    def close(self) -> None:
        """Close the file. It may be called twice."""
        with self._lock:
            self._connection.close()

    def _prepare(self, migrations: Sequence[str]) -> None:
        with self._in_words():
            self._connection.row_factory = sqlite3.Row
            version = self._version()
            if version > len(migrations):
                raise StoreError(
                    f"The library {self.path} was written by a newer Ovi Studio.", "Update Ovi Studio to open it."
                )
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._use_wal()
        if version < len(migrations):
            self._migrate(migrations)

    def _version(self) -> int:
        """The database's version, once it is known to be ours; 0 where it is new."""
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION_ID and (application or tables):
            raise StoreError(f"{self.path} is another program's database.", "Name another file for the library.")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def _use_wal(self) -> None:
        """Readers and a writer at a time. Where two programs switch at once, SQLite refuses without waiting."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(0.02)

    def _migrate(self, migrations: Sequence[str]) -> None:
        with self.transaction() as connection:
            for index in range(self._version(), len(migrations)):  # another program may have been faster
                for statement in migrations[index].split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(migrations)}")

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:  # a fault of ours: no user can mend it
            raise
        except sqlite3.DatabaseError as error:
            raise self._told(str(error)) from error

    def _told(self, fault: str) -> StoreError:
        """SQLite's message as problem and remedy."""
        where = f"The library {self.path}"
        if "locked" in fault:
            return StoreError(f"{where} is locked by another program.", "Close that program, or wait until it is done.")
        if "readonly" in fault or "unable to open" in fault:
            return StoreError(f"{where} cannot be written.", "Mend the permissions of the file and its folder.")
        if "full" in fault or "disk I/O" in fault:
            return StoreError(
                f"{where} cannot be written: its disk is full or broken ({fault}).", "Free some space; nothing is lost."
            )
        if "not a database" in fault or "malformed" in fault:
            return StoreError(
                f"{where} is damaged.",
                "`ovi-studio library rescan --rebuild` puts it aside and makes a new one from the clips.",
            )
        return StoreError(f"{where} cannot be used: {fault}.", "Report this, with the file if you can.")
