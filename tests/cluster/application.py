"""Applications that know nothing of anybody. Any error but a broken constraint, which is the application's own business, ends them.

usage: application.py DATABASE MODE ARGUMENT...
modes: sql SCRIPT                 runs a script
       shop SECONDS SEED NODE     every kind of write on the sample database; prints what it did
       count TIMES                adds 1 to the counter TIMES times
       transfer SECONDS SEED      moves money between accounts
       watch-sum TABLE FILE       until FILE exists: prints how often sum(balance) was read, fails when it changes
       insert FIRST COUNT         COUNT rows in t, one transaction each
       bulk COUNT                 COUNT rows in one transaction
       bulk-into-big COUNT        the same in a table big that it makes
"""
import os
import random
import sqlite3
import sys
import time

path, mode, args = sys.argv[1], sys.argv[2], sys.argv[3:]
db = sqlite3.connect(path, isolation_level=None, timeout=30)


def shop(seconds, seed, node):
    rnd = random.Random(seed)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA recursive_triggers = ON")
    made = [0]

    def fresh():
        made[0] += 1
        return node * 10_000_000 + made[0]

    def order():
        number = fresh()
        db.execute("INSERT INTO orders(id, customer_id, ordered_on) VALUES (?, ?, '2026-01-02')", (number, rnd.randint(1, 3600)))
        for line in range(rnd.randint(1, 4)):
            db.execute("INSERT INTO order_lines VALUES (?, ?, ?, ?, ?, ?)",
                       (number, line, rnd.randint(1, 1500), rnd.randint(1, 9), rnd.randint(1, 999), rnd.choice([None, 0.5, 1.0])))
        if rnd.random() < 0.5:
            db.execute("INSERT INTO payments VALUES (?, ?, '2026-01-03', ?, ?)",
                       ("N%d" % number, number, rnd.randint(1, 9999), rnd.randbytes(rnd.choice([1, 40, 9000]))))

    def status():
        db.execute("UPDATE orders SET status = ? WHERE id = ?", (rnd.choice(["open", "paid", "shipped", "cancelled"]), rnd.randint(1, 60)))

    def price():
        db.execute("UPDATE products SET price_cents = price_cents + ? WHERE id = ?", (rnd.randint(1, 5), rnd.randint(1, 40)))

    def rename():
        db.execute("UPDATE products SET sku = ? WHERE id = ?", ("new-%d" % rnd.randint(1, 30), rnd.randint(1, 60)))

    def notes():
        db.execute("UPDATE customers SET notes = ? WHERE id = ?", ("note " * rnd.choice([0, 3, 2000]), rnd.randint(1, 50)))

    def cascade():
        db.execute("DELETE FROM orders WHERE id = ?", (rnd.randint(1, 200),))

    def goodbye():
        db.execute("DELETE FROM customers WHERE id = ?", (rnd.randint(3601, 3650),))

    def supplier():
        old, new = "S%04d" % rnd.randint(0, 20), "T%04d" % rnd.randint(0, 30)
        db.execute("UPDATE suppliers SET code = ? WHERE code = ?", (new, old))
        db.execute("INSERT OR REPLACE INTO suppliers VALUES (?, 'again', 'DE', ?)", (old, rnd.choice([None, 3.0, 4.5])))

    def stock():
        for _ in range(rnd.randint(1, 5)):
            db.execute("INSERT INTO stock_movements VALUES (?, '2026-01-02 10:00', ?, ?, ?)",
                       (rnd.choice(["north", "south"]), fresh(), rnd.randint(1, 1500), rnd.randint(-5, 50)))

    def category():
        number = rnd.randint(1, 60)
        db.execute("INSERT OR REPLACE INTO categories VALUES (?, ?, NULL)", (number, "Category %d" % rnd.randint(1, 60)))

    def address():
        customer, kind = rnd.randint(1, 40), rnd.choice(["billing", "delivery"])
        if rnd.random() < 0.3:
            db.execute("DELETE FROM addresses WHERE customer_id = ? AND kind = ?", (customer, kind))
        else:
            db.execute("INSERT OR REPLACE INTO addresses VALUES (?, ?, ?, '20095', 'Hamburg')", (customer, kind, "street %d" % rnd.randint(1, 9)))

    def regret():
        db.execute("SAVEPOINT regret")
        db.execute("UPDATE products SET weight_kg = weight_kg + 1")
        db.execute("ROLLBACK TO regret")

    kinds = [order, order, order, status, status, price, rename, notes, cascade, goodbye, supplier, stock, category, address, regret]
    ends_at, commits, refused = time.monotonic() + seconds, 0, 0
    while time.monotonic() < ends_at:
        db.execute("BEGIN IMMEDIATE")
        try:
            for _ in range(rnd.choice([1, 1, 1, 2, 5])):
                rnd.choice(kinds)()
            db.execute("COMMIT")
            commits += 1
        except sqlite3.IntegrityError:
            db.execute("ROLLBACK")
            refused += 1
        time.sleep(rnd.random() * 0.01)
    print(commits, refused)


def transfer(seconds, seed):
    rnd = random.Random(seed)
    count = db.execute("SELECT count(*) FROM account").fetchone()[0]
    ends_at, done = time.monotonic() + seconds, 0
    while time.monotonic() < ends_at:
        a, b = rnd.sample(range(1, count + 1), 2)
        amount = rnd.randint(1, 100)
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, a))
        db.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, b))
        db.execute("COMMIT")
        done += 1
    print(done)


def watch_sum(table, until):
    wanted, looks, states = None, 0, set()
    while not os.path.exists(until):
        found, state = db.execute("SELECT sum(balance), sum(balance * id) FROM " + table).fetchone()
        wanted = found if wanted is None else wanted
        if found != wanted:
            sys.exit("half of a transaction was visible: %r, not %r" % (found, wanted))
        looks += 1
        states.add(state)
    print(looks, len(states))


if mode == "sql":
    db.executescript(args[0])
elif mode == "shop":
    shop(float(args[0]), int(args[1]), int(args[2]))
elif mode == "count":
    for _ in range(int(args[0])):
        db.execute("UPDATE counter SET n = n + 1")
elif mode == "transfer":
    transfer(float(args[0]), int(args[1]))
elif mode == "watch-sum":
    watch_sum(args[0], args[1])
elif mode == "insert":
    for number in range(int(args[0]), int(args[0]) + int(args[1])):
        db.execute("INSERT INTO t VALUES (?, ?, 1)", (number, "value %d" % number))
elif mode == "bulk-into-big":
    db.execute("CREATE TABLE big(id INTEGER PRIMARY KEY, v TEXT, n REAL, w TEXT)")
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO big VALUES (?, ?, ?, ?)", ((number, "value %d of a column" % number, number * 0.5, "w" * 60) for number in range(int(args[0]))))
    db.execute("COMMIT")
elif mode == "bulk":
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", ((number, "value %d of the bulk" % number, number * 0.5) for number in range(int(args[0]))))
    db.execute("COMMIT")
else:
    sys.exit(__doc__)
db.close()
