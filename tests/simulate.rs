//! Deterministic simulation: clusters of the product's own nodes, over the log in memory and real SQLite files, do what a schedule made of a
//! seed says, one step after another, and are compared with the specification after each.
//!
//! `SEED=n` runs one schedule; `make simulate` runs as many as there is time for.

mod ahead;
mod behind;
mod check;
mod cluster;
mod fold;
mod found;
mod migrations;
mod named;
mod node;
mod objects;
mod overridden;
mod schedule;
mod schema;
mod shrink;

use std::time::{Duration, Instant};

use cluster::Met;
use schedule::{Schedule, Step};
use shrink::{attempt, shrink};

/// Schedules of the ordinary test; `WOODCHUCK_SIMULATE_SEEDS` asks for others as `first..end`.
const SEEDS: std::ops::Range<u64> = 0..200;

/// Runs these schedules until the time is over. Panics with the smallest schedule that fails as the first of them does.
fn simulate(seeds: std::ops::Range<u64>, within: Duration) -> (u64, Met) {
    let began = Instant::now();
    let (mut count, mut all) = (0, Met::new());
    for seed in seeds {
        if began.elapsed() >= within {
            break;
        }
        let schedule = Schedule::of(seed);
        match attempt(&schedule) {
            Ok(run) => run.met.into_iter().for_each(|(what, n)| *all.entry(what).or_default() += n),
            Err(said) => {
                eprintln!("SEED={seed}: {said}\nlooking for a smaller schedule");
                let small = shrink(&schedule, |tried| attempt(tried).is_err());
                let said = attempt(&small).err().unwrap_or_else(|| "nothing, this time".to_owned());
                panic!("SEED={seed}: the smallest schedule that fails is\n{small}\nwhich says: {said}");
            }
        }
        count += 1;
    }
    (count, all)
}

fn wanted() -> (std::ops::Range<u64>, Duration) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let within = number("WOODCHUCK_SIMULATE_SECONDS").map_or(Duration::MAX, Duration::from_secs);
    if let Some(seed) = number("SEED") {
        return (seed..seed + 1, within);
    }
    let range = std::env::var("WOODCHUCK_SIMULATE_SEEDS").ok();
    let range = range.and_then(|text| {
        let (first, end) = text.split_once("..")?;
        Some(first.parse().ok()?..end.parse().ok()?)
    });
    (range.unwrap_or(SEEDS), within)
}

#[test]
fn nodes_hold_to_the_fold_after_every_step_of_any_schedule() {
    let (seeds, within) = wanted();
    let is_usual = seeds == SEEDS;
    let began = Instant::now();
    let (count, met) = simulate(seeds, within);
    eprintln!("{count} schedules in {:.1?}: {met:?}", began.elapsed());
    if is_usual {
        for what in ["transactions", "messages", "applications", "deaths", "duplicates", "snapshots", "catch-ups"] {
            assert!(met.contains_key(what), "the schedules must meet {what}: {met:?}");
        }
    }
}

/// The first node replicates some of the rows, the others all. What it shows within its filter is what the fold has within it, after every
/// step, and what its application has outside of it stays where it is.
#[test]
fn a_node_with_a_filter_holds_to_the_fold_within_it() {
    let (seeds, within) = wanted();
    let (began, mut all) = (Instant::now(), Met::new());
    for seed in seeds {
        if began.elapsed() >= within {
            break;
        }
        let mut schedule = Schedule::of(seed);
        schedule.setup.filtered = true;
        match attempt(&schedule) {
            Ok(run) => run.met.into_iter().for_each(|(what, n)| *all.entry(what).or_default() += n),
            Err(said) => {
                eprintln!("SEED={seed}: {said}\nlooking for a smaller schedule");
                let small = shrink(&schedule, |tried| attempt(tried).is_err());
                let said = attempt(&small).err().unwrap_or_else(|| "nothing, this time".to_owned());
                panic!("SEED={seed}: the smallest schedule that fails is\n{small}\nwhich says: {said}");
            }
        }
    }
    eprintln!("{all:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..60 {
        let schedule = Schedule::of(seed);
        let (one, other) = (attempt(&schedule).unwrap().trace, attempt(&schedule).unwrap().trace);
        let differs = one.iter().zip(&other).position(|(one, other)| one != other);
        assert_eq!(differs, None, "SEED={seed}: of {} steps the first that was another", schedule.steps.len());
    }
}

#[test]
fn a_schedule_that_fails_is_made_as_small_as_what_makes_it_fail() {
    let schedule = (0..).map(Schedule::of).find(|schedule| schedule.steps.len() >= 80).unwrap();
    let is_wanted = |step: &Step| matches!(step, Step::Write { .. } | Step::Deliver { .. });
    let count = |tried: &Schedule| tried.steps.iter().filter(|step| is_wanted(step)).count();
    let small = shrink(&schedule, |tried| count(tried) >= 3);
    assert_eq!((small.steps.len(), count(&small), small.setup.shards), (3, 3, 1), "{small}");
}
