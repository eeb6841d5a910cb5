"""What the demo writes: into the sample database what its tables are for, into any other what its schema allows."""

import sqlite3
from dataclasses import dataclass

from .databases import Tables, connect, name_of, quote_name

BURST_TRANSACTIONS = 100
BURST_ROWS = 5
# More tokens than the demo can use, so that keys made from them stay below SQLite's largest integer.
TOKENS_MAX = 10_000


@dataclass
class Step:
    """SQL that one side writes, and the query whose answer shows on the other side that it arrived."""

    side: int
    label: str
    sql: str
    watch: str


@dataclass
class Plan:
    """Single steps; then one value that both sides change at once; then many transactions on both sides at once."""

    steps: list
    clash: Step
    clash_sql: tuple
    burst_sql: tuple
    burst_watch: str
    burst_answer: tuple


def transaction(*statements):
    """The statements as one transaction."""
    return "\n".join(("BEGIN IMMEDIATE;", *(f"{statement};" for statement in statements), "COMMIT;"))


def plan_for_sample(path):
    """Plans for the database that sample.py makes."""
    db = connect(path)
    try:
        order, customer = (db.execute(f"SELECT max(id) FROM {table}").fetchone()[0] + 1 for table in ("orders", "customers"))
        (leaver,) = db.execute(
            "SELECT min(id) FROM customers WHERE id NOT IN (SELECT customer_id FROM orders) AND id IN (SELECT customer_id FROM addresses)"
        ).fetchone()
        buyers = [row[0] for row in db.execute("SELECT DISTINCT customer_id FROM orders ORDER BY 1 LIMIT 100")]
        (shipped,) = db.execute("SELECT min(id) FROM orders WHERE status = 'open'").fetchone()
    finally:
        db.close()
    lines = ", ".join(f"({order}, {line}, {line * 11}, 2, 490, NULL)" for line in (1, 2, 3))
    whole_order = f"SELECT o.*, (SELECT count(*) FROM order_lines WHERE order_id = o.id) FROM orders o WHERE id = {order}"
    steps = [
        Step(0, "INSERT an order and its three lines, one transaction", transaction(
            f"INSERT INTO orders VALUES ({order}, {buyers[0]}, date('now'), NULL, 'open')", f"INSERT INTO order_lines VALUES {lines}",
        ), whole_order),
        Step(1, "INSERT a customer with letters of three scripts", f"INSERT INTO customers (id, name, email, since) VALUES ({customer}, 'Zoë Мюллер 東', "
             "'zoe@example.org', date('now'));", f"SELECT * FROM customers WHERE id = {customer}"),
        Step(0, "UPDATE a price; a trigger writes it into audit", "UPDATE products SET price_cents = price_cents + 100 WHERE id = 7;",
             "SELECT price_cents, price_gross, (SELECT count(*) FROM audit WHERE table_name = 'products' AND row_key = '7') "
             "FROM products WHERE id = 7"),
        Step(1, "UPDATE an order's status; its trigger, too", f"UPDATE orders SET status = 'shipped' WHERE id = {shipped};",
             f"SELECT status, (SELECT count(*) FROM audit WHERE table_name = 'orders' AND row_key = '{shipped}') "
             f"FROM orders WHERE id = {shipped}"),
        Step(0, "DELETE a customer; the addresses go by cascade", f"DELETE FROM customers WHERE id = {leaver};",
             f"SELECT (SELECT count(*) FROM customers WHERE id = {leaver}), "
             f"(SELECT count(*) FROM addresses WHERE customer_id = {leaver})"),
        Step(1, "DELETE the order that a.db made; its lines, too", f"DELETE FROM orders WHERE id = {order};", whole_order),
    ]
    clash = Step(0, "customers.notes of one row", "", f"SELECT notes FROM customers WHERE id = {buyers[0]}")
    clash_sql = tuple(f"UPDATE customers SET notes = 'written in {name}' WHERE id = {buyers[0]};" for name in ("a.db", "b.db"))

    def burst(side):
        ids = range(order + 1 + side, order + 1 + 2 * BURST_TRANSACTIONS, 2)
        return "\n".join(
            transaction(
                f"INSERT INTO orders VALUES ({i}, {buyers[i % len(buyers)]}, date('now'), NULL, 'open')",
                "INSERT INTO order_lines VALUES "
                + ", ".join(f"({i}, {line}, {(i + line) % 1500 + 1}, {line}, 100, 0.5)" for line in range(1, BURST_ROWS)),
            )
            for i in ids
        )

    watch = f"SELECT count(*), (SELECT count(*) FROM order_lines WHERE order_id > {order}) FROM orders WHERE id > {order}"
    answer = (2 * BURST_TRANSACTIONS, 2 * BURST_TRANSACTIONS * (BURST_ROWS - 1))
    return Plan(steps, clash, clash_sql, (burst(0), burst(1)), watch, answer)


