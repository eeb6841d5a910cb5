#!/usr/bin/env python3
"""Makes fixtures/wal again: golden WALs written by real SQLite, each with what its transactions changed.

What is expected comes from SQLite alone: all rows are read with SELECT before and after each transaction and compared. Then the finished
pair of files is opened by SQLite once more, and what it recovers decides which transactions count, so that a spoilt log is judged by SQLite, too.

Salts are random: making the fixtures again changes their bytes. Needs Python 3.11 or newer for incremental blob writes.
"""

import base64
import json
import math
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True

from fixture_lessons import LESSONS
from fixture_wal import Wal

ROOT = Path(__file__).resolve().parent.parent / "fixtures"


def text(value):
    """Names and SQL come as bytes, as all text does here."""
    return value.decode() if isinstance(value, bytes) else value


def quote(name):
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def as_json(kind, value):
    """A value in the form of the JSON lines. SQLite's word for its storage class tells text from blobs."""
    if kind == "blob":
        return {"blob": base64.b64encode(value).decode()}
    if kind == "text":
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"text": base64.b64encode(value).decode()}
    if kind == "real" and math.isinf(value):
        return {"real": "Infinity" if value > 0 else "-Infinity"}
    return value


def same_key(collation, kind, value):
    """Something that is equal for values that SQLite's key comparison calls equal."""
    if kind == "text":
        value = value.lower() if collation == "NOCASE" else value.rstrip(b" ") if collation == "RTRIM" else value
    return ("number" if kind in ("integer", "real") else kind, value)


class Table:
    """One table at one moment: its rows by what tells them apart."""

    def __init__(self, db, name):
        info = [(text(column), pk, hidden) for _, column, _, _, _, pk, hidden in db.execute(f"PRAGMA table_xinfo({quote(name)})")]
        # 2 is a virtual generated column, which no record holds; 3 is a stored one.
        self.columns = [column for column, _, hidden in info if hidden != 2]
        key = [column for _, column in sorted((pk, column) for column, pk, _ in info if pk)]
        collations = []
        for _, index, _, origin, *_ in db.execute(f"PRAGMA index_list({quote(name)})").fetchall():
            if text(origin) == "pk":
                rows = db.execute(f"PRAGMA index_xinfo({quote(text(index))})").fetchall()
                collations = [text(collation) for _, _, _, _, collation, _ in rows[: len(key)]]
        is_alias = bool(key) and not collations
        try:
            db.execute(f"SELECT rowid FROM {quote(name)} LIMIT 0")
            rowid = "rowid"
        except sqlite3.OperationalError:
            rowid = "NULL"
        parts = ", ".join(f"typeof({quote(column)}), {quote(column)}" for column in self.columns)
        self.rows = {}
        for number, *pairs in db.execute(f"SELECT {rowid}, {parts} FROM {quote(name)}"):
            kinds = dict(zip(self.columns, map(text, pairs[::2])))
            values = dict(zip(self.columns, pairs[1::2]))
            row = {column: as_json(kinds[column], values[column]) for column in self.columns}
            by_rowid = not key or (not is_alias and rowid != "NULL" and any(kinds[column] == "null" for column in key))
            if by_rowid:
                identity, shown = ("rowid", number), {"rowid": number}
            else:
                padded = collations or ["BINARY"] * len(key)
                identity = tuple(same_key(collation, kinds[column], values[column]) for column, collation in zip(key, padded))
                shown = {column: row[column] for column in key}
            assert identity not in self.rows, f"two rows of {name} have one key"
            # Both the storage class and the sign of zero must tell values apart; JSON's text does.
            self.rows[identity] = (shown, row, {column: json.dumps(row[column]) for column in self.columns})


class State:
    """A database at one moment."""

    def __init__(self, db):
        # SQLite's own tables follow from the others or belong to one file alone.
        rows = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'").fetchall()
        self.schema = {(text(kind), text(name)): text(sql) for kind, name, sql in rows}
        self.tables = {name: Table(db, name) for kind, name in self.schema if kind == "table"}

    def comparable(self):
        """The state as a value."""
        return self.schema, {name: {key: row[2] for key, row in table.rows.items()} for name, table in self.tables.items()}


def changes(tx, before, after):
    """The lines of one transaction; none if it changed nothing."""
    schema = []
    for kind, name in sorted(before.schema.keys() | after.schema.keys()):
        old, new = before.schema.get((kind, name)), after.schema.get((kind, name))
        if old != new:
            schema.append({"op": "schema", "tx": tx, "type": kind, "name": name, "before": old, "after": new})
    rows = []
    for name in sorted(before.tables.keys() | after.tables.keys()):
        old, new = before.tables.get(name), after.tables.get(name)
        old_rows, new_rows = (table.rows if table else {} for table in (old, new))
        # A column that ALTER TABLE added changes no stored row.
        columns = [column for column in old.columns if column in new.columns] if old and new else []
        of_table = []
        for identity in old_rows.keys() | new_rows.keys():
            was, now = old_rows.get(identity), new_rows.get(identity)
            if was and now:
                if any(was[2][column] != now[2][column] for column in columns):
                    of_table.append({"op": "update", "tx": tx, "table": name, "key": now[0], "before": was[1], "after": now[1]})
            elif now:
                of_table.append({"op": "insert", "tx": tx, "table": name, "key": now[0], "after": now[1]})
            else:
                of_table.append({"op": "delete", "tx": tx, "table": name, "key": was[0], "before": was[1]})
        rows += sorted(of_table, key=lambda change: json.dumps(change["key"]))
    if not schema and not rows:
        return []
    return [{"op": "begin", "tx": tx}, *schema, *rows, {"op": "commit", "tx": tx, "changes": len(rows)}]


