"""An outside oracle: random schemas and workloads by the SQLite that Python brings, in processes of their own, while `woodchuck tail` follows.

usage: adversary.py WOODCHUCK SEED DIRECTORY [ROUNDS] [STEPS]

Each round copies the database, follows it with two tails (sql and json), works on it, ends the tails and then compares:
 * the copy after running the script (Python's executescript, and the sqlite3 shell where there is one) with the database;
 * a model of the rows, which every JSON line must fit, with the database.
The last line on success is `ok transactions=N changes=N`. A failure ends with a traceback; DIRECTORY keeps the files.
"""
import base64
import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from collections import Counter

QUOTE = '"'


def quoted(name):
    return QUOTE + name.replace(QUOTE, QUOTE * 2) + QUOTE


# ---------------------------------------------------------------- the application's processes

def worker(path, cache):
    """Runs what it is told, line by line, and answers with rows or an error."""
    db = sqlite3.connect(path, isolation_level=None, timeout=5)
    db.text_factory = lambda b: b.decode("utf-8", "surrogateescape")
    db.execute("PRAGMA cache_size=%d" % cache)
    db.execute("PRAGMA synchronous=OFF")
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "blob" in order:
                table, column, rowid, offset, data = order["blob"]
                with db.blobopen(table, column, rowid) as blob:
                    data = bytes.fromhex(data)[: max(0, len(blob) - offset)]
                    blob.seek(min(offset, len(blob)))
                    blob.write(data)
                answer = {"rows": []}
            else:
                rows = db.execute(order["sql"]).fetchall()
                rows = [[v.hex() if isinstance(v, bytes) else v for v in row] for row in rows[:500]]
                answer = {"rows": rows}
        except Exception as error:
            answer = {"error": "%s: %s" % (type(error).__name__, error)}
        answer["in_tx"] = db.in_transaction
        print(json.dumps(answer), flush=True)
    db.close()


