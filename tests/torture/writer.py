"""An application that keeps its own ledger and knows nothing of anybody.

usage: writer.py DATABASE LEDGER WRITER SEED COUNT [wild|paced|altering]

Commits transactions of one writer, COUNT of them or (0) until its standard input is closed, and appends the number of each to LEDGER once its commit has
returned. Every transaction has a part in every table, so that it can be told whether it is there whole and once:

    entry, entry_w, entry_k, bag   a row per transaction, under four kinds of key: bag has none but its rowid
    recent                         a row per transaction; the one of 20 transactions before is deleted
    total                          the writer's row: n counts its transactions, sum adds up their numbers, big is replaced
    shared, names                  rows that all writers of all nodes fight about; names has a UNIQUE beyond its key
    own_WRITER                     a wild or altering one's alone, if it is there: a row per transaction from some one on; made, altered, rebuilt,
                                   renamed and dropped in the midst of transactions

A wild one also checkpoints in all modes, closes and opens the database, vacuums it, and makes and drops an index of shared; a paced one writes
about 30 times a second; an altering one changes the schema in every third transaction. SQLITE_BUSY behind the timeout of 5 s is met by trying again; any other error ends it.
"""
import os
import random
import select
import sqlite3
import sys
import time

path, ledger_path, writer, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
wild, paced, altering = (sys.argv[6:] == [manner] for manner in ("wild", "paced", "altering"))
rnd = random.Random(seed)
ledger = os.open(ledger_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def connect():
    db = sqlite3.connect(path, isolation_level=None, timeout=5)
    if wild and rnd.random() < 0.3:
        db.execute("PRAGMA synchronous = NORMAL")
    if wild and rnd.random() < 0.3:
        db.execute("PRAGMA wal_autocheckpoint = %d" % rnd.choice([0, 10, 100]))
    return db


def own_table(db, number):
    """Changes the schema now and then, before and behind rows of the same transaction, and adds the transaction's row."""
    name = "own_%d" % writer
    found = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name IN (?, ?)", (name, name + "_moved")).fetchone()
    table = found[0] if found else None
    if table:
        db.execute("INSERT INTO %s(counter, note) VALUES (?, ?)" % table, (number, "row %d" % number))
    if rnd.random() > (0.3 if altering else 0.06):
        return
    if rnd.random() < 0.2:
        db.execute(rnd.choice(["CREATE INDEX IF NOT EXISTS shared_who ON shared(who)", "DROP INDEX IF EXISTS shared_who"]))
    if not table:
        without = rnd.choice(["", "", " WITHOUT ROWID"])
        db.execute("CREATE TABLE %s(counter INTEGER PRIMARY KEY, note TEXT)%s" % (name, without))
        db.execute("INSERT INTO %s(counter, note) VALUES (?, 'first')" % name, (number,))
        return
    columns = [row[1] for row in db.execute("PRAGMA table_info(%s)" % table)]
    extra = [column for column in columns if column not in ("counter", "note")]
    what = rnd.randrange(7)
    if what == 0:
        db.execute("DROP TABLE %s" % table)
        if rnd.random() < 0.5:
            db.execute("CREATE TABLE %s(counter INTEGER PRIMARY KEY, note TEXT)" % name)
            db.execute("INSERT INTO %s VALUES (?, 'again')" % name, (number,))
    elif what == 1 and len(extra) < 3:
        db.execute("ALTER TABLE %s ADD COLUMN extra_%d DEFAULT %d" % (table, number, number))
        db.execute("UPDATE %s SET extra_%d = counter WHERE counter %% 2" % (table, number))
    elif what == 2 and extra:
        db.execute("ALTER TABLE %s DROP COLUMN %s" % (table, rnd.choice(extra)))
    elif what == 3:
        db.execute("ALTER TABLE %s RENAME TO %s" % (table, name if table != name else name + "_moved"))
    elif what == 4:
        rest = "".join(", " + column for column in extra)
        db.execute("CREATE TABLE %s_new(counter INTEGER PRIMARY KEY, note TEXT NOT NULL%s)" % (table, rest))
        db.execute("INSERT INTO %s_new(counter, note%s) SELECT counter, note%s FROM %s" % (table, rest, rest, table))
        db.execute("DROP TABLE %s" % table)
        db.execute("ALTER TABLE %s_new RENAME TO %s" % (table, table))
    elif what == 5:
        db.execute("CREATE INDEX IF NOT EXISTS %s_note ON %s(note)" % (name, table))
    elif what == 6 and extra:
        db.execute("ALTER TABLE %s RENAME COLUMN %s TO extra_%d_%d" % (table, extra[0], number, rnd.randrange(10)))


def transaction(db):
    db.execute("BEGIN IMMEDIATE")
    number = 1 + db.execute("SELECT coalesce(max(counter), 0) FROM entry_w WHERE writer = ?", (writer,)).fetchone()[0]
    big = rnd.choice([0, 10, 300, 300, 9000, 9000, 70000])
    db.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (writer * 1000000 + number, writer, number, "note %d " % number * rnd.choice([1, 3, 200])))
    db.execute("INSERT INTO entry_w VALUES (?, ?, ?)", (writer, number, rnd.randbytes(big)))
    db.execute("INSERT INTO entry_k VALUES (?, ?, ?)", ("w%d/%d" % (writer, number), writer, number))
    db.execute("INSERT INTO bag(rowid, writer, counter) VALUES (?, ?, ?)", (writer * 1000000 + number, writer, number))
    db.execute("INSERT INTO recent VALUES (?, ?, ?)", (number, writer, rnd.random()))
    db.execute("DELETE FROM recent WHERE writer = ? AND counter = ?", (writer, number - 20))
    db.execute("INSERT OR IGNORE INTO total VALUES (?, 0, 0, NULL)", (writer,))
    db.execute("UPDATE total SET n = n + 1, sum = sum + ? WHERE writer = ?", (number, writer))
    if rnd.random() < 0.2:
        db.execute("UPDATE total SET big = ? WHERE writer = ?", (rnd.randbytes(rnd.choice([0, 5000, 120000])), writer))
    for _ in range(rnd.choice([0, 1, 1, 3])):
        db.execute("UPDATE shared SET n = n + 1, who = ?, pad = ? WHERE id = ?", (writer, "p" * rnd.randint(0, 2000), rnd.randint(1, 40)))
    what = rnd.random()
    if what < 0.3:
        db.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", (rnd.randint(1, 30), "name %d" % rnd.randint(1, 20), writer))
    elif what < 0.4:
        db.execute("UPDATE OR REPLACE names SET name = ? WHERE id = ?", ("name %d" % rnd.randint(1, 20), rnd.randint(1, 30)))
    elif what < 0.5:
        db.execute("DELETE FROM names WHERE id = ?", (rnd.randint(1, 30),))
    if wild and rnd.random() < 0.03:
        db.execute("UPDATE shared SET n = n + 1")
    if wild or altering:
        own_table(db, number)
    db.execute("COMMIT")
    os.write(ledger, b"%d\n" % number)


def wildness(db):
    what = rnd.random()
    if what < 0.04:
        db.execute("PRAGMA wal_checkpoint(%s)" % rnd.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE", "TRUNCATE"])).fetchall()
    elif what < 0.06:
        db.close()
        return connect()
    elif what < 0.064:
        db.execute("VACUUM")
    elif what < 0.08:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE shared SET pad = ?", ("rolled back " * 300,))
        db.execute("ROLLBACK")
    return db


db, done = connect(), 0
while count == 0 and not select.select([0], [], [], 0)[0] or done < count:
    try:
        transaction(db)
        done += 1
        if wild:
            db = wildness(db)
            time.sleep(rnd.random() * rnd.choice([0.001, 0.01, 0.05]))
        if paced:
            time.sleep(0.03)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xff != sqlite3.SQLITE_BUSY:
            raise
        if db.in_transaction:
            db.execute("ROLLBACK")
db.close()
