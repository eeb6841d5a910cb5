//! An outside oracle: random schemas and workloads by the SQLite that Python brings, in processes of their own, while the program follows.
//! What is generated and compared: `support/adversary.py`.
//!
//! `WOODCHUCK_SEEDS=from..to` runs other seeds than the few of the ordinary run, `SEED=n` a single one.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seeds that found something once (columns of a table that was made anew under its name were told as if renamed). Part of every ordinary run.
const FOUND: [u64; 2] = [1_796_098_757_022, 1_796_098_757_342];
/// Seeds of the ordinary run, as long as the time lasts.
const SEEDS: std::ops::Range<u64> = 1..400;
/// How long the ordinary run goes on with new seeds.
const TIME: Duration = Duration::from_secs(20);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs one seed; what it printed last, or what went wrong.
fn run(seed: u64) -> Result<String, String> {
    let dir = crate::support::folder();
    let output = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/adversary.py"))
        .args([env!("CARGO_BIN_EXE_woodchuck"), &seed.to_string()])
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("python3 is needed as an outside writer");
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if output.status.success() && text.starts_with("ok ") {
        return Ok(text);
    }
    let kept = dir.keep();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("SEED={seed}\n{text}\n{errors}\nthe files are in {}", kept.display()))
}

#[test]
fn scripts_and_lines_of_random_workloads_are_what_another_sqlite_did() {
    let (seeds, time): (Vec<u64>, _) = match (number("SEED"), std::env::var("WOODCHUCK_SEEDS").ok()) {
        (Some(seed), _) => (vec![seed], Duration::MAX),
        (None, Some(range)) => {
            let (from, to) = range.split_once("..").unwrap_or(("1", &range));
            ((from.parse().unwrap()..to.parse().unwrap()).collect(), Duration::MAX)
        }
        (None, None) => (FOUND.into_iter().chain(SEEDS).collect(), TIME),
    };
    let began = Instant::now();
    let (mut runs, mut transactions) = (0, 0);
    for seed in seeds {
        if began.elapsed() > time {
            break;
        }
        match run(seed) {
            Ok(text) => {
                let count = text.split("transactions=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
                transactions += count.parse::<u64>().unwrap();
                runs += 1;
            }
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{runs} seeds, {transactions} transactions compared");
}
