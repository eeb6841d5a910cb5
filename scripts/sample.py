#!/usr/bin/env python3
"""Makes the sample database: the books of a small wholesale business, 50,000 rows in ten tables.

Usage: sample.py PATH

The same version of SQLite makes the same bytes each time: all choices come from one seed and nothing asks the clock. The schema holds what
replication has to get right: composite keys, a table without rowid, foreign keys that cascade, triggers, UNIQUE beyond the key, NOCASE, a
generated column, dates kept as text, blobs, NULLs, views and indexes.
"""

import os
import random
import sqlite3
import sys
from datetime import date, timedelta

SEED = 20_240_229
FIRST_DAY = date(2021, 3, 1)

CATEGORIES, SUPPLIERS, PRODUCTS, CUSTOMERS = 40, 120, 1_500, 4_000
ADDRESSES, ORDERS, PAYMENTS, MOVEMENTS, AUDITS = 6_000, 9_000, 6_000, 4_500, 840

TABLES = """
CREATE TABLE categories (
    id        INTEGER PRIMARY KEY,
    name      TEXT NOT NULL UNIQUE COLLATE NOCASE,
    parent_id INTEGER REFERENCES categories (id)
);
CREATE TABLE suppliers (
    code    TEXT PRIMARY KEY COLLATE NOCASE,
    name    TEXT NOT NULL,
    country TEXT NOT NULL,
    rating  REAL
);
CREATE TABLE products (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    sku           TEXT NOT NULL UNIQUE COLLATE NOCASE,
    name          TEXT NOT NULL,
    category_id   INTEGER NOT NULL REFERENCES categories (id),
    supplier_code TEXT REFERENCES suppliers (code) ON UPDATE CASCADE ON DELETE SET NULL,
    price_cents   INTEGER NOT NULL CHECK (price_cents > 0),
    weight_kg     REAL,
    barcode       BLOB,
    price_gross   INTEGER GENERATED ALWAYS AS (price_cents * 119 / 100) STORED
);
CREATE TABLE customers (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    email      TEXT NOT NULL UNIQUE COLLATE NOCASE,
    since      TEXT NOT NULL,
    newsletter BOOLEAN NOT NULL DEFAULT 0,
    notes      TEXT
);
CREATE TABLE addresses (
    customer_id INTEGER NOT NULL REFERENCES customers (id) ON DELETE CASCADE,
    kind        TEXT NOT NULL CHECK (kind IN ('billing', 'delivery')),
    street      TEXT NOT NULL,
    postal_code TEXT NOT NULL,
    city        TEXT NOT NULL,
    PRIMARY KEY (customer_id, kind)
);
CREATE TABLE orders (
    id          INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    ordered_on  TEXT NOT NULL,
    shipped_on  TEXT,
    status      TEXT NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'paid', 'shipped', 'cancelled'))
);
CREATE TABLE order_lines (
    order_id    INTEGER NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    line_no     INTEGER NOT NULL,
    product_id  INTEGER NOT NULL REFERENCES products (id),
    quantity    INTEGER NOT NULL CHECK (quantity > 0),
    price_cents INTEGER NOT NULL,
    discount    REAL,
    PRIMARY KEY (order_id, line_no)
) WITHOUT ROWID;
CREATE TABLE payments (
    reference    TEXT PRIMARY KEY,
    order_id     INTEGER NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    paid_on      TEXT NOT NULL,
    amount_cents INTEGER NOT NULL,
    receipt      BLOB
);
CREATE TABLE stock_movements (
    warehouse  TEXT NOT NULL,
    moved_at   TEXT NOT NULL,
    sequence   INTEGER NOT NULL,
    product_id INTEGER NOT NULL REFERENCES products (id),
    quantity   INTEGER NOT NULL,
    PRIMARY KEY (warehouse, moved_at, sequence)
);
-- Two nodes that count up the same key would make two rows of one key; a random one is what a table that every node fills needs.
CREATE TABLE audit (
    id         TEXT PRIMARY KEY DEFAULT (lower(hex(randomblob(12)))),
    at         TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    table_name TEXT NOT NULL,
    row_key    TEXT NOT NULL,
    what       TEXT NOT NULL,
    old_value  TEXT,
    new_value  TEXT
);
"""

# Made after the rows, so that the history in `audit` comes from the seed and not from the clock.
AROUND_THEM = """
CREATE INDEX products_by_category ON products (category_id, name);
CREATE INDEX orders_by_customer ON orders (customer_id, ordered_on DESC);
CREATE INDEX orders_open ON orders (ordered_on) WHERE status = 'open';
CREATE INDEX order_lines_by_product ON order_lines (product_id);
CREATE INDEX payments_by_order ON payments (order_id);
CREATE TRIGGER product_price_changed AFTER UPDATE OF price_cents ON products WHEN old.price_cents <> new.price_cents
BEGIN
    INSERT INTO audit (table_name, row_key, what, old_value, new_value)
    VALUES ('products', new.id, 'price', old.price_cents, new.price_cents);
END;
CREATE TRIGGER order_status_changed AFTER UPDATE OF status ON orders WHEN old.status <> new.status
BEGIN
    INSERT INTO audit (table_name, row_key, what, old_value, new_value)
    VALUES ('orders', new.id, 'status', old.status, new.status);
END;
CREATE TRIGGER customer_gone AFTER DELETE ON customers
BEGIN
    INSERT INTO audit (table_name, row_key, what, old_value) VALUES ('customers', old.id, 'deleted', old.email);
END;
CREATE VIEW order_totals AS
    SELECT order_id, count(*) AS lines, sum(quantity * price_cents) AS total_cents FROM order_lines GROUP BY order_id;
CREATE VIEW stock AS
    SELECT product_id, warehouse, sum(quantity) AS on_hand FROM stock_movements GROUP BY product_id, warehouse;
"""

