"""The lessons of fixtures/wal: for each, what SQLite is asked to do and what a reader of its WAL learns from it."""

from dataclasses import dataclass

import fixture_wal


@dataclass
class Lesson:
    """One folder of fixtures/wal."""

    name: str
    teaches: str
    """What breaks in a reader that has not learnt it."""
    setup: str
    """Run and checkpointed first: the content of `db`."""
    steps: list
    """Each is one transaction: SQL, or a function of the connection."""
    page_size: int = 512
    pragmas: str = ""
    """Run before the database has its first page."""
    reserved: int = 0
    """Bytes kept free at the end of each page."""
    tamper: object = None
    """Changes the bytes of the WAL after SQLite has written them."""
    holds: object = None
    """Whether the WAL shows what the lesson is about; asked of `fixture_wal.Wal`."""


def fill(table, first, last, width=40):
    """Inserts rows first…last, wide enough that pages split soon."""
    return f"""WITH RECURSIVE n (i) AS (VALUES ({first}) UNION ALL SELECT i + 1 FROM n WHERE i < {last})
        INSERT INTO {table} SELECT i, printf('%0{width}d', i) FROM n;"""


PLAIN = "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);"


def autocommit(sql):
    """A statement that opens its own transaction."""
    return lambda db: db.execute(sql).fetchall()


def write_blob(db):
    """Incremental blob write: no statement touches the row."""
    with db.blobopen("t", "v", 1) as blob:
        blob[1500:1504] = b"\xde\xad\xbe\xef"


def roll_back_after_spilling(db):
    """A transaction that outgrows the page cache writes frames before it is rolled back."""
    db.execute("PRAGMA cache_size = 5")
    db.execute("BEGIN")
    db.execute("UPDATE t SET v = v || '-never'")
    db.execute(fill("t", 1000, 1100))
    db.execute("ROLLBACK")


def restart(db):
    """Copies everything into the database; the next write begins the log again, over the old frames."""
    busy, frames, copied = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    assert (busy, frames) == (0, copied), "nobody else is there, so the checkpoint is complete"


def insert_numbers(db):
    """Values that are bound, so that no parser stands between them and the record."""
    values = [0, 1, -1, 127, 128, -129, 32_768, 8_388_608, 2_147_483_648, 140_737_488_355_328, 2**53 + 1, 2**63 - 1, -(2**63)]
    values += [3.0, 0.5, -0.0, 1e300, -1e-300, float("inf"), float("-inf"), 2.0**53, 2.0**63, None]
    db.execute("BEGIN")
    for i, value in enumerate(values):
        db.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?)", (i, value, value, value, value))
    db.execute("COMMIT")


