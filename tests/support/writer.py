"""An application that knows nothing of anybody: writes to a database with the SQLite that Python brings.

usage: writer.py DATABASE MODE COUNT SEED
modes: insert      COUNT transactions of one row each, ids upwards; a checkpoint RESTART now and then
       update      COUNT transactions that add 1 to a few rows each
       checkpoint  PASSIVE checkpoints until COUNT transactions are in the table `done`
"""
import random
import sqlite3
import sys
import time

path, mode, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rnd = random.Random(seed)
db = sqlite3.connect(path, isolation_level=None, timeout=30)
db.execute("PRAGMA synchronous=OFF")
if mode == "insert":
    restarts = 0
    for n in range(1, count + 1):
        db.execute("INSERT INTO t(id, v) VALUES (?, ?)", (n, "value %d" % n))
        if n % (count // 16) == 0:
            restarts += 1
            db.execute("PRAGMA wal_checkpoint(%s)" % rnd.choice(["RESTART", "TRUNCATE", "FULL"])).fetchall()
elif mode == "update":
    for n in range(count):
        if n % 7 == 0:
            db.execute("BEGIN IMMEDIATE")
            for _ in range(3):
                db.execute("UPDATE t SET v = v + 1 WHERE id = ?", (rnd.randrange(1, 2001),))
            db.execute("COMMIT")
        else:
            db.execute("UPDATE t SET v = v + 1 WHERE id = ?", (rnd.randrange(1, 2001),))
    db.execute("INSERT INTO done VALUES (?)", (seed,))
elif mode == "checkpoint":
    while db.execute("SELECT count(*) FROM done").fetchone()[0] < count:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        time.sleep(rnd.random() / 500)
