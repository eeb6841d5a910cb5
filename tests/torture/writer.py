"""An application that keeps its own ledger and knows nothing of anybody.

usage: writer.py DATABASE LEDGER WRITER SEED COUNT [wild|paced]

Commits transactions of one writer, COUNT of them or (0) until its standard input is closed, and appends the number of each to LEDGER once its commit has
returned. Every transaction has a part in every table, so that it can be told whether it is there whole and once:

    entry, entry_w, entry_k, bag   a row per transaction, under four kinds of key: bag has none but its rowid
    recent                         a row per transaction; the one of 20 transactions before is deleted
    total                          the writer's row: n counts its transactions, sum adds up their numbers, big is replaced
    shared, names                  rows that all writers of all nodes fight about; names has a UNIQUE beyond its key

A wild one also checkpoints in all modes, closes and opens the database, vacuums it; a paced one writes about 30 times
a second. SQLITE_BUSY behind the timeout of 5 s is met by trying again; any other error ends it.
"""
import os
import random
import select
import sqlite3
import sys
import time

path, ledger_path, writer, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
wild, paced = (sys.argv[6:] == [manner] for manner in ("wild", "paced"))
rnd = random.Random(seed)
ledger = os.open(ledger_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def connect():
    db = sqlite3.connect(path, isolation_level=None, timeout=5)
    if wild and rnd.random() < 0.3:
        db.execute("PRAGMA synchronous = NORMAL")
    if wild and rnd.random() < 0.3:
        db.execute("PRAGMA wal_autocheckpoint = %d" % rnd.choice([0, 10, 100]))
    return db


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
