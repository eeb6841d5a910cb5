//! Schedules that have found something once, made as small as they go.

use woodchuck::fault::Point;

use super::cluster::Cluster;
use super::schedule::Fate::{AckLost, Stored};
use super::schedule::Step::{Checkpoint, Deliver, Die, Reboot, Send, Turn, Write};
use super::schedule::{Schedule, Setup};

const SETUP: Setup = Setup {
    nodes: 2,
    shards: 1,
    kind: 0,
    by_row: false,
    message_bytes_max: 1048576,
    unit_bytes_max: 262144,
    remember_ids: true,
    genesis: 0,
    filtered: false,
};

fn replay(setup: Setup, steps: &[super::schedule::Step]) {
    Cluster::run(&Schedule { setup, steps: steps.to_vec() });
}

/// A node died between its commit and the settling of its intent, and the log was gone when it came back. The rows that the intent had made
/// were in nobody's base then, while the messages were to be folded again: the fold went on from rows that were ahead of it.
#[test]
fn a_gap_behind_an_intent_leaves_the_rows_of_the_intent_above_their_base() {
    let setup = Setup { kind: 3, genesis: 14798859022679802719, ..SETUP };
    replay(
        setup,
        &[
            Write { node: 0, seed: 18275075338590853004 },
            Turn { node: 0 },
            Send { node: 0, shard: 0, fate: AckLost },
            Deliver { node: 1, shard: 0, count: 1 },
            Die { node: 1, point: Point::OwnTaken, passing: 1 },
            Write { node: 1, seed: 11243456264494688865 },
            Checkpoint { node: 1 },
        ],
    );
}

/// As before, and the node died once more while it found out.
#[test]
fn a_gap_behind_an_intent_may_be_met_by_a_node_that_dies_again() {
    let setup = Setup { nodes: 3, kind: 10, genesis: 317272977662969449, ..SETUP };
    replay(
        setup,
        &[
            Write { node: 2, seed: 432360360622826281 },
            Write { node: 1, seed: 16827568671925940867 },
            Turn { node: 2 },
            Send { node: 2, shard: 0, fate: Stored },
            Deliver { node: 1, shard: 1, count: 1 },
            Die { node: 1, point: Point::UserCommitted, passing: 1 },
            Write { node: 1, seed: 3811314209496857800 },
            Die { node: 1, point: Point::Captured, passing: 1 },
        ],
    );
}

/// A node died with its machine while half of a round was on the log. It waited for the log to be applied before it sent the rest, and the
/// log could not be applied before the rest was there.
#[test]
fn a_round_that_is_half_sent_is_sent_whatever_else_must_be_found_out() {
    let steps = [
        Write { node: 0, seed: 1 },
        Write { node: 0, seed: 2 },
        Write { node: 0, seed: 3 },
        Write { node: 0, seed: 4 },
        Turn { node: 0 },
        Send { node: 0, shard: 1, fate: Stored },
        Reboot { node: 0 },
    ];
    replay(Setup { shards: 2, ..SETUP }, &steps);
}