class Candidate:
    """A table with a key of one column, whose first row serves as the pattern of new ones."""

    def __init__(self, db, table):
        self.table = quote_name(table)
        info = [(name_of(name), pk, hidden) for _, name, _, _, _, pk, hidden in db.execute(f"PRAGMA table_xinfo({self.table})")]
        keys = [name for name, pk, _ in info if pk]
        if len(keys) != 1:
            raise ValueError("its key is not one column")
        self.key = quote_name(keys[0])
        # Generated and hidden columns are nobody's to write.
        self.columns = [name for name, _, hidden in info if not hidden]
        self.key_max, kind = db.execute(f"SELECT max({self.key}), typeof(max({self.key})) FROM {self.table}").fetchone()
        self.key_kind = name_of(kind)
        if self.key_kind not in ("integer", "text") or (self.key_kind == "integer" and self.key_max >= 2**63 - TOKENS_MAX):
            raise ValueError("no new key can be made from its largest")
        self.pattern = name_of(db.execute(f"SELECT quote({self.key}) FROM {self.table} ORDER BY {self.key} LIMIT 1").fetchone()[0])
        self.foreign = {name_of(row[3]) for row in db.execute(f"PRAGMA foreign_key_list({self.table})")}
        self.unique = {}
        in_unique = set()
        for _, index, is_unique, origin, *_ in db.execute(f"PRAGMA index_list({self.table})").fetchall():
            if is_unique and name_of(origin) != "pk":
                columns = [name_of(row[2]) for row in db.execute(f"PRAGMA index_info({quote_name(name_of(index))})") if row[2]]
                in_unique.update(columns)
                # Another value in one column makes the whole entry unique; a reference must stay what it is.
                for column in [c for c in columns if c not in self.foreign and c in self.columns][:1]:
                    self.unique[column] = self.describe(db, column)
        self.changeable = [
            (column, kind)
            for column in self.columns
            if column not in self.foreign and column not in in_unique and column != keys[0]
            for kind, _ in [self.describe(db, column)]
            if kind in ("text", "integer", "real")
        ]
        self.changeable.sort(key=lambda entry: entry[1] != "text")
        self.changed = None
        self.row_count = 0

    def describe(self, db, column):
        """The storage class of the pattern's value, and the largest value."""
        c = quote_name(column)
        kind, largest = db.execute(
            f"SELECT typeof({c}), (SELECT max({c}) FROM {self.table}) FROM {self.table} WHERE {self.key} = {self.pattern}"
        ).fetchone()
        return name_of(kind), largest

    def new_key(self, token):
        """A key that no row has; tokens tell the demo's rows apart, on both sides."""
        return str(self.key_max + 1 + token) if self.key_kind == "integer" else f"'woodchuck-demo-{token}'"

    def insert(self, token):
        """A copy of the pattern under a new key."""
        values = []
        for column in self.columns:
            name = quote_name(column)
            if name == self.key:
                values.append(self.new_key(token))
            elif column in self.unique:
                kind, largest = self.unique[column]
                if kind == "integer" and isinstance(largest, int):
                    values.append(str(largest + 1 + token))
                else:
                    values.append({"null": "NULL", "blob": f"CAST('demo {token}' AS BLOB)"}.get(kind, f"{name} || ' demo {token}'"))
            else:
                values.append(name)
        columns = ", ".join(quote_name(column) for column in self.columns)
        return f"INSERT INTO {self.table} ({columns}) SELECT {', '.join(values)} FROM {self.table} WHERE {self.key} = {self.pattern};"

    def update(self, text):
        """Another value in one column of the pattern."""
        column, kind = self.changed
        c = quote_name(column)
        value = f"{c} || ' {text}'" if kind == "text" else f"{c} + {len(text)}"
        return f"UPDATE {self.table} SET {c} = {value} WHERE {self.key} = {self.pattern};"

    def delete(self, token):
        """Deletes a row that `insert` made."""
        return f"DELETE FROM {self.table} WHERE {self.key} = {self.new_key(token)};"

    def row(self, key):
        """The query for one row."""
        return f"SELECT * FROM {self.table} WHERE {self.key} = {key}"

    def works(self, db):
        """Whether the table's constraints and triggers let all this happen; tried in a transaction that is rolled back."""
        for column in self.changeable:
            self.changed = column
            db.execute("BEGIN IMMEDIATE")
            try:
                for token in range(4):
                    if db.execute(self.insert(token)).rowcount != 1:
                        raise sqlite3.Error("a trigger keeps the row out")
                before = db.execute(self.row(self.pattern)).fetchone()
                for text in ("(a)", "(b) ", "written in a.db", "written in b.db"):
                    db.execute(self.update(text))
                    if before == (before := db.execute(self.row(self.pattern)).fetchone()):
                        raise sqlite3.Error("a trigger keeps the value as it is")
                for token in range(4):
                    db.execute(self.delete(token))
                    if db.execute(self.row(self.new_key(token))).fetchall():
                        raise sqlite3.Error("a trigger keeps the row")
                return True
            except sqlite3.Error:
                continue
            finally:
                db.execute("ROLLBACK")
        return False


