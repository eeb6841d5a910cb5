//! From a schedule that fails to a small one.

use std::any::Any;
use std::cell::Cell;
use std::panic::catch_unwind;
use std::sync::Once;

use super::cluster::{Cluster, Run};
use super::schedule::{Schedule, Step};

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs a schedule. The error is what the panic said.
pub fn attempt(schedule: &Schedule) -> Result<Run, String> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                loud(info);
            }
        }));
    });
    IS_QUIET.set(true);
    let run = catch_unwind(|| Cluster::run(schedule));
    IS_QUIET.set(false);
    run.map_err(said)
}

fn said(cause: Box<dyn Any + Send>) -> String {
    match cause.downcast::<String>() {
        Ok(text) => *text,
        Err(cause) => cause.downcast_ref::<&str>().map_or("something else", |text| *text).to_owned(),
    }
}

/// Takes steps out, many at a time first, as long as what is left `fails`; then makes what is left simpler.
pub fn shrink(schedule: &Schedule, fails: impl Fn(&Schedule) -> bool) -> Schedule {
    let mut best = schedule.clone();
    let mut size = best.steps.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        let mut is_smaller = false;
        while at < best.steps.len() {
            let mut tried = best.clone();
            tried.steps.drain(at..(at + size).min(tried.steps.len()));
            if fails(&tried) {
                best = tried;
                is_smaller = true;
            } else {
                at += size;
            }
        }
        if !is_smaller || size > 1 {
            size /= 2;
        }
    }
    for simpler in simpler_setups(&best).into_iter().chain(simpler_steps(&best)) {
        let mut tried = best.clone();
        simpler(&mut tried);
        if fails(&tried) {
            best = tried;
        }
    }
    best
}

type Change = Box<dyn Fn(&mut Schedule)>;

fn simpler_setups(best: &Schedule) -> Vec<Change> {
    let nodes = best.steps.iter().filter_map(node_of).max().map_or(1, |no| no + 1);
    vec![
        Box::new(|tried| tried.setup.message_bytes_max = 1 << 20),
        Box::new(|tried| tried.setup.unit_bytes_max = 1 << 18),
        Box::new(|tried| tried.setup.remember_ids = true),
        Box::new(|tried| tried.setup.by_row = false),
        Box::new(move |tried| tried.setup.nodes = nodes),
        Box::new(|tried| tried.setup.shards = 1),
    ]
}

fn simpler_steps(best: &Schedule) -> Vec<Change> {
    let simpler = |(index, step): (usize, &Step)| -> Option<Change> {
        let simpler = match *step {
            Step::Die { node, .. } => Step::Turn { node },
            Step::Reboot { node } => Step::Kill { node },
            Step::Apply { node, impatient: true } => Step::Apply { node, impatient: false },
            _ => return None,
        };
        Some(Box::new(move |tried| tried.steps[index] = simpler))
    };
    best.steps.iter().enumerate().filter_map(simpler).collect()
}

fn node_of(step: &Step) -> Option<usize> {
    match *step {
        Step::Write { node, .. }
        | Step::Sql { node, .. }
        | Step::Begin { node, .. }
        | Step::End { node, .. }
        | Step::Turn { node }
        | Step::Capture { node }
        | Step::Apply { node, .. }
        | Step::Publish { node }
        | Step::Send { node, .. }
        | Step::Ack { node, .. }
        | Step::Deliver { node, .. }
        | Step::Kill { node }
        | Step::Reboot { node }
        | Step::Die { node, .. }
        | Step::Stop { node }
        | Step::Start { node }
        | Step::Checkpoint { node }
        | Step::Snapshot { node }
        | Step::CatchUp { node }
        | Step::Rejoin { node } => Some(node),
        Step::Again { .. } | Step::Late { .. } | Step::Trim { .. } => None,
    }
}