def noise(path, seed):
    """Writes to a table of its own as fast as it can, until told to stop."""
    rnd = random.Random(seed)
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute("PRAGMA synchronous=OFF")
    os.set_blocking(0, False)
    while not sys.stdin.buffer.read():
        try:
            what = rnd.random()
            if what < 0.1:
                db.execute("PRAGMA wal_checkpoint(%s)" % rnd.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"]))
            elif what < 0.6:
                db.execute("INSERT INTO noise VALUES(?,?)", (rnd.randrange(1000), rnd.randbytes(rnd.choice([5, 50, 3000]))))
            elif what < 0.9:
                db.execute("UPDATE noise SET b=? WHERE rowid=?", (rnd.randbytes(20), rnd.randrange(200)))
            else:
                db.execute("DELETE FROM noise WHERE rowid%7=?", (rnd.randrange(7),))
        except sqlite3.OperationalError:
            pass
    db.close()


class Worker:
    def __init__(self, path, cache):
        self.process = subprocess.Popen([sys.executable, __file__, "--worker", path, str(cache)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.in_tx = False

    def order(self, order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.in_tx = answer["in_tx"]
        return answer

    def sql(self, sql):
        return self.order({"sql": sql})

    def rows(self, sql):
        return self.sql(sql).get("rows", [])

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()


# ---------------------------------------------------------------- the generator

NAMES = ["t", "u", "v w", "select", "it's", 'q"uote', "[br]", "\U0001F43F", "new\nline", "%like_", "sqlitedata", "my_woodchuck_x",
         "semi;colon", "back`tick", "--c", "/*x*/", "Ünï", "T1", "table", "group", "a.b", "0digit", "key", "rows", "temp", "main", "x\ty"]
COLUMNS = ["id", "a", "b", "c", "d e", "order", "it's", 'co"l', "[x]", "\U0001F984", "n\nl", "rowid", "oid", "value", "Key", "--", "default",
           "_rowid_", "check", "blob", "A1", "é", "x;y"]
TYPES = ["INTEGER", "INT", "BIGINT", "TEXT", "VARCHAR(10)", "REAL", "DOUBLE", "FLOATING POINT", "BLOB", "", "NUMERIC", "DECIMAL(10,2)",
         "BOOLEAN", "DATE", "ANY", "unsigned big int", "CHAR(3)"]
STRICT_TYPES = ["INT", "INTEGER", "REAL", "TEXT", "BLOB", "ANY"]
COLLATIONS = ["", "", "", " COLLATE NOCASE", " COLLATE RTRIM", " COLLATE BINARY"]
WORDS = ["", "a", "A", "b", "B ", "b", "abc", "ABC", "12", "1.0", " 7", "1e3", "2024-01-01", "true", "o'clock", "\U0001F600", "é", "line\nbreak\n.quit\n",
         "tab\t", "nul", "--", ";", "x" * 300, "9223372036854775808", "0x10", "\r\n", "\\n", "%s", "\u2028"]


class Generator:
    def __init__(self, rnd, main):
        self.rnd = rnd
        self.main = main  # a worker, to look at the schema
        self.log = []

    def literal(self, kind=""):
        rnd = self.rnd
        kind = kind.upper()
        if rnd.random() < 0.08:
            return "NULL"
        if kind in ("INT", "INTEGER") or (kind != "TEXT" and kind != "BLOB" and kind != "REAL" and rnd.random() < 0.35):
            return str(rnd.choice([0, 1, 2, 3, rnd.randrange(100), rnd.randrange(-130, 130), rnd.randrange(-40000, 40000), 2**23, -2**31, 2**31, 2**47,
                                   2**53 + 1, 2**63 - 1, -2**63 + 1, rnd.randrange(2**60)]))
        if kind == "REAL" or (kind != "TEXT" and kind != "BLOB" and rnd.random() < 0.3):
            return rnd.choice(["3.0", "-0.0", "0.1", "1e300", "9e999", "-9e999", "1.5", "9007199254740993.0", "2.2250738585072014e-308", "4.9e-324",
                               "1e15", "123456789012345678.0", repr(rnd.random()), repr(rnd.uniform(-1e9, 1e9))])
        if kind == "BLOB" or (kind != "TEXT" and rnd.random() < 0.4):
            return rnd.choice(["x''", "x'00'", "x'%s'" % rnd.randbytes(rnd.choice([3, 20])).hex(), "randomblob(%d)" % rnd.choice([1, 400, 3000, 9000, 70000]),
                               "zeroblob(%d)" % rnd.choice([4, 5000])])
        if rnd.random() < 0.15:
            return rnd.choice(["CAST(x'ff' AS TEXT)", "CAST(x'c328c3' AS TEXT)", "'a'||char(0)||'b'", "char(0)", "printf('%.*c',{},'y')".format(rnd.choice([600, 5000, 40000])),
                               "CAST(x'eda080ff00' AS TEXT)", "CAST(x'00d8' AS TEXT)", "char(65279)||'bom'"])
        return "'" + rnd.choice(WORDS + [str(rnd.randrange(1000))]).replace("'", "''") + "'"

    def name(self, pool, used):
        free = [n for n in pool if n.lower() not in used]
        if not free or self.rnd.random() < 0.1:
            return "n%d" % self.rnd.randrange(10**6)
        return self.rnd.choice(free)

    def tables(self):
        """name -> list of (column, type, hidden, pk), plus kinds."""
        result = {}
        for (name, sql) in self.main.rows("SELECT name, sql FROM sqlite_schema WHERE type='table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name<>'noise'"):
            columns = self.main.rows("SELECT name, type, hidden, pk FROM pragma_table_xinfo('%s')" % name.replace("'", "''"))
            if columns and "VIRTUAL TABLE" not in (sql or "")[:30]:
                result[name] = columns
        return result

    def column(self, name, strict, may_unique, may_generate, others, add=False):
        rnd = self.rnd
        kind = rnd.choice(STRICT_TYPES if strict else TYPES)
        text = quoted(name) + (" " + kind if kind else "")
        if may_generate and others and rnd.random() < 0.15:
            other = quoted(rnd.choice(others))
            stored = "STORED" if rnd.random() < 0.5 and not add else "VIRTUAL"
            if strict:
                kind, text = "ANY", quoted(name) + " ANY"
            return text + " GENERATED ALWAYS AS (%s) %s" % (rnd.choice([other + "||'x'", "length(%s)" % other, other, "coalesce(%s,3.0)" % other]), stored)
        text += rnd.choice(COLLATIONS) if kind.upper() not in ("BLOB",) else ""
        what = rnd.random()
        if what < 0.12:
            text += " NOT NULL DEFAULT " + {"INT": "5", "INTEGER": "7", "REAL": "2.0", "TEXT": "'d''x'", "BLOB": "x'ab'"}.get(kind, rnd.choice(["5", "'d'", "2.0", "-3"]))
        elif what < 0.25:
            text += " DEFAULT " + {"INT": "5", "INTEGER": "7", "REAL": "2", "TEXT": "'12'", "BLOB": "x'ab'"}.get(kind, rnd.choice(["'12'", "2.0", "-3", "NULL", "x'00'", "+4", "TRUE", "(1+2)" if not add else "1e3"]))
        elif what < 0.32 and may_unique:
            text += " UNIQUE" + rnd.choice(["", " ON CONFLICT REPLACE", " ON CONFLICT IGNORE"])
        elif what < 0.36:
            text += " CHECK(typeof(%s)<>'nothing')" % quoted(name)
        return text

    def create_table(self, name=None):
        rnd = self.rnd
        tables = self.tables()
        name = name or self.name(NAMES, {t.lower() for t in tables})
        strict = rnd.random() < 0.15
        count = rnd.choice([1, 2, 3, 3, 4, 5, 6, 12])
        names = []
        for _ in range(count):
            names.append(self.name(COLUMNS, {n.lower() for n in names}))
        if len({"rowid", "oid", "_rowid_"} & {n.lower() for n in names}) == 3:
            names = [n for n in names if n != "oid"]
        key = rnd.choice(["none", "none", "integer", "integer", "auto", "int", "text", "composite", "desc", "without", "without", "without2"])
        parts, constraints, plain = [], [], []
        for index, column in enumerate(names):
            if index == 0 and key in ("integer", "auto", "int", "text", "desc", "without"):
                kind = {"integer": "INTEGER PRIMARY KEY", "auto": "INTEGER PRIMARY KEY AUTOINCREMENT", "int": "INT PRIMARY KEY", "text": "TEXT PRIMARY KEY",
                        "desc": "INTEGER PRIMARY KEY DESC", "without": rnd.choice(["TEXT COLLATE NOCASE PRIMARY KEY", "BLOB PRIMARY KEY", "TEXT PRIMARY KEY DESC", "INTEGER PRIMARY KEY"])}[key]
                parts.append(quoted(column) + " " + kind + rnd.choice(["", "", " ON CONFLICT REPLACE"] if key not in ("auto",) else [""]))
                plain.append(column)
                continue
            text = self.column(column, strict, True, index > 0, plain)
            parts.append(text)
            if "GENERATED" not in text:
                plain.append(column)
        if key in ("composite", "without2"):
            keys = rnd.sample(plain, min(len(plain), rnd.choice([1, 2, 3])))
            constraints.append("PRIMARY KEY(%s)" % ", ".join(quoted(k) + rnd.choice(["", " DESC", " COLLATE NOCASE", " COLLATE RTRIM ASC"]) for k in keys))
        if len(plain) > 1 and rnd.random() < 0.2:
            constraints.append("UNIQUE(%s)" % ", ".join(quoted(c) for c in rnd.sample(plain, 2)))
        others = [(t, [c for c in cs if c[3] == 1]) for t, cs in tables.items()]
        others = [(t, cs[0][0]) for t, cs in others if len(cs) == 1]
        if others and rnd.random() < 0.3:
            target, column = rnd.choice(others)
            constraints.append("FOREIGN KEY(%s) REFERENCES %s(%s) ON DELETE %s ON UPDATE %s" % (
                quoted(rnd.choice(plain)), quoted(target), quoted(column), rnd.choice(["CASCADE", "SET NULL", "RESTRICT"]), rnd.choice(["CASCADE", "NO ACTION"])))
        options = (["WITHOUT ROWID"] if key.startswith("without") else []) + (["STRICT"] if strict else [])
        comment = rnd.choice(["", "", "", "-- a comment\n", "/* c */ "])
        return "CREATE TABLE %s(%s%s)%s%s" % (quoted(name), comment, ", ".join(parts + constraints), " " if options else "", ", ".join(options))

    def index(self):
        rnd = self.rnd
        tables = self.tables()
        if not tables:
            return self.create_table()
        table = rnd.choice(list(tables))
        columns = [c[0] for c in tables[table]]
        name = quoted("i %d" % rnd.randrange(10**5))
        what = rnd.random()
        column = quoted(rnd.choice(columns))
        target = column + rnd.choice(["", " DESC", " COLLATE NOCASE"])
        if what < 0.2:
            target = rnd.choice(["length(%s)", "lower(%s)", "%s||'z'"]) % column
        where = " WHERE %s IS NOT NULL" % quoted(rnd.choice(columns)) if rnd.random() < 0.25 else ""
        return "CREATE %sINDEX %s ON %s(%s)%s" % (rnd.choice(["", "UNIQUE "]), name, quoted(table), target, where)

    def trigger(self):
        rnd = self.rnd
        tables = self.tables()
        if len(tables) < 2:
            return self.create_table()
        source, target = rnd.sample(list(tables), 2)
        event = rnd.choice(["INSERT", "UPDATE", "DELETE"])
        row = "OLD" if event == "DELETE" else "NEW"
        column = quoted(rnd.choice([c[0] for c in tables[source]]))
        writable = [c for c in tables[target] if c[2] == 0]
        into = quoted(rnd.choice(writable)[0])
        body = rnd.choice(["INSERT OR IGNORE INTO %s(%s) VALUES(%s.%s)" % (quoted(target), into, row, column),
                           "UPDATE OR IGNORE %s SET %s=%s.%s WHERE rowid%%5=0" % (quoted(target), into, row, column),
                           "DELETE FROM %s WHERE %s=%s.%s" % (quoted(target), into, row, column)])
        return "CREATE TRIGGER %s %s %s ON %s BEGIN %s; END" % (quoted("tr %d" % rnd.randrange(10**5)), rnd.choice(["AFTER", "BEFORE"]), event, quoted(source), body)

    def view(self):
        tables = self.tables()
        if not tables:
            return self.create_table()
        table = self.rnd.choice(list(tables))
        return "CREATE VIEW %s AS SELECT * FROM %s" % (quoted("view %d" % self.rnd.randrange(10**5)), quoted(table))

    def ddl(self):
        """A list of statements that belong together."""
        rnd = self.rnd
        tables = self.tables()
        what = rnd.choice(["create", "create", "index", "index", "trigger", "view", "drop", "drop_index", "add", "add", "add", "rename", "rename_column", "drop_column",
                           "rebuild", "rebuild", "recreate", "drop_create", "swap_names", "ctas", "drop_other", "analyze"])
        if not tables or what == "create":
            return [self.create_table()] if len(tables) < 8 else []
        table = rnd.choice(list(tables))
        columns = tables[table]
        plain = [c for c in columns if c[2] == 0]
        t = quoted(table)
        if what == "index":
            return [self.index()]
        if what == "trigger":
            return [self.trigger()]
        if what == "view":
            return [self.view()]
        if what == "drop" and len(tables) > 2:
            return ["DROP TABLE " + t]
        if what in ("drop_index", "drop_other"):
            kinds = ("index",) if what == "drop_index" else ("trigger", "view")
            found = self.main.rows("SELECT type,name FROM sqlite_schema WHERE sql IS NOT NULL AND type IN (%s)" % ",".join("'%s'" % k for k in kinds))
            if found:
                kind, name = rnd.choice(found)
                return ["DROP %s %s" % (kind.upper(), quoted(name))]
        if what == "add":
            name = self.name(COLUMNS, {c[0].lower() for c in columns})
            if name in ("rowid", "oid", "_rowid_"):
                name = "added"
            sql = self.main.rows("SELECT sql FROM sqlite_schema WHERE name='%s'" % table.replace("'", "''"))
            strict = bool(sql) and "STRICT" in sql[0][0][-20:]
            return ["ALTER TABLE %s ADD COLUMN %s" % (t, self.column(name, strict, False, True, [c[0] for c in plain], add=True))]
        if what == "rename":
            return ["ALTER TABLE %s RENAME TO %s" % (t, quoted(self.name(NAMES, {n.lower() for n in tables})))]
        if what == "rename_column":
            name = self.name(COLUMNS, {c[0].lower() for c in columns})
            if name in ("rowid", "oid", "_rowid_"):
                name = "renamed"
            return ["ALTER TABLE %s RENAME COLUMN %s TO %s" % (t, quoted(rnd.choice(columns)[0]), quoted(name))]
        if what == "drop_column":
            return ["ALTER TABLE %s DROP COLUMN %s" % (t, quoted(rnd.choice(columns)[0]))]
        if what in ("rebuild", "recreate", "swap_names", "drop_create"):
            fresh = "new%d" % rnd.randrange(1000)
            names = [c[0] for c in plain]
            if what == "rebuild":
                kinds = ["%s %s" % (quoted(c[0]), c[1] if rnd.random() < 0.8 else "") for c in plain]
                if rnd.random() < 0.4 and plain:
                    kinds[0] = quoted(plain[0][0]) + rnd.choice([" INTEGER PRIMARY KEY", " TEXT PRIMARY KEY"])
                if rnd.random() < 0.3:
                    kinds.append(quoted("extra%d" % rnd.randrange(9)) + " DEFAULT 4")
                if rnd.random() < 0.2 and len(kinds) > 1:
                    kinds.reverse()
                tail = " WITHOUT ROWID" if "PRIMARY KEY" in " ".join(kinds) and rnd.random() < 0.4 else ""
                listed = ",".join(map(quoted, names))
                return ["CREATE TABLE %s(%s)%s" % (quoted(fresh), ",".join(kinds), tail),
                        "INSERT OR IGNORE INTO %s(%s) SELECT %s FROM %s" % (quoted(fresh), listed, listed, t),
                        "DROP TABLE " + t, "ALTER TABLE %s RENAME TO %s" % (quoted(fresh), t)]
            if what == "recreate":
                return ["DROP TABLE " + t, self.create_table(table)] + [self.dml_into(table)]
            if what == "drop_create":
                # The new table takes schema row and perhaps the root page of the old one.
                sql = self.main.rows("SELECT sql FROM sqlite_schema WHERE type='table' AND name='%s'" % table.replace("'", "''"))
                new = self.name(NAMES, {n.lower() for n in tables})
                if rnd.random() < 0.6 and sql and sql[0][0].startswith("CREATE TABLE " + t):
                    create = sql[0][0].replace("CREATE TABLE " + t, "CREATE TABLE " + quoted(new), 1)
                else:
                    create = self.create_table(new)
                return ["DROP TABLE " + t, create, "INSERT INTO %s DEFAULT VALUES" % quoted(new)]
            other = rnd.choice(list(tables))
            if other != table:
                return ["ALTER TABLE %s RENAME TO %s" % (t, quoted(fresh)), "ALTER TABLE %s RENAME TO %s" % (quoted(other), t),
                        "ALTER TABLE %s RENAME TO %s" % (quoted(fresh), quoted(other))]
        if what == "ctas" and len(tables) < 9:
            return ["CREATE TABLE %s AS SELECT * FROM %s" % (quoted(self.name(NAMES, {n.lower() for n in tables})), t)]
        if what == "analyze" and rnd.random() < 0.5:
            return ["ANALYZE"]
        return [self.index()]

    def dml_into(self, table):
        return "INSERT OR IGNORE INTO %s DEFAULT VALUES" % quoted(table)

    def dml(self):
        rnd = self.rnd
        tables = self.tables()
        if not tables:
            return self.create_table()
        table = rnd.choice(list(tables))
        columns = tables[table]
        plain = [c for c in columns if c[2] == 0]
        t = quoted(table)
        hidden = {c[0].lower() for c in columns}
        rowid = next((n for n in ("rowid", "_rowid_", "oid") if n not in hidden), None)
        pk = [c for c in columns if c[3]]
        some = rnd.sample(plain, rnd.randrange(1, len(plain) + 1))
        listed = ",".join(quoted(c[0]) for c in some)
        values = lambda: "(" + ",".join(self.literal(c[1]) for c in some) + ")"
        pick = quoted(rnd.choice(columns)[0])
        where = rnd.choice(["%s=%s" % (pick, self.literal()), "%s>%s" % (pick, self.literal()), "length(%s)%%3=%d" % (pick, rnd.randrange(3)), "%s IS NULL" % pick,
                            "abs(random())%%7=%d" % rnd.randrange(7), "1", "%s BETWEEN %s AND %s" % (pick, self.literal("INT"), self.literal("INT"))])
        sets = ",".join("%s=%s" % (quoted(c[0]), rnd.choice([self.literal(c[1]), quoted(rnd.choice(columns)[0]), "%s+1" % quoted(c[0]), "%s||'.'" % quoted(c[0]), quoted(c[0])]))
                        for c in rnd.sample(plain, min(len(plain), rnd.choice([1, 1, 2]))))
        clause = rnd.choice(["", "", " OR IGNORE", " OR REPLACE", " OR REPLACE", " OR FAIL", " OR ABORT", " OR ROLLBACK"])
        what = rnd.random()
        if what < 0.30:
            return "INSERT%s INTO %s(%s) VALUES %s" % (clause, t, listed, ",".join(values() for _ in range(rnd.choice([1, 1, 2, 5, 20]))))
        if what < 0.34:
            return "REPLACE INTO %s(%s) VALUES %s" % (t, listed, values())
        if what < 0.37 and rowid:
            return "INSERT%s INTO %s(%s,%s) VALUES(%s,%s" % (clause, t, rowid, listed, rnd.choice(["1", "-5", "100", str(2**63 - 1), str(rnd.randrange(1000)), str(-2**63)]), values()[1:])
        if what < 0.47:
            n = rnd.choice([5, 30, 200, 200, 1500])
            kind = lambda c: rnd.choice(["n", "n+1000", "hex(randomblob(%d))" % rnd.choice([2, 20, 200]), "n%5", "n*1.5", "'k'||n", "randomblob(8)", self.literal(c[1]) if n < 300 else "n"])
            return "INSERT%s INTO %s(%s) WITH RECURSIVE s(n) AS (VALUES(%d) UNION ALL SELECT n+1 FROM s LIMIT %d) SELECT %s FROM s" % (
                rnd.choice([" OR IGNORE", " OR REPLACE"]), t, listed, rnd.choice([1, 1, 500, 10000]), n, ",".join(kind(c) for c in some))
        if what < 0.52 and len(pk) >= 1:
            return "INSERT INTO %s(%s) VALUES %s ON CONFLICT DO %s" % (t, listed, values(), rnd.choice(["NOTHING", "UPDATE SET " + sets]))
        if what < 0.68:
            return "UPDATE%s %s SET %s WHERE %s" % (clause, t, sets, where)
        if what < 0.74 and rowid:
            return "UPDATE%s %s SET %s=%s WHERE %s" % (clause, t, rowid, rnd.choice([rowid + "+1000", "-" + rowid, "%d" % rnd.randrange(300)]), where)
        if what < 0.84:
            return "DELETE FROM %s WHERE %s" % (t, where)
        if what < 0.86:
            return "DELETE FROM " + t
        if what < 0.90 and rowid:
            low = rnd.randrange(1500)
            return "DELETE FROM %s WHERE %s BETWEEN %d AND %d" % (t, rowid, low, low + rnd.choice([3, 50, 800]))
        if what < 0.94 and pk and plain:
            key = quoted(pk[0][0])
            return "UPDATE OR REPLACE %s SET %s=%s WHERE %s IN (SELECT %s FROM %s LIMIT 3)" % (t, key, rnd.choice(["%s+1" % key, "%s||'x'" % key, "-%s" % key, "upper(%s)" % key, "lower(%s)" % key]), key, key, t)
        if what < 0.97:
            return "INSERT OR IGNORE INTO %s(%s) SELECT %s FROM %s" % (t, listed, listed, t)
        return "UPDATE %s SET %s=%s" % (t, pick, pick)

    def swap(self):
        tables = self.tables()
        if not tables:
            return []
        table = self.rnd.choice(list(tables))
        columns = [c for c in tables[table] if c[2] == 0]
        c, t = quoted(self.rnd.choice(columns)[0]), quoted(table)
        keys = [k for k in tables[table] if k[3]]
        k = quoted(keys[0][0]) if keys and self.rnd.random() < 0.5 else c
        rows = self.main.rows("SELECT typeof(%s),quote(%s) FROM %s WHERE %s IS NOT NULL ORDER BY random() LIMIT 2" % (k, k, t, k))
        if len(rows) < 2 or any(r[0] == "text" and "\x00" in r[1] for r in rows):
            return []
        a, b = rows[0][1], rows[1][1]
        return ["UPDATE %s SET %s=-98765 WHERE %s=%s" % (t, k, k, a), "UPDATE %s SET %s=%s WHERE %s=%s" % (t, k, a, k, b), "UPDATE %s SET %s=%s WHERE %s=-98765" % (t, k, b, k)]


# ---------------------------------------------------------------- the state as SQLite tells it

class Text(bytes):
    pass


def connect_raw(path):
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.text_factory = Text
    return db


def cell(value):
    if isinstance(value, float):
        return ("r", struct.pack(">d", value).hex())
    if isinstance(value, Text):
        return ("t", bytes(value))
    if isinstance(value, bytes):
        return ("b", value)
    return value


def catalogue(db):
    """table -> (stored column names, pk column names, rowid name, is_identified_by_rowid, without_rowid)"""
    result = {}
    for name, sql in db.execute("SELECT name, sql FROM sqlite_schema WHERE type='table'").fetchall():
        name = name.decode()
        if name == "sqlite_stat4" or b"VIRTUAL TABLE" in (sql or b"")[:30].upper():
            continue
        info = db.execute("SELECT name, type, hidden, pk FROM pragma_table_xinfo(?)", (name,)).fetchall()
        without = db.execute("SELECT wr FROM pragma_table_list WHERE schema='main' AND name=?", (name,)).fetchone()[0]
        names = [c[0].decode() for c in info]
        stored = [c[0].decode() for c in info if c[2] in (0, 3)]
        pk = [c[0].decode() for c in sorted((c for c in info if c[3]), key=lambda c: c[3])]
        rowid = None if without else next((n for n in ("rowid", "_rowid_", "oid") if n not in [x.lower() for x in names]), None)
        result[name] = (stored, names, pk, rowid, without)
    return result


def dump(path):
    db = connect_raw(path)
    state = {"schema": sorted((r[0], r[1], r[2], r[3]) for r in db.execute("SELECT type,name,tbl_name,sql FROM sqlite_schema").fetchall() if r[1] != b"sqlite_stat4")}
    state["triggers"] = [(r[1], r[0]) for r in db.execute("SELECT name,tbl_name FROM sqlite_schema WHERE type='trigger' ORDER BY tbl_name, rowid").fetchall()]
    for name, (stored, names, pk, rowid, without) in catalogue(db).items():
        identified = not pk and not name.startswith("sqlite_")
        nullable = pk and not without
        columns = ["%s,typeof(%s),CAST(%s AS BLOB)" % ((quoted(c),) * 3) for c in names]
        if rowid and identified:
            columns.append(rowid)
        elif rowid and nullable:
            columns.append("CASE WHEN %s THEN %s END" % (" OR ".join(quoted(c) + " IS NULL" for c in pk), rowid))
        rows = db.execute("SELECT %s FROM %s NOT INDEXED" % (",".join(columns), quoted(name))).fetchall()
        state["rows " + name] = Counter(tuple(cell(v) for v in row) for row in rows)
    db.close()
    return state


def compare(got, want, what):
    if "rows sqlite_sequence" not in want and not got.get("rows sqlite_sequence", True):
        # VACUUM forgets the table when nothing counts in it; nothing else can.
        got["schema"] = [row for row in got["schema"] if row[1] != b"sqlite_sequence"]
        del got["rows sqlite_sequence"]
    for key in sorted(set(got) | set(want)):
        a, b = got.get(key), want.get(key)
        if a == b:
            continue
        if isinstance(a, Counter) and isinstance(b, Counter):
            extra, missing = list((a - b).items()), list((b - a).items())
            raise AssertionError("%s: %s differ: %d too many %.1500r\n%d missing %.1500r" % (what, key, len(extra), extra[:3], len(missing), missing[:3]))
        if isinstance(a, list) and isinstance(b, list):
            raise AssertionError("%s: %s differ:\ntoo many %r\nmissing  %r" % (what, key, [x for x in a if x not in b], [x for x in b if x not in a]))
        raise AssertionError("%s: %s differ: %.500r / %.500r" % (what, key, a, b))


# ---------------------------------------------------------------- the JSON lines against a model

def js(value):
    """A value as the JSON lines have it."""
    if isinstance(value, float):
        if value in (float("inf"), float("-inf")):
            return {"real": "Infinity" if value > 0 else "-Infinity"}
        return ("real", struct.pack(">d", value).hex())
    if isinstance(value, Text):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            return {"text": base64.b64encode(value).decode()}
    if isinstance(value, bytes):
        return {"blob": base64.b64encode(value).decode()}
    return value


def exact(value, raw, encoding):
    """UTF-16 text as it is stored: on its way to UTF-8 SQLite joins whatever follows half a surrogate pair with it."""
    if isinstance(value, Text) and encoding != b"UTF-8":
        raw = raw[: len(raw) // 2 * 2]
        return Text(raw.decode("utf-16-le" if encoding == b"UTF-16le" else "utf-16-be", "surrogatepass").encode("utf-8", "surrogatepass"))
    return value


def frozen(row):
    return json.dumps(row, sort_keys=True)


def parse_line(line):
    return json.loads(line, parse_float=lambda text: ("real", struct.pack(">d", float(text)).hex()))


def model_of(path):
    db = connect_raw(path)
    encoding = bytes(db.execute("PRAGMA encoding").fetchone()[0])
    model = {}
    for name, (stored, names, pk, rowid, without) in catalogue(db).items():
        columns = [quoted(c) for c in stored]
        columns += ["CAST(%s AS BLOB)" % c for c in columns] if encoding != b"UTF-8" else columns
        rows = Counter()
        for row in db.execute("SELECT %s FROM %s NOT INDEXED" % (",".join(columns), quoted(name))):
            image = {c: js(exact(v, raw, encoding)) for c, v, raw in zip(stored, row, row[len(stored):])}
            rows[frozen(image)] += 1
        model[name.lower()] = (rows, stored)
    db.close()
    return model


def shape_of(sql):
    """(name, stored columns, {column: default as JSON})"""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.text_factory = Text
    db.execute("PRAGMA foreign_keys=OFF")
    db.execute(sql)
    (name, (stored, names, pk, rowid, without)), = [x for x in catalogue(db).items() if not x[0].startswith("sqlite_")]
    strict = db.execute("SELECT strict FROM pragma_table_list WHERE name=?", (name,)).fetchone()[0]
    defaults = {}
    for column, kind, default, hidden in db.execute("SELECT name,type,dflt_value,hidden FROM pragma_table_xinfo(?)", (name,)).fetchall():
        value = None
        if default is not None and hidden == 0:
            # What a record without the column means is not what an insert would store: without an affinity 2.0 is read as the integer 2.
            db.execute("CREATE TEMP TABLE d(y INT)%s" % (" STRICT" if strict else ""))
            db.execute("INSERT INTO temp.d VALUES(0)")
            for clause in ("%s", "(%s)"):
                try:
                    db.execute("ALTER TABLE temp.d ADD COLUMN x %s DEFAULT %s" % (kind.decode(), clause % default.decode()))
                    value = js(db.execute("SELECT x FROM temp.d").fetchone()[0])
                    break
                except sqlite3.OperationalError:
                    pass
            db.execute("DROP TABLE temp.d")
        defaults[column.decode()] = value
    db.close()
    return name, stored, defaults


def check_json(model, lines):
    transactions = changes = 0
    counted = None
    dropped = {}
    for line in lines:
        event = parse_line(line)
        op = event["op"]
        if op == "begin":
            counted = 0
        elif op == "commit":
            assert event["changes"] == counted, ("changes counted", counted, line)
            transactions += 1
            changes += counted
            for name, rows in dropped.items():
                assert not +rows, "rows of a dropped table were not deleted: %s %.500r" % (name, list((+rows).items())[:3])
            dropped = {}
        elif op == "schema":
            if event["type"] != "table" or "VIRTUAL TABLE" in (event["after"] or event["before"])[:40].upper() or event["name"].startswith("sqlite_"):
                if event["name"].startswith("sqlite_") and event["after"] and event["name"] != "sqlite_stat4":
                    model.setdefault(event["name"].lower(), (Counter(), []))
                continue
            if event["before"] and event["after"]:
                old_name, _, _ = shape_of(event["before"])
                name, stored, defaults = shape_of(event["after"])
                # Names can be exchanged within a transaction, so what is taken away is kept until all are placed.
                moved = check_json.moved
                if moved.get("tx") != event["tx"]:
                    moved.clear()
                    moved["tx"] = event["tx"]
                if old_name.lower() in moved:
                    rows, had = moved[old_name.lower()]
                else:
                    rows, had = model.pop(old_name.lower())
                if name.lower() in model:
                    moved[name.lower()] = model.pop(name.lower())
                reshaped = Counter()
                low = [c.lower() for c in had]
                new_low = [c.lower() for c in stored]
                renamed = event.get("renamed_columns")
                renames = {now.lower(): was.lower() for was, now in renamed or []}
                for row, count in rows.items():
                    image = json.loads(row)
                    values = [image[c] for c in had]
                    fresh = {}
                    for index, column in enumerate(stored):
                        if column.lower() in low:
                            fresh[column] = values[low.index(column.lower())]
                        elif renames.get(column.lower()) in low:
                            fresh[column] = values[low.index(renames[column.lower()])]
                        elif renamed is None and index < len(had) and low[index] not in new_low:
                            fresh[column] = values[index]
                        else:
                            fresh[column] = defaults[column]
                    reshaped[frozen(fresh)] += count
                model[name.lower()] = (reshaped, stored)
            elif event["before"]:
                dropped[event["name"].lower()] = model.pop(event["name"].lower())[0]
            elif event["after"]:
                name, stored, _ = shape_of(event["after"])
                if model.get(name.lower(), (None,))[0]:
                    raise AssertionError("a new table has rows: %s" % line[:300])
                model[name.lower()] = (Counter(), stored)
        else:
            counted += 1
            table = event["table"].lower()
            if table == "sqlite_stat4":
                continue
            if op == "delete" and dropped.get(table, {}).get(frozen(event["before"]), 0) > 0:
                dropped[table][frozen(event["before"])] -= 1
                continue
            rows, stored = model[table]
            key = event["key"]
            image = event.get("after", event.get("before"))
            if "rowid" not in key:
                for column, value in key.items():
                    assert image[column] == value, ("key and image differ", line[:500])
            assert ("before" in event) == (op != "insert") and ("after" in event) == (op != "delete"), line[:500]
            if "before" in event:
                entry = frozen(event["before"])
                assert rows[entry] > 0, "the image before is not in the model: %.800s\nmodel has %.600r" % (line, [r for r in rows if rows[r]][:4])
                rows[entry] -= 1
                if not rows[entry]:
                    del rows[entry]
            if "after" in event:
                if op == "update":
                    assert event["before"] != event["after"], ("nothing changed", line[:500])
                rows[frozen(event["after"])] += 1
    return transactions, changes


check_json.moved = {}


# ---------------------------------------------------------------- one seed

class Tail:
    def __init__(self, woodchuck, path, form, out):
        self.out = open(out, "wb")
        self.out_path = out
        self.process = subprocess.Popen([woodchuck, "tail", path, "--format", form], stdout=self.out, stderr=subprocess.PIPE)
        self.notes = self.process.stderr.readline()
        assert self.notes.startswith(b"following"), self.notes + self.process.stderr.read()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.notes = self.process.stderr.read()
        code = self.process.wait(60)
        self.out.close()
        assert code == 0, "tail ended with %s: %s" % (code, self.notes.decode())


def copy_closed(source, target):
    subprocess.run(["cp", source, target], check=True)


def run(woodchuck, seed, directory, rounds, steps):
    rnd = random.Random(seed)
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, rnd.choice(["app.db", "app.db", "odd name.db", "x'y\".db"]))
    journal = open(os.path.join(directory, "statements.sql"), "w", encoding="utf-8", errors="surrogateescape")
    db = sqlite3.connect(path, isolation_level=None)
    size = rnd.choice([512, 512, 1024, 1024, 4096, 4096, 8192, 65536])
    setup = ["PRAGMA page_size=%d" % size, "PRAGMA encoding='%s'" % rnd.choice(["UTF-8", "UTF-8", "UTF-8", "UTF-16le", "UTF-16be"]),
             "PRAGMA auto_vacuum=%d" % rnd.choice([0, 0, 1, 2]), "PRAGMA journal_mode=WAL", "CREATE TABLE noise(a, b)"]
    for sql in setup:
        journal.write(sql + ";\n")
        db.execute(sql)
    db.close()
    total = all_changes = 0
    foreign_keys = rnd.random() < 0.5
    for number in range(rounds):
        cache = rnd.choice([5, 20, -2000])
        helper = Worker(path, -2000)
        generator = Generator(rnd, helper)

        def order(worker, order):
            journal.write("/* %s */ %s;\n" % ("helper" if worker is helper else workers.index(worker), order.get("sql") or order))
            journal.flush()
            answer = worker.order(order)
            if "error" in answer:
                journal.write("-- %s\n" % answer["error"].replace("\n", " "))
            return answer

        workers = []
        if number == 0:
            for _ in range(rnd.choice([2, 3, 5])):
                order(helper, {"sql": generator.create_table()})
            for _ in range(rnd.randrange(3)):
                order(helper, {"sql": generator.index()})
            if rnd.random() < 0.5:
                order(helper, {"sql": generator.trigger()})
            for _ in range(8):
                order(helper, {"sql": generator.dml()})
        first = os.path.join(directory, "first%d.db" % number)
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(first + suffix):
                os.unlink(first + suffix)
        # With a log that has frames: some rounds attach to a database that is in the middle of its work.
        if rnd.random() < 0.5:
            helper.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        helper.close()
        closed = not os.path.exists(path + "-wal")
        if closed:
            copy_closed(path, first)
        else:
            source, target = sqlite3.connect(path), sqlite3.connect(first)
            source.backup(target)
            source.close()
            target.close()
        keep = Worker(path, -2000)  # another application that has the database open
        keep.sql("SELECT count(*) FROM sqlite_schema")
        helper = Worker(path, -2000)
        generator.main = helper
        model = model_of(first)
        scripts = [Tail(woodchuck, path, "sql", os.path.join(directory, "script%d.sql" % number)), Tail(woodchuck, path, "json", os.path.join(directory, "lines%d.jsonl" % number))]
        workers.extend(Worker(path, cache) for _ in range(rnd.choice([1, 2, 3])))
        for w in workers:
            if foreign_keys:
                w.sql("PRAGMA foreign_keys=ON")
            w.sql("PRAGMA recursive_triggers=%d" % rnd.randrange(2))
            w.sql("PRAGMA busy_timeout=50")
        noisy = None
        if rnd.random() < 0.4:
            noisy = subprocess.Popen([sys.executable, __file__, "--noise", path, str(seed)], stdin=subprocess.PIPE)
        for step in range(steps):
            w = rnd.choice(workers)
            what = rnd.random()
            if what < 0.06:
                order(w, {"sql": "PRAGMA wal_checkpoint(%s)" % rnd.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])})
            elif what < 0.08:
                order(w, {"sql": "VACUUM"})
            elif what < 0.10:
                order(w, {"sql": "PRAGMA incremental_vacuum(%d)" % rnd.choice([1, 5, 0])})
            elif what < 0.12:
                # A long reader on one of the connections.
                order(w, {"sql": "BEGIN"})
                order(w, {"sql": "SELECT count(*) FROM noise"})
                continue
            elif what < 0.14:
                w.sql("BEGIN IMMEDIATE")
                order(w, {"sql": generator.dml()})
                journal.write("-- killed\n")
                w.kill()
                workers[workers.index(w)] = w = Worker(path, cache)
                w.sql("PRAGMA busy_timeout=50")
            elif what < 0.18:
                tables = generator.tables()
                for table, columns in tables.items():
                    if any(c[2] for c in columns):
                        continue  # a generated column would not follow, and no script can say so
                    found = helper.rows("SELECT rowid FROM %s WHERE typeof(%s)='blob' AND length(%s)>0 ORDER BY random() LIMIT 1" % (quoted(table), quoted(columns[-1][0]), quoted(columns[-1][0])))
                    if found:
                        order(w, {"blob": [table, columns[-1][0], found[0][0], rnd.choice([0, 1, 600, 4000]), rnd.randbytes(3).hex()]})
                        break
            elif what < 0.45:
                order(w, {"sql": generator.dml()})
            elif what < 0.55:
                order(w, {"sql": "BEGIN IMMEDIATE"})
                for sql in generator.ddl():
                    order(w, {"sql": sql})
                    if rnd.random() < 0.3 and w.in_tx:
                        order(w, {"sql": generator.dml()})
            elif what < 0.60:
                order(w, {"sql": "BEGIN IMMEDIATE"})
                for sql in generator.swap():
                    order(w, {"sql": sql})
            elif what < 0.65:
                for sql in generator.ddl():
                    order(w, {"sql": sql})
            else:
                order(w, {"sql": rnd.choice(["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])})
                for _ in range(rnd.choice([1, 2, 5, 12])):
                    what = rnd.random()
                    if what < 0.06:
                        order(w, {"sql": "SAVEPOINT s"})
                    elif what < 0.10:
                        order(w, {"sql": rnd.choice(["ROLLBACK TO s", "RELEASE s"])})
                    elif what < 0.18:
                        for sql in generator.ddl():
                            order(w, {"sql": sql})
                    else:
                        order(w, {"sql": generator.dml()})
            if w.in_tx:
                order(w, {"sql": "ROLLBACK" if rnd.random() < 0.15 else "COMMIT"})
            if w.in_tx:
                order(w, {"sql": "ROLLBACK"})
        if noisy:
            noisy.communicate(b"x")
        if os.environ.get("KEEP_LOG"):
            subprocess.run(["cp", path + "-wal", os.path.join(directory, "log%d" % number)])
        for w in workers + [helper]:
            w.close()
        if rnd.random() < 0.5:
            keep.close()
            keep = None
        for tail in scripts:
            tail.stop()
        if keep:
            keep.close()
        elif len(os.listdir(directory)) and os.path.exists(path + "-wal"):
            raise AssertionError("-wal was left by the last to close")
        want = dump(path)
        check = sqlite3.connect(path)
        # Incremental blob I/O and lower() of text that is no text can leave an index behind its table; that is the application's business.
        found = [text for (text,) in check.execute("PRAGMA integrity_check") if text != "ok" and " index " not in text]
        assert not found, "the live database: %s" % found
        check.close()
        # The lines.
        with open(scripts[1].out_path, encoding="utf-8", newline="\n") as lines:
            transactions, changes = check_json(model, lines)
        final = model_of(path)
        for name in sorted(set(model) | set(final)):
            a, b = model.get(name, (Counter(),))[0], final.get(name, (Counter(),))[0]
            a, b = +a, +b
            assert a == b or name.startswith("sqlite_stat"), "json: %s differs: too many %.800r\nmissing %.800r" % (name, list((a - b).items())[:3], list((b - a).items())[:3])
        # The script.
        replayed = os.path.join(directory, "python%d.db" % number)
        shutil.copy(first, replayed)
        script = open(scripts[0].out_path, encoding="utf-8", newline="").read()
        db = sqlite3.connect(replayed, isolation_level=None)
        db.executescript(script)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "the replayed copy"
        db.close()
        compare(dump(replayed), want, "python's copy")
        shell = shutil.which("sqlite3")
        if shell and number == 0:
            replayed = os.path.join(directory, "shell%d.db" % number)
            shutil.copy(first, replayed)
            done = subprocess.run([shell, "-bail", replayed], stdin=open(scripts[0].out_path, "rb"), capture_output=True)
            assert done.returncode == 0, "the shell: %s" % done.stderr.decode("utf-8", "replace")[:500]
            compare(dump(replayed), want, "the shell's copy")
        total += transactions
        all_changes += changes
    print("ok transactions=%d changes=%d" % (total, all_changes))


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "--noise":
        noise(sys.argv[2], int(sys.argv[3]))
    else:
        numbers = [int(v) for v in sys.argv[4:6]] + [3, 25][len(sys.argv) - 4:]
        run(sys.argv[1], int(sys.argv[2]), sys.argv[3], *numbers)