def plan_for_any(path):
    """Plans for a database that we know nothing of."""
    db = connect(path)
    try:
        db.execute("PRAGMA foreign_keys = ON")
        sizes = {table: db.execute(f"SELECT count(*) FROM {quote_name(table)}").fetchone()[0] for table in Tables(db).ordinary}
        chosen = []
        for table in sorted(sizes, key=lambda table: -sizes[table]):
            if len(chosen) == 2 or not sizes[table]:
                break
            try:
                candidate = Candidate(db, table)
            except (ValueError, sqlite3.Error):
                continue
            candidate.row_count = sizes[table]
            if candidate.works(db):
                chosen.append(candidate)
    finally:
        db.close()
    if not chosen:
        raise ValueError("none of its tables has rows, a key of one column, and constraints that let a copy of a row in")
    first, second = chosen[0], chosen[-1]
    steps = []
    for side, table in ((0, first), (1, second)):
        steps.append(Step(side, f"INSERT INTO {table.table}", table.insert(side), table.row(table.new_key(side))))
        steps.append(Step(side, f"UPDATE {table.table} SET {quote_name(table.changed[0])}", table.update("(a)" if side == 0 else "(b) "),
                          table.row(table.pattern)))
        steps.append(Step(side, f"DELETE FROM {table.table}", table.delete(side), table.row(table.new_key(side))))
    steps = [steps[i] for i in (0, 3, 1, 4, 2, 5)]
    column = quote_name(first.changed[0])
    clash = Step(0, f"{first.table}.{column} of one row", "", f"SELECT {column} FROM {first.table} WHERE {first.key} = {first.pattern}")

    def burst(side):
        tokens = range(2 + side, 2 + 2 * BURST_TRANSACTIONS * BURST_ROWS, 2)
        groups = [tokens[i : i + BURST_ROWS] for i in range(0, len(tokens), BURST_ROWS)]
        return "\n".join(transaction(*(first.insert(token).rstrip(";") for token in group)) for group in groups)

    watch = f"SELECT count(*) FROM {first.table}"
    answer = (first.row_count + 2 * BURST_TRANSACTIONS * BURST_ROWS,)
    return Plan(steps, clash, (first.update("written in a.db"), first.update("written in b.db")), (burst(0), burst(1)), watch, answer)
