//! Tables of every kind, and an application's random transactions on them.

use rusqlite::types::Value as Bound;
use rusqlite::{Connection, params_from_iter};

use crate::support::random::Random;

/// A table.
#[derive(Clone, Debug)]
pub struct SimTable {
    pub name: &'static str,
    /// The columns that tell rows apart, with whether they are text; for a table without a key its `rowid`.
    pub key: Vec<(&'static str, bool)>,
    pub values: Vec<&'static str>,
    /// UNIQUE beyond the key, as indexes into all columns.
    pub uniques: Vec<Vec<usize>>,
}

/// What a database consists of.
#[derive(Clone, Debug)]
pub struct Schema {
    pub sql: &'static str,
    pub tables: Vec<SimTable>,
}

/// The kinds of databases, by number.
pub const KINDS: usize = 12;

fn keyed(name: &'static str, values: &[&'static str], uniques: &[&[usize]]) -> SimTable {
    table(name, &[("k", true)], values, uniques)
}

fn table(name: &'static str, key: &[(&'static str, bool)], values: &[&'static str], uniques: &[&[usize]]) -> SimTable {
    let uniques = uniques.iter().map(|unique| unique.to_vec()).collect();
    SimTable { name, key: key.to_vec(), values: values.to_vec(), uniques }
}

impl Schema {
    pub fn of(kind: usize) -> Schema {
        let plain = || keyed("f", &["a", "b", "c"], &[]);
        let (sql, tables) = match kind {
            0 => ("CREATE TABLE f(k TEXT PRIMARY KEY, a, b DATE, c);", vec![plain()]),
            1 => ("CREATE TABLE u(k TEXT PRIMARY KEY, u UNIQUE, b);", vec![keyed("u", &["u", "b"], &[&[1]])]),
            2 => (
                "CREATE TABLE w(k TEXT PRIMARY KEY, u, v, b, UNIQUE(u), UNIQUE(v));",
                vec![keyed("w", &["u", "v", "b"], &[&[1], &[2]])],
            ),
            3 => (
                "CREATE TABLE w(k TEXT PRIMARY KEY, u, v, b, UNIQUE(u, v)); CREATE TABLE f(k TEXT PRIMARY KEY, a, b DATE, c);",
                vec![keyed("w", &["u", "v", "b"], &[&[1, 2]]), plain()],
            ),
            // Values of an expression and of a part of the rows, which nobody but SQLite can compute.
            4 => (
                "CREATE TABLE w(k TEXT PRIMARY KEY, u, v, b); CREATE UNIQUE INDEX w_u ON w(u + 0); \
                 CREATE UNIQUE INDEX w_v ON w(v) WHERE v IS NOT NULL;",
                vec![keyed("w", &["u", "v", "b"], &[&[1], &[2]])],
            ),
            5 => (
                "CREATE TABLE c(x INTEGER, y TEXT, a, b, PRIMARY KEY(x, y)); \
                 CREATE TABLE z(x INTEGER, y TEXT, a, b, PRIMARY KEY(y, x)) WITHOUT ROWID;",
                vec![
                    table("c", &[("x", false), ("y", true)], &["a", "b"], &[]),
                    table("z", &[("x", false), ("y", true)], &["a", "b"], &[]),
                ],
            ),
            6 => (
                "CREATE TABLE z(x INTEGER, y TEXT, u, b, PRIMARY KEY(y, x), UNIQUE(u)) WITHOUT ROWID; \
                 CREATE TABLE i(id INTEGER PRIMARY KEY, u UNIQUE, b);",
                vec![
                    table("z", &[("x", false), ("y", true)], &["u", "b"], &[&[2]]),
                    table("i", &[("id", false)], &["u", "b"], &[&[1]]),
                ],
            ),
            7 => ("CREATE TABLE n(a, b);", vec![table("n", &[("rowid", false)], &["a", "b"], &[])]),
            8 => (
                "CREATE TABLE m(u UNIQUE, b); CREATE TABLE i(id INTEGER PRIMARY KEY, a, b);",
                vec![
                    table("m", &[("rowid", false)], &["u", "b"], &[&[0]]),
                    table("i", &[("id", false)], &["a", "b"], &[]),
                ],
            ),
            // What a trigger counts must be counted once.
            9 => (
                "CREATE TABLE f(k TEXT PRIMARY KEY, a, b DATE, c); CREATE TABLE audit(k TEXT PRIMARY KEY, n); \
                 CREATE TRIGGER f_update AFTER UPDATE ON f BEGIN INSERT INTO audit VALUES(new.k, 1) \
                 ON CONFLICT(k) DO UPDATE SET n = n + 1; END; \
                 CREATE TRIGGER f_delete AFTER DELETE ON f BEGIN INSERT INTO audit VALUES('gone ' || old.k, 1) \
                 ON CONFLICT(k) DO UPDATE SET n = n + 1; END;",
                vec![plain(), keyed("audit", &["n"], &[])],
            ),
            10 => (
                "CREATE TABLE p(k TEXT PRIMARY KEY, a); CREATE TABLE ch(k TEXT PRIMARY KEY, \
                 u TEXT REFERENCES p(k) ON DELETE CASCADE ON UPDATE CASCADE, b);",
                vec![keyed("p", &["a"], &[]), keyed("ch", &["u", "b"], &[])],
            ),
            _ => (
                "CREATE TABLE f(k TEXT PRIMARY KEY, a, b DATE, c); CREATE TABLE u(k TEXT PRIMARY KEY, u UNIQUE, b); \
                 CREATE TABLE w(k TEXT PRIMARY KEY, u, v, b, UNIQUE(u), UNIQUE(u, v)); CREATE TABLE n(a, b);",
                vec![
                    plain(),
                    keyed("u", &["u", "b"], &[&[1]]),
                    keyed("w", &["u", "v", "b"], &[&[1], &[1, 2]]),
                    table("n", &[("rowid", false)], &["a", "b"], &[]),
                ],
            ),
        };
        Schema { sql, tables }
    }

