"""The database: how it is made, changed from version to version, and what it says when it cannot be used."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovi_studio.errors import StoreError
from ovi_studio.studio.library import Filter, Library
from ovi_studio.studio.store import MIGRATIONS, Store

FIRST = "CREATE TABLE notes (id INTEGER PRIMARY KEY); CREATE INDEX notes_id ON notes (id);"
SECOND = "ALTER TABLE notes ADD COLUMN words TEXT NOT NULL DEFAULT 'none'"


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_a_new_store_is_in_wal_mode_with_a_version(library: Library, tmp_path: Path) -> None:
    assert library.store.rows("PRAGMA journal_mode")[0][0] == "wal"
    assert library.store.rows("PRAGMA synchronous")[0][0] == 2  # FULL
    assert version(tmp_path / "library.db") == len(MIGRATIONS)
    library.check()


def test_an_older_store_is_brought_up_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old = Store(path, migrations=(FIRST,))
    old.change("INSERT INTO notes VALUES (7)")
    old.close()
    new = Store(path, migrations=(FIRST, SECOND))
    assert [tuple(row) for row in new.rows("SELECT * FROM notes")] == [(7, "none")]
    new.close()
    assert version(path) == 2


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    Store(path, migrations=(FIRST,)).close()
    with pytest.raises(StoreError):
        Store(path, migrations=(FIRST, "CREATE TABLE extra (id); CREATE TABLE notes (id)"))
    assert version(path) == 1
    store = Store(path, migrations=(FIRST,))
    assert [row[0] for row in store.rows("SELECT name FROM sqlite_master WHERE type = 'table'")] == ["notes"]
    store.close()


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "new.db", migrations=(FIRST, SECOND)).close()
    with pytest.raises(StoreError, match="newer"):
        Store(tmp_path / "new.db", migrations=(FIRST,))


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cookies (id)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Library(path)
    assert path.read_bytes() == before


def test_a_transaction_is_all_or_nothing(library: Library) -> None:
    library.store.change("CREATE TABLE other (id)")

    def write_half() -> None:
        with library.store.transaction() as connection:
            connection.execute("INSERT INTO other VALUES (1)")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert library.store.rows("SELECT count(*) FROM other")[0][0] == 0


def test_threads_share_a_library(library: Library) -> None:
    library.store.change("CREATE TABLE counter (n)")
    library.store.change("INSERT INTO counter VALUES (0)")

    def count() -> None:
        for _ in range(25):
            with library.store.transaction() as connection:
                (n,) = connection.execute("SELECT n FROM counter").fetchone()
                connection.execute("UPDATE counter SET n = ?", [n + 1])

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert library.store.rows("SELECT n FROM counter")[0][0] == 100


@pytest.mark.distributed
def test_programs_that_make_the_store_at_once_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ovi_studio.studio.library import Library;"
        "sys.stdin.read(); Library(Path(sys.argv[1])).close()"
    )
    programs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "new.db")], stdin=subprocess.PIPE)
        for _ in range(4)
    ]
    for program in programs:
        program.stdin.close()
    assert [program.wait(60) for program in programs] == [0] * 4
    Library(tmp_path / "new.db").check()


# --- A store that cannot be used ------------------------------------------------------------------------------


def test_a_locked_store_says_so_and_works_later(library: Library, tmp_path: Path) -> None:
    library.store._connection.execute("PRAGMA busy_timeout = 100")
    with contextlib.closing(sqlite3.connect(tmp_path / "library.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked by another program"):
            library.stop_after_this()
        other.execute("ROLLBACK")
    assert library.stop_after_this() == 0


@pytest.mark.parametrize("damage", ["header", "pages", "text"])
def test_a_damaged_store_names_the_way_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "library.db"
    with Library(path) as library:
        library.store.change("CREATE TABLE filler AS SELECT randomblob(20000) AS blob")
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:100] = os.urandom(100)
    elif damage == "pages":
        data[4096:] = os.urandom(len(data) - 4096)
    else:
        data = bytearray(b"This is no database, and it is longer than a header would be. " * 20)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="rescan --rebuild"), Library(path) as library:
        library.find(Filter())


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder, and until the end no right to write what is not ours: root may write anything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        if os.geteuid() != os.getuid():
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(os.name != "posix", reason="permissions of Unix")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_read_only_store(what: str) -> None:
    with unprivileged() as folder:
        if what == "file":
            Library(folder / "library.db").close()
            (folder / "library.db").chmod(0o444)
        folder.chmod(0o555)
        if os.getuid() == 0:
            os.seteuid(65534)
        with pytest.raises(StoreError, match="cannot be written"):
            Library(folder / "library.db", timeout=0.2)
