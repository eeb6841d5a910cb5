"""Replays a migration that was recorded, under writers that know nothing of it. fixtures/README.md has the format of the recordings.

usage: migration.py DATABASE before RECORDING        makes the database as it was, with some rows
       migration.py DATABASE migrate RECORDING       runs what was recorded, statement by statement
       migration.py DATABASE write RECORDING NODE SEED FILE
                                                     until FILE exists: rows of its own in every table; prints what it was told is there
       migration.py DATABASE check RECORDING LEDGER...
                                                     fails unless all of that is there, once, and nothing that was deleted
"""
import json
import os
import random
import sqlite3
import sys
import time

SEEDED = 60
NODE_KEYS = 1_000_000
# A migration that reads before it writes is told at once that somebody else has written. People run it again then, and so does this.
TRIES_MAX = 200

path, mode, recording, args = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
db = sqlite3.connect(path, isolation_level=None, timeout=30)


def read(name):
    """The tables with their names and the names of the column that tells rows apart for us, and the statements of both parts."""
    tables, parts, part, statement = {}, {"before": [], "migration": []}, None, ""
    for line in open(name, encoding="utf-8"):
        words = line.split()
        if words[:2] == ["--", "rows:"]:
            tables[words[2]] = {"names": words[3].split("|"), "tags": words[4].split("|")}
        elif words[:1] == ["--"] and words[1:2] and words[1] in parts and len(words) == 2:
            part = words[1]
        elif part and (statement or not line.startswith("--")) and (statement or line.strip()):
            statement += line
            if sqlite3.complete_statement(statement):
                parts[part].append(statement.strip())
                statement = ""
    assert tables and all(parts.values()) and not statement, name
    return tables, parts["before"], parts["migration"]


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def made_up(column, number, parents):
    """A value that a column takes whatever its constraints in the recordings are."""
    name, declared = column[1], column[2].lower()
    if name in parents:
        return 1 + number % SEEDED
    if "bool" in declared:
        return number % 2
    if "int" in declared:
        return number
    if "date" in declared or "time" in declared:
        return "2026-01-02 03:04:05"
    if any(word in declared for word in ("real", "float", "double", "dec", "numeric")):
        return number + 0.5
    return "value %d" % number


def insert(table, number, tag=None, token=None):
    columns = db.execute("PRAGMA table_xinfo(%s)" % quoted(table)).fetchall()
    parents = {row[3] for row in db.execute("PRAGMA foreign_key_list(%s)" % quoted(table))}
    row = {}
    for column in columns:
        name, hidden = column[1], column[6]
        if hidden:
            continue
        if name == "id":
            row[name] = number
        elif name == tag:
            row[name] = token
        # Columns that may be empty are, in every other row.
        elif column[3] or number % 2:
            row[name] = made_up(column, number, parents)
    names, marks = ", ".join(map(quoted, row)), ", ".join("?" * len(row))
    db.execute("INSERT INTO %s(%s) VALUES(%s)" % (quoted(table), names, marks), list(row.values()))


def migrate(statements):
    at, begun, tries = 0, 0, 0
    while at < len(statements):
        if not db.in_transaction:
            begun = at
        try:
            # Rows that a statement returns are read to their end: it is not over before.
            db.execute(statements[at]).fetchall()
            at += 1
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or tries == TRIES_MAX:
                raise
            tries += 1
            if db.in_transaction:
                db.execute("ROLLBACK")
            at = begun
            time.sleep(0.01)


def find(known):
    """Where a table is at the moment, and under which name its column."""
    for name in known["names"]:
        columns = {row[1] for row in db.execute("PRAGMA table_xinfo(%s)" % quoted(name))}
        for tag in known["tags"]:
            if tag in columns:
                return name, tag
    return None


def write(tables, node, seed, until):
    rnd, number = random.Random(seed), 0
    ledger = {table: {"rows": {}, "deleted": [], "lost": []} for table in tables}
    db.execute("PRAGMA foreign_keys = ON")
    while not os.path.exists(until):
        time.sleep(rnd.random() * 0.008)
        number += 1
        table = rnd.choice(sorted(tables))
        own, place = ledger[table], find(tables[table])
        if place is None:
            continue
        (name, tag), token = place, "token %d of %d" % (number, node)
        kind = rnd.choice(["insert", "insert", "insert", "update", "update", "delete", "shared"])
        try:
            if kind == "shared":
                db.execute("UPDATE %s SET %s = ? WHERE id = ?" % (quoted(name), quoted(tag)), (token, rnd.randint(1, SEEDED)))
            elif kind == "insert" or not own["rows"]:
                key = node * NODE_KEYS + number
                insert(name, key, tag, token)
                own["rows"][key] = token
            else:
                key = rnd.choice(sorted(own["rows"]))
                sql = "DELETE FROM %s WHERE id = ?" if kind == "delete" else "UPDATE %s SET " + quoted(tag) + " = ? WHERE id = ?"
                done = db.execute(sql % quoted(name), (key,) if kind == "delete" else (token, key)).rowcount
                if done != 1:
                    own["lost"].append(key)
                elif kind == "delete":
                    del own["rows"][key]
                    own["deleted"].append(key)
                else:
                    own["rows"][key] = token
        # A table or column that is called something else since it was looked for, and a constraint that came: the application's business.
        except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
            if "locked" in str(error):
                raise
    print(json.dumps(ledger))


def check(tables, ledgers):
    wrong, count = [], 0
    for ledger in map(json.loads, ledgers):
        for table, own in ledger.items():
            place = find(tables[table])
            wrong += ["%s: own row %s was gone" % (table, key) for key in own["lost"]]
            if place is None:
                wrong.append("%s: there is no such table" % table)
                continue
            cursor = db.execute("SELECT * FROM %s" % quoted(place[0]))
            at, found = [column[0] for column in cursor.description].index("id"), {}
            for row in cursor:
                found.setdefault(str(row[at]), []).append(row)
            for key, token in own["rows"].items():
                rows = found.get(key, [])
                count += 1
                if len(rows) != 1 or token not in rows[0]:
                    wrong.append("%s %s: %r, and the application wrote %r" % (table, key, rows, token))
            wrong += ["%s: deleted row %s is there" % (table, key) for key in own["deleted"] if str(key) in found]
    wrong += ["foreign key: %r" % (row,) for row in db.execute("PRAGMA foreign_key_check")]
    if wrong:
        sys.exit("%d wrong\n%s" % (len(wrong), "\n".join(wrong[:20])))
    print(count)


tables, before, migration = read(recording)
if mode == "before":
    for statement in before:
        db.execute(statement)
    db.execute("BEGIN")
    for name in tables:
        for number in range(1, SEEDED + 1):
            insert(name, number, tables[name]["tags"][0], "seed %d" % number)
    db.execute("COMMIT")
elif mode == "migrate":
    migrate(migration)
elif mode == "write":
    write(tables, int(args[0]), int(args[1]), args[2])
elif mode == "check":
    check(tables, args)
else:
    sys.exit(__doc__)
db.close()
