//! Schedules: what a cluster is and what happens to it, made of a seed. Both print as the Rust that makes them.

use woodchuck::fault::Point;

use super::schema::KINDS;
use crate::support::random::Random;

/// What a cluster is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setup {
    pub nodes: usize,
    pub shards: u16,
    /// Which tables, see [`super::schema::Schema::of`].
    pub kind: usize,
    /// `conflict = "row"`.
    pub by_row: bool,
    /// Small ones cut units into pieces.
    pub message_bytes_max: usize,
    /// Small ones cut transactions into several units.
    pub unit_bytes_max: usize,
    /// Whether the log knows message ids again; otherwise every message that is sent again is stored again.
    pub remember_ids: bool,
    /// The rows at the beginning.
    pub genesis: u64,
    /// The first node replicates some rows only.
    pub filtered: bool,
}

/// What becomes of a message that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Stored,
    /// Not stored, and the publisher is told so.
    Failed,
    /// Stored, and the publisher tries again.
    AckLost,
    /// Stored twice.
    Twice,
}

/// What happens. Steps of a node that is down do nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// The application commits a transaction.
    Write {
        node: usize,
        seed: u64,
    },
    /// It commits this one.
    Sql {
        node: usize,
        sql: &'static str,
    },
    /// The application begins a transaction and leaves it open.
    Begin {
        node: usize,
        seed: u64,
    },
    /// It ends it.
    End {
        node: usize,
        commit: bool,
    },
    /// The database thread does everything once.
    Turn {
        node: usize,
    },
    Capture {
        node: usize,
    },
    /// `impatient`: whatever waits of a round has waited long enough.
    Apply {
        node: usize,
        impatient: bool,
    },
    Publish {
        node: usize,
    },
    /// The publisher sends its next message of a shard, or of each (0).
    Send {
        node: usize,
        shard: u16,
        fate: Fate,
    },
    /// The node is told of some of what was acknowledged.
    Ack {
        node: usize,
        count: usize,
    },
    /// So many messages of a shard, or of each (0), reach the node.
    Deliver {
        node: usize,
        shard: u16,
        count: usize,
    },
    /// A message that is on the log comes to stand there again.
    Again {
        shard: u16,
        back: usize,
    },
    /// What a node that was killed had sent reaches the log.
    Late {
        shard: u16,
    },
    Kill {
        node: usize,
    },
    /// Dies with its machine, which loses nothing. It cannot know that.
    Reboot {
        node: usize,
    },
    /// Dies at a passing of a point while it does everything once, or starts.
    Die {
        node: usize,
        point: Point,
        passing: u32,
    },
    Stop {
        node: usize,
    },
    Start {
        node: usize,
    },
    /// The application's checkpoint: its log begins anew if nobody keeps it.
    Checkpoint {
        node: usize,
    },
    Snapshot {
        node: usize,
    },
    /// The log forgets what the newest snapshot has.
    Trim {
        shard: u16,
    },
    /// A node that fell behind gets a snapshot.
    CatchUp {
        node: usize,
    },
    /// A node that is down is made anew from the newest snapshot, if nothing would be lost.
    Rejoin {
        node: usize,
    },
}

/// Where nodes die: the points that the database thread passes once it runs, the usual ones more often.
pub const POINTS: &[Point] = &[
    Point::JournalAppend,
    Point::JournalAppended,
    Point::Captured,
    Point::Seal,
    Point::Sealed,
    Point::Acknowledged,
    Point::OwnFolded,
    Point::Folded,
    Point::Folded,
    Point::IntentWritten,
    Point::IntentWritten,
    Point::UserCommitted,
    Point::UserCommitted,
    Point::OwnTaken,
    Point::IntentSettled,
    Point::Merge,
    Point::MergeHalf,
    Point::MergeWritten,
    Point::Merged,
    Point::Checkpoint,
    Point::Checkpointed,
];

/// A cluster with what happens to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub setup: Setup,
    pub steps: Vec<Step>,
}

impl std::fmt::Display for Schedule {
    /// The Rust that makes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:?}", self.setup)?;
        for step in &self.steps {
            let step = format!("{step:?}").replace("point: ", "point: Point::").replace("fate: ", "fate: Fate::");
            writeln!(f, "    {step},")?;
        }
        Ok(())
    }
}