GOODS = "pepper cumin saffron cardamom clove nutmeg ginger turmeric vanilla paprika mustard anise".split()
FORMS = "whole ground smoked roasted organic wild dried fine coarse extra".split()
GIVEN = "Ana Björn Chloé Dmitri Elif Fátima Goran Hanna Iván Jürgen Keiko Léa Małgorzata Noor Óscar Paula".split()
FAMILY = "Álvarez Brandt Cohen Dubois Eriksen Fischer García Horváth Ito Jansen Kowalski Lindqvist Moreau Novák O'Brien Suzuki".split()
CITIES = [("Hamburg", "20095"), ("Lyon", "69001"), ("Kraków", "30-001"), ("Porto", "4000-008"), ("Malmö", "21119"), ("東京", "100-0001")]
COUNTRIES = "DE FR IN LK MG TR VN".split()


def day(rng, span):
    """A date of the business's life, as text."""
    return (FIRST_DAY + timedelta(days=rng.randrange(span))).isoformat()


def rows(rng):
    """Yields each table's name and its rows, parents before children."""
    yield "categories", [(i, f"{GOODS[i % 12].title()} {i}", None if i <= 8 else rng.randint(1, 8)) for i in range(1, CATEGORIES + 1)]
    suppliers = [f"S{i:04d}" for i in range(SUPPLIERS)]
    yield "suppliers", [
        (code, f"{rng.choice(FAMILY)} & {rng.choice(FAMILY)}", rng.choice(COUNTRIES), rng.choice([None, 3.0, round(rng.uniform(1, 5), 2)]))
        for code in suppliers
    ]
    prices = [rng.randint(90, 9_900) for _ in range(PRODUCTS)]
    yield "products (id, sku, name, category_id, supplier_code, price_cents, weight_kg, barcode)", [
        (i + 1, f"{rng.choice('ABCDEFGH')}-{i:05d}", f"{rng.choice(FORMS)} {rng.choice(GOODS)}", rng.randint(1, CATEGORIES),
         rng.choice([None, *suppliers]), price, rng.choice([None, 1.0, rng.random() * 25]), rng.randbytes(rng.choice([0, 13, 64])))
        for i, price in enumerate(prices)
    ]
    customers = [(i, f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}") for i in range(1, CUSTOMERS + 1)]
    yield "customers", [
        (i, name, f"{rng.choice(['Shop', 'info', 'kontakt'])}.{i}@example.org", day(rng, 700), rng.randint(0, 1),
         "a long note " * rng.choice([0, 1, 8]) or None)
        for i, name in customers
    ]
    streets = [(i, kind) for i, _ in customers for kind in ("billing", "delivery")][:ADDRESSES]
    yield "addresses", [
        (i, kind, f"{rng.choice(FAMILY)}str. {rng.randint(1, 199)}", code, city)
        for i, kind in streets for city, code in [rng.choice(CITIES)]
    ]
    # The last tenth has not ordered yet, so that there is somebody who can be deleted.
    buyers = CUSTOMERS * 9 // 10
    yield "orders", [
        (i, rng.randint(1, buyers), day(rng, 1_400), rng.choice([None, day(rng, 1_400)]), rng.choice(["open", "paid", "shipped", "cancelled"]))
        for i in range(1, ORDERS + 1)
    ]
    line_counts = [1, 2, 3] * (ORDERS // 3)
    rng.shuffle(line_counts)
    yield "order_lines", [
        (order, line, product + 1, rng.randint(1, 40), prices[product], rng.choice([None, 0.0, 0.05, 0.125]))
        for order, count in enumerate(line_counts, start=1) for line in range(1, count + 1) for product in [rng.randrange(PRODUCTS)]
    ]
    yield "payments", [
        (f"{rng.choice('PQR')}{i:07d}", rng.randint(1, ORDERS), day(rng, 1_400), rng.randint(100, 90_000), rng.choice([None, rng.randbytes(40)]))
        for i in range(PAYMENTS)
    ]
    yield "stock_movements", [
        (rng.choice(["north", "south"]), f"{day(rng, 1_400)} {rng.randrange(24):02d}:{rng.randrange(60):02d}", i, rng.randint(1, PRODUCTS),
         rng.randint(-50, 200))
        for i in range(MOVEMENTS)
    ]
    yield "audit", [
        (rng.randbytes(12).hex(), f"{day(rng, 1_400)} 08:{i % 60:02d}:00.000", "products", str(rng.randint(1, PRODUCTS)), "price",
         str(rng.randint(90, 9_900)), str(rng.randint(90, 9_900)))
        for i in range(AUDITS)
    ]


def make(path):
    """Makes the database; a file that is there is replaced."""
    if os.path.exists(path):
        os.unlink(path)
    rng = random.Random(SEED)
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.executescript("PRAGMA page_size = 4096; PRAGMA synchronous = OFF; BEGIN;" + TABLES)
        for table, values in rows(rng):
            db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values[0]))})", values)
        # `executescript` commits what is open before it begins.
        db.executescript("BEGIN;" + AROUND_THEM + "COMMIT;")
    finally:
        db.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[1])
    make(sys.argv[1])
