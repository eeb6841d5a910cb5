"""The two copies: how they are made and how their equality is proven."""

import hashlib
import os
import shutil
import sqlite3
from pathlib import Path


def connect(path, read_only=False):
    """An ordinary connection in autocommit mode."""
    uri = f"{Path(path).absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)
    db.text_factory = bytes  # TEXT may hold what is not UTF-8.
    return db


def name_of(value):
    """Names come from the schema as bytes."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def quote_name(name):
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def take_copy(original, copy):
    """Copies a database without a trace at the original, which may be in use."""
    with open(original, "rb") as file:
        header = file.read(20)
    if len(header) < 20 or not header.startswith(b"SQLite format 3\0"):
        raise ValueError(f"{original} is not an SQLite database, or an empty one")
    beside = {suffix: Path(f"{original}{suffix}") for suffix in ("-wal", "-shm", "-journal")}
    in_wal_mode = header[18] == 2
    if beside["-shm"].exists() or (not in_wal_mode and not beside["-journal"].exists()):
        # Somebody may be writing: SQLite's own backup holds the locks that a consistent copy needs.
        source, target = connect(original, read_only=True), sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
    else:
        # Nobody has it open, and opening it would make files beside it, or roll back what its owner has not.
        shutil.copyfile(original, copy)
        for suffix in ("-wal", "-journal"):
            if beside[suffix].exists():
                shutil.copyfile(beside[suffix], f"{copy}{suffix}")


def switch_to_wal(path):
    """Puts the copy into WAL mode and leaves it as one file."""
    db = connect(path)
    try:
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    finally:
        db.close()
    if mode != b"wal":
        raise ValueError(f"the copy cannot be switched to WAL mode (it stays {name_of(mode)})")


class Tables:
    """The ordinary tables of a database, and those that are virtual or belong to a virtual one."""

    def __init__(self, db):
        found = [
            (name_of(name), name_of(sql) or "")
            for name, sql in db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        virtual = [name for name, sql in found if sql.upper().startswith("CREATE VIRTUAL")]
        shadows = {name for name, _ in found for owner in virtual if name.startswith(owner + "_")}
        self.set_aside = sorted(shadows.union(virtual))
        self.ordinary = [name for name, _ in found if not name.startswith("sqlite_") and name not in self.set_aside]


class Digest:
    """An aggregate over rows in any order: the sum of the rows' hashes."""

    def __init__(self):
        self.sum = 0

    def step(self, row):
        self.sum += int.from_bytes(hashlib.blake2b(row.encode(), digest_size=8).digest(), "big")

    def finalize(self):
        return f"{self.sum % 2**64:016x}"


def digest(db, table):
    """The number of rows of a table and a digest of them: type and value of every column, computed in one SQL query."""
    columns = [quote_name(name_of(row[1])) for row in db.execute(f"PRAGMA table_xinfo({quote_name(table)})")]
    # Bytes as hexadecimal, for they need not be text; quote() writes numbers so that they read back exactly.
    parts = [f"CASE WHEN typeof({c}) IN ('text', 'blob') THEN typeof({c}) || hex({c}) ELSE quote({c}) END" for c in columns]
    db.create_aggregate("digest", 1, Digest)
    query = f"SELECT count(*), digest({' || char(10) || '.join(parts)}) FROM {quote_name(table)}"
    count, value = db.execute(query).fetchone()
    return count, name_of(value)


def digests(db, tables):
    """Every table's digest, of one moment."""
    db.execute("BEGIN")
    try:
        return {table: digest(db, table) for table in tables}
    finally:
        db.execute("COMMIT")


def schema_of(db):
    """The text of every schema object."""
    return db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name, tbl_name").fetchall()


def is_sound(db):
    """What SQLite says of the file."""
    return db.execute("PRAGMA integrity_check").fetchall() == [(b"ok",)]


def file_size(path):
    """Bytes of the file."""
    return os.stat(path).st_size