impl Schedule {
    pub fn of(seed: u64) -> Schedule {
        let mut rng = Random::new(seed);
        let setup = Setup {
            nodes: *rng.pick(&[2, 2, 2, 3, 3, 4, 5]),
            shards: *rng.pick(&[1, 1, 2, 3, 8]),
            kind: rng.below(KINDS as u64) as usize,
            by_row: rng.chance(20),
            message_bytes_max: *rng.pick(&[400, 1000, 1 << 20, 1 << 20]),
            unit_bytes_max: *rng.pick(&[1, 300, 1 << 18, 1 << 18]),
            remember_ids: rng.chance(70),
            genesis: rng.next(),
            filtered: false,
        };
        let count = *rng.pick(&[20, 50, 80, 150]);
        let habits = Habits::of(&mut rng, &setup);
        let steps = (0..count).map(|_| habits.step(&mut rng, &setup)).collect();
        Schedule { setup, steps }
    }
}

/// What is usual in one schedule: rare things meet each other only where they are not rare.
struct Habits {
    is_impatient: bool,
    crashes: u64,
    snapshots: u64,
    open_transactions: u64,
    /// A node that mostly does not read, and falls behind.
    deaf: Option<usize>,
}

impl Habits {
    fn of(rng: &mut Random, setup: &Setup) -> Habits {
        Habits {
            is_impatient: rng.chance(15),
            crashes: *rng.pick(&[0, 5, 10, 25]),
            snapshots: *rng.pick(&[0, 0, 5, 12]),
            open_transactions: *rng.pick(&[0, 0, 0, 4]),
            deaf: rng.chance(25).then_some(setup.nodes - 1),
        }
    }

    fn step(&self, rng: &mut Random, setup: &Setup) -> Step {
        let node = rng.below(setup.nodes as u64) as usize;
        let shard = 1 + rng.below(u64::from(setup.shards)) as u16;
        if rng.chance(self.crashes) {
            return match rng.below(13) {
                0..2 => Step::Kill { node },
                12 => Step::Reboot { node },
                2..8 => Step::Die { node, point: *rng.pick(POINTS), passing: *rng.pick(&[1, 1, 1, 2, 3]) },
                8 => Step::Stop { node },
                9 => Step::Checkpoint { node },
                10 => Step::Late { shard },
                _ => Step::Start { node },
            };
        }
        if rng.chance(self.snapshots) {
            return match rng.below(10) {
                0..4 => Step::Snapshot { node },
                4..7 => Step::Trim { shard },
                7..9 => Step::CatchUp { node },
                _ => Step::Rejoin { node },
            };
        }
        if rng.chance(self.open_transactions) {
            let commit = rng.chance(70);
            return if rng.chance(50) { Step::Begin { node, seed: rng.next() } } else { Step::End { node, commit } };
        }
        let hears = self.deaf != Some(node) || rng.chance(10);
        // Mostly all shards at once, or little would come about where there are many.
        let some = if rng.chance(60) { 0 } else { shard };
        match rng.below(100) {
            0..24 => Step::Write { node, seed: rng.next() },
            24..29 => Step::Capture { node },
            29..36 => Step::Publish { node },
            36..52 => {
                let fates = [Fate::Stored; 5].into_iter().chain([Fate::Failed, Fate::AckLost, Fate::Twice]);
                Step::Send { node, shard: some, fate: *rng.pick(&fates.collect::<Vec<_>>()) }
            }
            52..58 => Step::Ack { node, count: *rng.pick(&[1, 2, 50]) },
            58..74 if hears => Step::Deliver { node, shard: some, count: *rng.pick(&[1, 2, 50, 50]) },
            74..82 if hears => Step::Apply { node, impatient: self.is_impatient && rng.chance(30) },
            82..95 => Step::Turn { node },
            95 => Step::Again { shard, back: rng.below(4) as usize },
            96 => Step::Checkpoint { node },
            97 => Step::Late { shard },
            _ => Step::Start { node },
        }
    }
}
