//! Without a server's address: the one that listens on the usual port, or one of our own.
//!
//! The port is fixed, so these tests follow one another, and say so when somebody else has it.

use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use crate::support::cluster::{Node, wait_for, woodchuck};
use crate::support::nats::binary;

const PORT: u16 = 4222;
static ORDER: Mutex<()> = Mutex::new(());

/// Waits for the other tests of this file; fails when a program that is not ours listens on the port.
fn alone() -> MutexGuard<'static, ()> {
    let guard = ORDER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = TcpListener::bind(("127.0.0.1", PORT)) {
        panic!("port {PORT} of this machine must be free for this test, and is not: {error}");
    }
    guard
}

fn database(dir: &std::path::Path) -> std::path::PathBuf {
    let db = dir.join("app.db");
    let script = "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)";
    Connection::open(&db).unwrap().execute_batch(script).unwrap();
    db
}

#[test]
fn a_node_without_a_server_starts_one_and_ends_it() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    let nodes = [&first, &second].map(|dir| {
        std::fs::create_dir(dir).unwrap();
        database(dir)
    });
    let program = binary();
    let env = [("NATS_SERVER", program.to_str().unwrap())];
    let [mut a, mut b] = [Node::new(1, &nodes[0], &[]), Node::new(2, &nodes[1], &[])];
    a.spawn_with(&env);
    a.wait_until_ready();
    assert!(a.log().contains("started"), "it says so: {}", a.log());
    assert!(a.state_dir().join("nats/jetstream").is_dir(), "the server's data is in the state directory");
    // The second finds the first one's server.
    b.spawn_with(&env);
    b.wait_until_ready();
    assert!(!b.state_dir().join("nats").exists());
    a.sql("INSERT INTO t VALUES(1, 'over our own server')");
    wait_for("the row", || {
        let found = b.value("SELECT count(*) FROM t");
        if found == "1" { Ok(()) } else { Err(found) }
    });
    b.stop();
    a.stop();
    assert!(TcpStream::connect(("127.0.0.1", PORT)).is_err(), "the server ended with its node");
    // What it stored is there again.
    a.spawn_with(&env);
    a.wait_until_ready();
    a.stop();
}

#[test]
fn a_node_with_no_server_to_find_or_start_says_what_to_do() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let db = database(dir.path());
    let output = woodchuck(&["run", "--db-path"]).arg(&db).env("NATS_SERVER", "").env("PATH", "").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no NATS server listens on nats://127.0.0.1:4222"), "{text}");
    assert!(text.contains("--nats-url"), "{text}");
    assert!(!dir.path().join("app.db-shm").exists() && !dir.path().join("app.db-wal").exists(), "it was closed");
}
