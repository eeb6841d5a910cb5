//! `tail --once`: what was committed since the last call, found by its place in the log or by comparing with the shadow.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::args::TailArgs;
use super::config::row_filters;
use super::exit::Failure;
use super::tail::{fitting, note, sink};
use crate::capture::{DatabaseFile, FollowError, Follower, POSITION_BYTES, Position};

/// The file that keeps the place: the position, then the number of the next transaction.
const PLACE: &str = "position";

/// Prints the changes since the last call and moves the place behind them. The first call only sets the place.
///
/// The place moves after the output was taken: a call that is killed before shows the same changes again.
///
/// # Errors
/// [`Failure`] when the database cannot be followed, or the directory is another's or in use.
pub(super) fn tail_once(args: &TailArgs, state_dir: &Path) -> Result<(), Failure> {
    let rows = row_filters(&args.rows)?;
    let cannot = |what: &str, error: &std::io::Error| {
        Failure::failed(format_args!("cannot {what} {}: {error}", state_dir.display()))
            .hint("check the owner, the permissions and the free space of the directory")
    };
    // A database that cannot be followed leaves no directory behind.
    DatabaseFile::open(&args.database)?;
    if state_dir.join("state.db").exists() {
        return Err(Failure::refused(format_args!("{} belongs to a node", state_dir.display()))
            .hint("give --once a state directory of its own"));
    }
    fs::create_dir_all(state_dir).map_err(|error| cannot("make", &error))?;
    let lock = File::options().create(true).truncate(false).write(true).open(state_dir.join("lock"));
    let lock = lock.map_err(|error| cannot("lock", &error))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Failure::refused(format_args!("another program is using {}", state_dir.display()))
            .hint("wait for it, or give --once a state directory of its own"));
    }
    let place = match fs::read(state_dir.join(PLACE)) {
        Ok(bytes) => Some(place_of(&bytes).ok_or_else(|| {
            Failure::failed(format_args!("{} does not hold a place", state_dir.join(PLACE).display()))
                .hint("remove the state directory to start from now")
        })?),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(cannot("read", &error)),
    };
    let position = place.map(|(position, _)| position);
    let mut follower =
        Follower::attach_with_shadow(&args.database, state_dir, position, &mut |_| ControlFlow::Continue(()))?;
    // Who only looks is shown what there is, however much is gone.
    follower.set_accept_restored(true);
    match place {
        Some((_, next_tx)) => follower.set_next_tx(next_tx),
        None => note(format_args!("the place is set: the next call shows what is committed from now on")),
    }
    if let Err(failure) = fitting(&rows, follower.catalogue()) {
        follower.detach()?;
        return Err(failure);
    }
    let mut sink = sink(args, rows, &follower);
    let mut follow = || -> Result<(), FollowError<std::io::Error>> {
        while follower.poll(&mut sink)?.more {}
        follower.merge()?;
        Ok(())
    };
    let followed = follow();
    let stored = match &followed {
        Ok(()) => store(state_dir, &follower).map_err(|error| cannot("write the place into", &error)),
        Err(_) => Ok(()),
    };
    let detached = follower.detach();
    followed?;
    stored?;
    Ok(detached?)
}

fn place_of(bytes: &[u8]) -> Option<(Position, u64)> {
    let (position, next_tx) = bytes.split_at_checked(POSITION_BYTES)?;
    Some((Position::from_bytes(position)?, u64::from_be_bytes(next_tx.try_into().ok()?)))
}

fn store(state_dir: &Path, follower: &Follower) -> std::io::Result<()> {
    let mut bytes = follower.position().to_bytes().to_vec();
    bytes.extend_from_slice(&follower.next_tx().to_be_bytes());
    let new = state_dir.join(format!("{PLACE}.new"));
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    fs::rename(new, state_dir.join(PLACE))
}