LESSONS = [
    Lesson("insert-update-delete", "the three changes; an UPDATE that changes nothing is no transaction, and of several changes of a row the net one counts", PLAIN + fill("t", 1, 5), [
        "INSERT INTO t VALUES (6, 'six');", "UPDATE t SET v = 'two' WHERE id = 2;", "UPDATE t SET v = v WHERE id = 3;", "DELETE FROM t WHERE id = 1;",
        "INSERT INTO t VALUES (7, 'x'); DELETE FROM t WHERE id = 7; UPDATE t SET v = 'net' WHERE id = 4; UPDATE t SET v = 'net change' WHERE id = 4;",
    ]),
    Lesson("split", "rows that only moved to a new page are no change; the root grows twice", PLAIN + fill("t", 1, 4),
           [fill("t", 100, 100), fill("t", 5, 40), fill("t", 200, 700, 60), "INSERT INTO t VALUES (50, printf('%.300c', 'x'));"]),
    Lesson("merge", "rows that only moved to a neighbour are no change; the root shrinks", PLAIN + fill("t", 1, 300),
           ["DELETE FROM t WHERE id % 10 <> 0;", "DELETE FROM t WHERE id > 20;"]),
    Lesson("delete-all", "freed pages are not written to the WAL: the deleted rows are in the pages before", PLAIN + fill("t", 1, 400),
           ["DELETE FROM t;", "INSERT INTO t VALUES (1, 'again');"], holds=lambda wal: wal.transactions()[0] <= 5),
    Lesson("delete-range", "whole subtrees vanish, and one that lived on under a sibling does not", PLAIN + fill("t", 1, 1500, 20),
           ["DELETE FROM t WHERE id BETWEEN 200 AND 1300;"]),
    Lesson("drop-table", "the schema row goes and so do all rows; its pages serve the next table",
           PLAIN + fill("t", 1, 100) + "CREATE TABLE u (k TEXT PRIMARY KEY, v); INSERT INTO u VALUES ('stays', 1);",
           ["DROP TABLE t;", "CREATE TABLE w (id INTEGER PRIMARY KEY, v); " + fill("w", 1, 60)]),
    Lesson("overflow-grow", "a value moves into overflow pages, grows, shrinks and comes back", PLAIN + "INSERT INTO t VALUES (1, 'short'), (2, 'x');", [
        f"UPDATE t SET v = printf('%.{width}c', '{letter}') WHERE id = 1;" for width, letter in [(400, "a"), (3000, "b"), (9000, "b"), (900, "b"), (3, "b")]
    ] + ["DELETE FROM t WHERE id = 1;"]),
    Lesson("overflow-same-size", "only an overflow page changes, its leaf does not", PLAIN + "INSERT INTO t VALUES (1, printf('%.3000c', 'a')), (2, 'x');",
           ["UPDATE t SET v = substr(v, 1, 2990) || 'END of it.' WHERE id = 1;"], holds=lambda wal: wal.transactions()[0] == 1),
    Lesson("overflow-blob-write", "an incremental blob write changes one overflow page and nothing else",
           "CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB); INSERT INTO t VALUES (1, zeroblob(3000));", [write_blob]),
    Lesson("without-rowid", "rows live in an index-shaped tree, in interior cells and overflow too; keys are composite, DESC and NOCASE", """
        CREATE TABLE t (a TEXT COLLATE NOCASE, b INTEGER, c, d TEXT, PRIMARY KEY (b DESC, a)) WITHOUT ROWID;
        CREATE TABLE late (v TEXT, w, k1 TEXT, k2 REAL, PRIMARY KEY (k1, k2)) WITHOUT ROWID;
        WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 120)
            INSERT INTO t SELECT 'Name' || (i % 7), i, i * 1.5, printf('%.30c', 'x') FROM n;""", [
        "UPDATE t SET d = 'changed' WHERE b % 11 = 0;", "DELETE FROM t WHERE b BETWEEN 20 AND 90;", "UPDATE t SET a = upper(a) WHERE b = 5;",
        "INSERT INTO t VALUES ('big', 1000, NULL, printf('%.2000c', 'y'));", "UPDATE t SET c = 1 WHERE b = 1000;",
        "INSERT INTO late VALUES ('v', NULL, 'k', 1.0), ('v', 2, 'k', 1.5);", "REPLACE INTO late VALUES ('new', 3, 'k', 1);",
    ]),
    Lesson("auto-vacuum-full", "every commit may move pages and roots, and the file shrinks; pointer-map pages are nobody's",
           PLAIN + "CREATE TABLE u (id INTEGER PRIMARY KEY, v TEXT);" + fill("t", 1, 150) + fill("u", 1, 150) + "INSERT INTO u VALUES (999, printf('%.2000c', 'o'));",
           ["DELETE FROM t WHERE id < 140;", "DROP TABLE t;", fill("u", 2000, 2050), "UPDATE u SET v = 'last' WHERE id = 999;"], pragmas="PRAGMA auto_vacuum = FULL;"),
    Lesson("incremental-vacuum", "pages move in a transaction that changes no row; what moved is found at its new place",
           PLAIN + fill("t", 1, 200) + "INSERT INTO t VALUES (999, printf('%.1500c', 'o'));",
           ["DELETE FROM t WHERE id < 150;", autocommit("PRAGMA incremental_vacuum(8)"), "UPDATE t SET v = 'after' WHERE id = 160;",
            autocommit("PRAGMA incremental_vacuum"), "UPDATE t SET v = substr(v, 1, 1499) || 'p' WHERE id = 999;"], pragmas="PRAGMA auto_vacuum = INCREMENTAL;"),
    Lesson("vacuum", "all pages change and no row does; hidden rowids are numbered again, declared keys are not",
           PLAIN + "CREATE TABLE k (name TEXT PRIMARY KEY, v);" + fill("t", 1, 80) + "INSERT INTO k SELECT 'k' || id, id FROM t; DELETE FROM k WHERE v < 40; DELETE FROM t WHERE id % 2;",
           [autocommit("VACUUM"), "UPDATE k SET v = -1 WHERE name = 'k50';"]),
    Lesson("utf16le", "text is stored as UTF-16, low byte first", PLAIN + "INSERT INTO t VALUES (1, 'ä€🐿'), (2, '');",
           ["INSERT INTO t VALUES (3, 'grüße 東京');", "UPDATE t SET v = v || '!' WHERE id = 1;", "DELETE FROM t WHERE id = 2;"], pragmas="PRAGMA encoding = 'UTF-16le';"),
    Lesson("utf16be", "text is stored as UTF-16, high byte first", PLAIN + "INSERT INTO t VALUES (1, 'ä€🐿'), (2, '');",
           ["INSERT INTO t VALUES (3, 'grüße 東京');", "UPDATE t SET v = v || '!' WHERE id = 1;", "DELETE FROM t WHERE id = 2;"], pragmas="PRAGMA encoding = 'UTF-16be';"),
    Lesson("page-4096", "the usual page size", PLAIN + fill("t", 1, 100), [fill("t", 101, 300), "DELETE FROM t WHERE id % 3 = 0;"], page_size=4096),
    Lesson("page-65536", "the largest page: 1 in the database's header, 65536 in the WAL's", PLAIN + fill("t", 1, 10),
           ["UPDATE t SET v = 'x' WHERE id = 3;"], page_size=65536),
    Lesson("reserved-bytes", "the end of each page belongs to an extension: cells and overflow are laid out in what is left", PLAIN + fill("t", 1, 50),
           [fill("t", 51, 90), "UPDATE t SET v = printf('%.1000c', 'r') WHERE id = 7;"], page_size=1024, reserved=32),
    Lesson("big-endian-checksum", "a WAL of a big-endian machine: magic 0x377f0683", PLAIN + fill("t", 1, 5),
           ["INSERT INTO t VALUES (6, 'six');", "DELETE FROM t WHERE id = 2;"], tamper=fixture_wal.as_big_endian),
    Lesson("add-column-default", "old records are shorter than the column list and mean the default; ALTER rewrites none", PLAIN + fill("t", 1, 3), [
        "ALTER TABLE t ADD COLUMN n INTEGER NOT NULL DEFAULT 7;", "UPDATE t SET v = 'x' WHERE id = 1;",
        "ALTER TABLE t ADD COLUMN r REAL DEFAULT 2;", "ALTER TABLE t ADD COLUMN e TEXT;", "DELETE FROM t WHERE id = 2;", "INSERT INTO t (id) VALUES (9);",
    ]),
    Lesson("generated-columns", "a virtual generated column is not in the record, a stored one is", """
        CREATE TABLE t (a INTEGER, twice INTEGER GENERATED ALWAYS AS (a * 2) VIRTUAL, b TEXT, up TEXT GENERATED ALWAYS AS (upper(b)) STORED, c, PRIMARY KEY (b));
        INSERT INTO t (a, b, c) VALUES (1, 'x', NULL);""",
        ["INSERT INTO t (a, b, c) VALUES (2, 'y', 2.5);", "UPDATE t SET a = 10 WHERE b = 'x';", "UPDATE t SET c = 'c' WHERE b = 'y';"]),
    Lesson("strict-any", "ANY in a STRICT table keeps what it is given", "CREATE TABLE t (id INTEGER PRIMARY KEY, v ANY, n INT, r REAL) STRICT;",
           ["INSERT INTO t VALUES (1, '007', 1, 2), (2, 7, NULL, 2.5), (3, 7.0, 0, 0), (4, x'00ff', 1, -1);", "UPDATE t SET v = 7 WHERE id = 1;"]),
    Lesson("reals-and-integers", "integers of every width, floats stored as integers in REAL columns, -0.0 and infinities",
           "CREATE TABLE t (id INTEGER PRIMARY KEY, plain, r REAL, n NUMERIC, x TEXT);", [insert_numbers, "UPDATE t SET r = r WHERE id = 13;", "UPDATE t SET plain = 3 WHERE plain = 3.0;"]),
    Lesson("text-and-blobs", "numbers and dates kept as text, empty values, text with NUL, boolean 2: stored is stored",
           "CREATE TABLE t (id INTEGER PRIMARY KEY, d DATETIME, f BOOLEAN, s TEXT, b BLOB);",
           ["INSERT INTO t VALUES (1, '2024-02-29', 2, '0012', x''), (2, '1e3', 'yes', '', 'text in a blob column'), (3, NULL, 0, 'a' || char(0) || 'b', x'00');",
            "UPDATE t SET s = s || 'é' WHERE id = 3;"]),
    Lesson("invalid-utf8", "text may be any bytes, and they survive", PLAIN,
           ["INSERT INTO t VALUES (1, CAST(x'ff00fe' AS TEXT)), (2, CAST(x'c3' AS TEXT)), (3, 'fine');", "UPDATE t SET v = CAST(x'eda080' AS TEXT) WHERE id = 3;"]),
    Lesson("keys-of-all-kinds", "which column is the rowid, which only looks like it, and what a NULL in a key means", """
        CREATE TABLE alias (v, id INTEGER PRIMARY KEY); CREATE TABLE no_alias (id INT PRIMARY KEY, v);
        CREATE TABLE no_alias_desc (id INTEGER PRIMARY KEY DESC, v); CREATE TABLE keyless (v); CREATE TABLE "two words" ("a ""b" TEXT, [c] INT, v, PRIMARY KEY (c, "a ""b"));
        CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT, v); CREATE TABLE folded (k TEXT PRIMARY KEY COLLATE NOCASE, v);
        CREATE TABLE trimmed (k TEXT PRIMARY KEY COLLATE RTRIM, v);""", [
        "INSERT INTO alias VALUES ('a', -5), ('b', 9223372036854775807), ('c', -9223372036854775808);",
        "INSERT INTO no_alias VALUES (1, 'a'), (NULL, 'b'), (NULL, 'b'); INSERT INTO no_alias_desc VALUES (1, 'a'), (NULL, 'b');",
        "INSERT INTO keyless VALUES (1), (1), (NULL); INSERT INTO \"two words\" VALUES ('x', 1, 1), (NULL, 1, 2);", "INSERT INTO counted (v) VALUES ('a'), ('b');",
        "INSERT INTO folded VALUES ('Key', 1); INSERT INTO trimmed VALUES ('key', 1);", "UPDATE folded SET k = 'KEY'; UPDATE trimmed SET k = 'key  ';",
        "DELETE FROM keyless WHERE rowid = 2; UPDATE no_alias SET v = 'c' WHERE rowid = 3; DELETE FROM counted WHERE id = 2;", "INSERT INTO counted (v) VALUES ('c');",
    ]),
    Lesson("key-change-and-swap", "another key is a delete and an insert; two rows that swap keys are two updates", PLAIN + fill("t", 1, 4),
           ["UPDATE t SET id = 10 WHERE id = 4;", "UPDATE t SET id = -1 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 2; UPDATE t SET id = 2 WHERE id = -1;",
            "DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, 'again');"]),
    Lesson("replace-moves-rowid", "REPLACE gives the key a new rowid: an update, for the key is what tells rows apart",
           "CREATE TABLE t (k TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('a', 1), ('b', 2), ('c', 3);", ["REPLACE INTO t VALUES ('a', 'new');", "REPLACE INTO t VALUES ('b', 4), ('b', 5);"]),
    Lesson("savepoint-rollback", "what a savepoint took back never happened", PLAIN + fill("t", 1, 3),
           ["INSERT INTO t VALUES (10, 'stays'); SAVEPOINT s; DELETE FROM t WHERE id < 3; INSERT INTO t VALUES (11, 'goes'); ROLLBACK TO s; RELEASE s; UPDATE t SET v = 'y' WHERE id = 3;"]),
    Lesson("spilled-rollback", "frames of a transaction that was rolled back stand in the file until others overwrite them", PLAIN + fill("t", 1, 200),
           ["UPDATE t SET v = 'first' WHERE id = 1;", roll_back_after_spilling, "UPDATE t SET v = 'second' WHERE id = 1;"], holds=lambda wal: wal.frames_in_file() > sum(wal.transactions())),
    Lesson("freed-page-reused", "a page that one tree frees holds another's rows in the same transaction",
           PLAIN + "CREATE TABLE u (id INTEGER PRIMARY KEY, v TEXT);" + fill("t", 1, 100),
           ["DELETE FROM t; " + fill("u", 1, 60), "CREATE TABLE w (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t SELECT * FROM u; DROP TABLE u;" + fill("w", 500, 540)]),
    Lesson("table-rebuilt", "SQLite's way to change a table: equal rows under another name are new rows", PLAIN + fill("t", 1, 40), [
        "CREATE TABLE t_new (id INTEGER PRIMARY KEY, v TEXT NOT NULL); INSERT INTO t_new SELECT * FROM t; DROP TABLE t;",
    ]),
    Lesson("create-index", "index pages are nobody's rows", PLAIN + fill("t", 1, 60), ["CREATE UNIQUE INDEX t_v ON t (v);", "UPDATE t SET v = 'x' || id WHERE id % 2;", "DROP INDEX t_v;"]),
    Lesson("triggers-and-cascade", "what triggers and foreign keys do is in the same transaction", """
        CREATE TABLE p (id INTEGER PRIMARY KEY, v); CREATE TABLE c (id INTEGER PRIMARY KEY, p_id REFERENCES p (id) ON DELETE CASCADE); CREATE TABLE log (what);
        CREATE TRIGGER gone AFTER DELETE ON c BEGIN INSERT INTO log VALUES ('c ' || old.id); END; INSERT INTO p VALUES (1, 'a'), (2, 'b'); INSERT INTO c VALUES (1, 1), (2, 1), (3, 2);""",
        [lambda db: db.executescript("PRAGMA foreign_keys = ON; DELETE FROM p WHERE id = 1;")]),
    Lesson("stale-frames-after-restart", "the log begins again at frame 1 under new salts; older frames behind it are not part of it", PLAIN + fill("t", 1, 100),
           [fill("t", 200, 300), restart, "UPDATE t SET v = 'new generation' WHERE id = 1;"], holds=lambda wal: wal.frames_in_file() > sum(wal.transactions())),
    Lesson("partial-last-frame", "a transaction whose commit frame is not whole did not happen", PLAIN + fill("t", 1, 5),
           ["INSERT INTO t VALUES (6, 'kept');", "INSERT INTO t VALUES (7, 'lost');"], tamper=lambda wal: wal[:-100]),
    Lesson("bit-flip", "the log ends before the first frame whose checksum is wrong, though whole frames follow", PLAIN + fill("t", 1, 5),
           ["INSERT INTO t VALUES (6, 'kept');", "INSERT INTO t VALUES (7, 'lost');", "INSERT INTO t VALUES (8, 'lost, too');"], tamper=lambda wal: fixture_wal.flip_bit(wal, 2)),
    Lesson("header-only", "a WAL that ends after its header holds nothing", PLAIN + fill("t", 1, 5), ["INSERT INTO t VALUES (6, 'lost');"], tamper=lambda wal: wal[:32]),
]
