//! Fault points: the boundaries between two things that cannot happen at once, where a test lets the daemon die as `kill -9` would.
//!
//! `WOODCHUCK_DIE_AT=<name>` makes a node die at the first passing of a point, `<name>:<n>` at the *n*-th. Nothing is flushed and nobody is
//! told but by a line on stderr. Without the variable a point costs one relaxed load.
//!
//! A test that runs nodes in its own process lets them die by unwinding instead, see [`unwind_at`].

use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// The variable that names where to die.
pub const VARIABLE: &str = "WOODCHUCK_DIE_AT";

/// Makes the enum, the list and the names from one table.
macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A place to die at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// All of them.
            pub const ALL: &'static [Point] = &[$(Point::$point,)*];

            /// How the variable names it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// The database is copied for the first time; the copy has no name yet.
    ShadowCopy = "shadow-copy",
    /// The first copy has its name, the position is not stored.
    ShadowCopied = "shadow-copied",
    /// A transaction was read, and its pages are not in the journal.
    JournalAppend = "journal-append",
    /// Its pages are in the journal, and it is not in `state.db`.
    JournalAppended = "journal-appended",
    /// A captured transaction is in `state.db` with the position behind it.
    Captured = "captured",
    /// A round was made and is not stored.
    Seal = "seal",
    /// A round is stored, and none of it was sent.
    Sealed = "sealed",
    /// A message is about to be sent.
    Publish = "publish",
    /// The server has taken a message, and `state.db` does not know it.
    Published = "published",
    /// `state.db` knows that a message was taken.
    Acknowledged = "acknowledged",
    /// Own messages were folded without a change to the database, and `state.db` was not committed.
    OwnFolded = "own-folded",
    /// Messages are folded in the open transactions of both databases.
    Folded = "folded",
    /// The intent is on disk; the user's database has not committed.
    IntentWritten = "intent-written",
    /// The user's database has committed; capture has not seen it.
    UserCommitted = "user-committed",
    /// Our own commit is in the journal; the intent is not the state yet.
    OwnTaken = "own-taken",
    /// The intent is the state.
    IntentSettled = "intent-settled",
    /// A merge of the journal begins.
    Merge = "merge",
    /// A part of the journal's pages is in `shadow.db`.
    MergeHalf = "merge-half",
    /// All pages are in `shadow.db`, and the journal still has them.
    MergeWritten = "merge-written",
    /// The journal begins anew.
    Merged = "merged",
    /// A checkpoint of ours is about to begin.
    Checkpoint = "checkpoint",
    /// A checkpoint of ours has ended.
    Checkpointed = "checkpointed",
    /// Nobody else has the database open; the log is about to be emptied.
    Truncate = "truncate",
    /// The log was emptied.
    Truncated = "truncated",
}

const NOWHERE: u8 = u8::MAX;
/// Each thread knows by itself.
const BY_THREAD: u8 = u8::MAX - 1;

/// Where to die: the number of a point.
static AT: AtomicU8 = AtomicU8::new(NOWHERE);
/// At which passing, counting down.
static PASSINGS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// Where this thread unwinds, and at which passing, counting down.
    static UNWIND_AT: Cell<Option<(Point, u32)>> = const { Cell::new(None) };
}

/// What a thread unwinds with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Died(pub Point);

/// Makes this thread unwind with [`Died`] at a passing of a point, from 1 on; `None` makes it stay. What was open is dropped, which closes
/// and rolls back as the system does for a process that was killed. Without effect in a process that has the variable.
pub fn unwind_at(at: Option<(Point, u32)>) {
    UNWIND_AT.set(at);
    let _ = AT.compare_exchange(NOWHERE, BY_THREAD, Ordering::AcqRel, Ordering::Relaxed);
}

/// Takes the wish of the environment.
///
/// # Errors
/// The text of the variable, when it names no point.
pub fn arm_from_environment() -> Result<(), String> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let text = text.to_string_lossy().into_owned();
    let (name, passing) = text.split_once(':').unwrap_or((&text, "1"));
    let point = Point::ALL.iter().find(|point| point.name() == name);
    match (point, passing.parse::<u32>()) {
        (Some(point), Ok(passing)) if passing > 0 => {
            PASSINGS.store(passing, Ordering::Relaxed);
            AT.store(*point as u8, Ordering::Release);
            Ok(())
        }
        _ => Err(text),
    }
}

/// Dies here if that is wanted.
#[inline]
pub fn pass(point: Point) {
    let at = AT.load(Ordering::Relaxed);
    if at == point as u8 {
        reached(point);
    } else if at == BY_THREAD {
        reached_by_thread(point);
    }
}

#[cold]
fn reached_by_thread(point: Point) {
    match UNWIND_AT.get() {
        Some((at, 0 | 1)) if at == point => {
            UNWIND_AT.set(None);
            std::panic::resume_unwind(Box::new(Died(point)));
        }
        Some((at, passing)) if at == point => UNWIND_AT.set(Some((at, passing - 1))),
        _ => {}
    }
}

#[cold]
fn reached(point: Point) {
    if PASSINGS.fetch_sub(1, Ordering::AcqRel) == 1 {
        let _ = writeln!(std::io::stderr(), "dying at fault point {}", point.name());
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}