    pub fn table(&self, name: &str) -> &SimTable {
        self.tables.iter().find(|table| table.name == name).unwrap()
    }
}

/// An application's transaction.
pub fn transaction(app: &Connection, schema: &Schema, seed: u64) {
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    statements(app, schema, seed);
    app.execute_batch("COMMIT").unwrap();
}

/// The statements of one: so many that do something, if as many are found. What SQLite refuses is left out.
pub fn statements(app: &Connection, schema: &Schema, seed: u64) {
    let mut rng = Random::new(seed);
    let count = *rng.pick(&[1, 1, 1, 2, 2, 3, 4, 8]);
    (0..count * 3).filter(|_| statement(app, schema, &mut rng)).take(count).for_each(drop);
}

fn key(table: &SimTable, rng: &mut Random) -> Vec<Bound> {
    let of = |(_, is_text): &(&str, bool)| match is_text {
        true => Bound::Text(format!("k{}", rng.below(4))),
        false => Bound::Integer(rng.range(1, 5)),
    };
    table.key.iter().map(of).collect()
}

/// A value for the column with this name: few for those that are UNIQUE or refer to others, of every storage class for the rest.
fn value(name: &str, rng: &mut Random) -> Bound {
    match name {
        "u" | "v" => match rng.below(8) {
            0 => Bound::Null,
            n => Bound::Integer(1 + n as i64 / 2),
        },
        _ => match rng.below(20) {
            0 => Bound::Null,
            1 => Bound::Real(rng.below(1000) as f64 / 4.0),
            2 => Bound::Blob(rng.bytes(5)),
            3 => Bound::Text("x".repeat(700 + rng.below(9) as usize)),
            4..8 => Bound::Text(format!("2024-02-{:02}T23:59:60.{}Z", rng.below(40), rng.below(1000))),
            _ => Bound::Integer(rng.below(1 << 40) as i64),
        },
    }
}

fn row(table: &SimTable, rng: &mut Random) -> Vec<Bound> {
    let refers = table.name == "ch";
    let of = |name: &&str| match refers && *name == "u" {
        true => Bound::Text(format!("k{}", rng.below(4))),
        false => value(name, rng),
    };
    table.values.iter().map(of).collect()
}

fn statement(app: &Connection, schema: &Schema, rng: &mut Random) -> bool {
    let table = rng.pick(&schema.tables);
    let name = table.name;
    let (at, to, row) = (key(table, rng), key(table, rng), row(table, rng));
    let columns: Vec<&str> = table.key.iter().map(|(name, _)| *name).chain(table.values.iter().copied()).collect();
    let place = table.key.iter().map(|(name, _)| format!("{name} = ?")).collect::<Vec<_>>().join(" AND ");
    let run = |sql: String, values: Vec<Bound>| app.prepare_cached(&sql)?.execute(params_from_iter(values));
    let insert = |how: &str| {
        let places = vec!["?"; columns.len()].join(", ");
        run(format!("{how} INTO {name}({}) VALUES({places})", columns.join(", ")), [at.clone(), row.clone()].concat())
    };
    let column = rng.below(row.len() as u64) as usize;
    let second = rng.below(row.len() as u64) as usize;
    let set = if rng.chance(25) && second != column { vec![column, second] } else { vec![column] };
    let update = |how: &str| {
        let list = set.iter().map(|c| format!("{} = ?", table.values[*c])).collect::<Vec<_>>().join(", ");
        let values = set.iter().map(|c| row[*c].clone()).chain(at.clone()).collect();
        run(format!("{how} {name} SET {list} WHERE {place}"), values)
    };
    let swap = || {
        let c = table.values[column];
        let get = |key: &Vec<Bound>| {
            let sql = format!("SELECT {c} FROM {name} WHERE {place}");
            app.query_row(&sql, params_from_iter(key.clone()), |row| row.get::<_, Bound>(0))
        };
        let (a, b) = (get(&at)?, get(&to)?);
        for (key, value) in [(&at, Bound::Null), (&to, a), (&at, b)] {
            run(format!("UPDATE {name} SET {c} = ? WHERE {place}"), [vec![value], key.clone()].concat())?;
        }
        Ok(1)
    };
    let rename = || {
        let list = table.key.iter().map(|(name, _)| format!("{name} = ?")).collect::<Vec<_>>().join(", ");
        run(format!("UPDATE {name} SET {list} WHERE {place}"), [to.clone(), at.clone()].concat())
    };
    let done = match rng.below(100) {
        0..20 => insert("INSERT"),
        20..32 => insert("INSERT OR REPLACE"),
        32..60 => update("UPDATE"),
        60..70 => update("UPDATE OR REPLACE"),
        70..82 => run(format!("DELETE FROM {name} WHERE {place}"), at.clone()),
        82..92 => swap(),
        _ => rename(),
    };
    done.is_ok_and(|rows: usize| rows > 0)
}
