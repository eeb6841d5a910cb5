//! Migrations that were recorded of the tools that people use, replayed while all nodes write.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::schema::settle;
use crate::support::cluster::{Cluster, Seed};

/// Fewer recordings than this mean that they were not found, or not all of them.
const RECORDING_COUNT_MIN: usize = 20;

/// How long everybody writes before the migration and after it.
const WRITING: Duration = Duration::from_millis(350);

fn recordings(of: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/migrations");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(found.len() >= RECORDING_COUNT_MIN, "only {} recordings were found", found.len());
    found.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(of));
    assert!(!found.is_empty(), "there is no recording of {of}");
    found.sort();
    found
}

fn script(db: &Path, mode: &str, recording: &Path, args: &[&str]) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/migration.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(db).arg(mode).arg(recording).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for its end, and returns what it printed.
fn end(child: Child, what: &str) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn replay(recording: &Path, seed: &Seed) {
    let begun = Instant::now();
    let name = recording.file_stem().unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(recording).unwrap();
    let shards = text.lines().find_map(|line| line.strip_prefix("-- shards: "));
    let args = shards.map(|count| vec!["--shards", count]).unwrap_or_default();
    let make = |db: &Path| drop(end(script(db, "before", recording, &[]), &name));
    let mut cluster = Cluster::prepare_copies(3, "", &args, make);
    cluster.start_nodes();
    let over = cluster.dir.path().join("over");
    let writers: Vec<Child> = cluster
        .nodes
        .iter()
        .map(|node| {
            let args = [&node.id.to_string(), &seed.text(node.id), over.to_str().unwrap()];
            script(&node.db, "write", recording, &args)
        })
        .collect();
    std::thread::sleep(WRITING);
    let migration = script(&cluster.nodes[0].db, "migrate", recording, &[]).wait_with_output().unwrap();
    std::thread::sleep(WRITING);
    std::fs::write(&over, "").unwrap();
    let ledgers: Vec<String> = writers.into_iter().map(|writer| end(writer, &name)).collect();
    assert!(migration.status.success(), "{name}: {}", String::from_utf8_lossy(&migration.stderr));
    settle(&cluster);
    let ledgers: Vec<&str> = ledgers.iter().map(String::as_str).collect();
    for node in &cluster.nodes {
        let count = end(script(&node.db, "check", recording, &ledgers), &format!("{name}, node {}", node.id));
        assert_ne!(count, "0", "{name}: somebody wrote something");
        let log = node.log();
        assert!(!log.contains("ERROR") && !log.contains("WARN"), "{name}, node {}: {log}", node.id);
    }
    cluster.stop();
    println!("{name} in {:?}", begun.elapsed());
}

fn replay_all(of: &str) {
    let seed = Seed::pick();
    recordings(of).iter().for_each(|recording| replay(recording, &seed));
}

#[test]
fn migrations_of_django_arrive_while_everybody_writes() {
    replay_all("django-");
}

#[test]
fn migrations_of_alembic_arrive_while_everybody_writes() {
    replay_all("alembic-");
}

#[test]
fn migrations_of_active_record_arrive_while_everybody_writes() {
    replay_all("rails-");
}

#[test]
fn migrations_of_knex_arrive_while_everybody_writes() {
    replay_all("knex-");
}

#[test]
fn migrations_of_prisma_in_a_transaction_arrive_while_everybody_writes() {
    replay_all("prisma-");
}