def connect(path):
    """A connection that leaves the WAL as it is until told otherwise."""
    db = sqlite3.connect(path, isolation_level=None)
    db.text_factory = bytes
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA secure_delete = OFF")  # Some builds overwrite freed pages, and most do not.
    return db


def reserve(path, reserved):
    """Sets the reserved bytes of a database that has no table yet: header byte 20, and where the cells of page 1 begin."""
    data = bytearray(path.read_bytes())
    page_size = int.from_bytes(data[16:18], "big")
    data[20] = reserved
    data[105:107] = (page_size - reserved).to_bytes(2, "big")
    path.write_bytes(data)


def make(lesson, work):
    """Makes one lesson in a temporary folder; returns the bytes of both files and the expected lines."""
    path = work / "made"
    db = connect(path)
    db.executescript(f"PRAGMA page_size = {lesson.page_size}; {lesson.pragmas} PRAGMA user_version = 1;")
    if lesson.reserved:
        db.close()
        reserve(path, lesson.reserved)
        db = connect(path)
    db.executescript(f"PRAGMA journal_mode = WAL; BEGIN; {lesson.setup} COMMIT; PRAGMA wal_checkpoint(TRUNCATE);")
    states = [State(db)]
    for step in lesson.steps:
        if isinstance(step, str):
            db.executescript(f"BEGIN; {step} COMMIT;")
        else:
            step(db)
        states.append(State(db))
        if step.__class__ is not str and step.__name__ == "restart":
            states = [State(db)]  # What came before is in the database now.
    database, wal = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    db.close()
    assert lesson.holds is None or lesson.holds(Wal(wal)), f"{lesson.name}: this SQLite writes a WAL that does not show the lesson"
    if lesson.tamper:
        wal = lesson.tamper(wal)

    recovered = work / "recovered"
    recovered.write_bytes(database)
    Path(f"{recovered}-wal").write_bytes(wal)
    db = connect(recovered)
    found = State(db).comparable()
    assert db.execute("PRAGMA integrity_check").fetchall() == [(b"ok",)], f"{lesson.name}: SQLite finds the files damaged"
    db.close()
    counted = max((index for index, state in enumerate(states) if state.comparable() == found), default=None)
    assert counted is not None, f"{lesson.name}: SQLite recovers a state that no transaction left behind"

    lines, tx = [], 1
    for before, after in zip(states[:counted], states[1 : counted + 1]):
        transaction = changes(tx, before, after)
        tx += bool(transaction)
        lines += transaction
    return database, wal, lines


README_HEAD = """# Fixtures

`wal/<lesson>/` holds a database and its WAL as real SQLite wrote them, and what the WAL's transactions changed:

* `db`: the database before the first transaction of the log. (Its journal mode is WAL; the setup was checkpointed into it.)
* `db-wal`: the log. Opening `db` with SQLite where it stands would recover, checkpoint and delete it: **copy both files first.**
* `expected.jsonl`: one object a line, as SQLite itself saw it (all rows read with SELECT before and after each transaction), in the
  format of `woodchuck inspect --format json` with these rules:
  * `tx` counts from 1 the transactions that changed something; a commit that changed nothing has no lines. Salts and frame numbers are left
    out.
  * `key` is the declared PRIMARY KEY; `{"rowid":N}` for tables without one and for rows with NULL in it.
  * Images hold the columns that are stored: STORED generated columns, but not VIRTUAL ones.
  * After `begin` come `schema` lines by type and name, then row changes by table and the JSON text of the key, then `commit`. A reader may
    find the changes of a transaction in another order: compare them as sets.
  * SQLite's own tables (`sqlite_sequence` …) are left out. A column added by ALTER TABLE is no change of the rows that were there.

`make fixtures` makes all of them again (`scripts/fixtures.py`; the lessons are in `scripts/fixture_lessons.py`). Salts are random, so every file
changes: do it when a lesson is added or changed, not as a habit.

| lesson | teaches | page size | frames |
|---|---|---|---|
"""


def main():
    """Makes all lessons, or those that are named."""
    wanted = set(sys.argv[1:])
    unknown = wanted - {lesson.name for lesson in LESSONS}
    if unknown:
        sys.exit(f"error: there is no lesson {', '.join(sorted(unknown))}")
    table = []
    for lesson in LESSONS:
        folder = ROOT / "wal" / lesson.name
        if not wanted or lesson.name in wanted:
            with tempfile.TemporaryDirectory() as work:
                database, wal, lines = make(lesson, Path(work))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "db").write_bytes(database)
            (folder / "db-wal").write_bytes(wal)
            body = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
            (folder / "expected.jsonl").write_text(body, "utf-8")
            print(f"{lesson.name}: {sum(line['op'] == 'commit' for line in lines)} transactions, {len(database) + len(wal)} bytes")
        frames = Wal((folder / "db-wal").read_bytes()).frames_in_file()
        table.append(f"| `{lesson.name}` | {lesson.teaches} | {lesson.page_size} | {frames} |\n")
    (ROOT / "README.md").write_text(README_HEAD + "".join(table), "utf-8")


if __name__ == "__main__":
    main()
