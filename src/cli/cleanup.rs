//! `cleanup`: removes a node's state directory, and nothing else.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::args::CleanupArgs;
use super::exit::Failure;

/// Everything that a state directory can hold. A directory with anything else in it is not only ours.
const OURS: [&str; 21] = [
    "control",
    "durable",
    "inbox",
    "lock",
    "nats",
    "position",
    "position.new",
    "restoring",
    "sent",
    "sent.old",
    "shadow.db",
    "shadow.db.tmp",
    "shadow.journal",
    "shadow.stamp",
    "snapshot",
    "state.db",
    "state.db-journal",
    "state.db-shm",
    "state.db-wal",
    "status.json",
    "status.json.new",
];

/// Removes the state directory.
///
/// # Errors
/// Refuses ([`super::Exit::Refused`]) while a node runs on it, and when it holds files that are not ours.
pub(super) fn cleanup(args: &CleanupArgs) -> Result<(), Failure> {
    let dir = args.node.state_dir();
    let shown = dir.display();
    let cannot = |what: &str, path: &Path, error: &std::io::Error| {
        Failure::failed(format_args!("cannot {what} {}: {error}", path.display()))
            .hint("check the owner and the permissions of the directory")
    };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return say(format_args!("{shown} does not exist: nothing to remove"));
        }
        Err(error) => return Err(cannot("read", &dir, &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| cannot("read", &dir, &error))?;
        let name = entry.file_name();
        if !OURS.iter().any(|ours| name == *ours) {
            return Err(Failure::refused(format_args!("{shown} holds {}, which is not ours", name.display()))
                .hint("check that --db-path and --state-dir are right; move the file away if they are"));
        }
    }
    let lock_path = dir.join("lock");
    let lock = match File::open(&lock_path) {
        Ok(lock) => Some(lock),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(cannot("open", &lock_path, &error)),
    };
    if lock.as_ref().is_some_and(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()) {
        return Err(Failure::refused(format_args!("a node is running on {shown}")).hint("stop it first"));
    }
    fs::remove_dir_all(&dir).map_err(|error| cannot("remove", &dir, &error))?;
    say(format_args!("removed {shown}"))
}

fn say(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    std::io::stdout().write_all(format!("{text}\n").as_bytes()).map_err(|error| Failure::output(&error))
}
