//! Where a live database stands: the bound that belongs to a generation, and the state to start from.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::connections::{Bound, Link};
use super::frames::Frames;
use super::{CaptureError, DatabaseFile, Position};
use crate::format::{Checksum, FrameNo, Salts};

/// How long header and bound are looked at until they belong together. A look fails while a generation begins and while a commit is written
/// into the index, which takes microseconds unless whoever does it was stopped there. The caller may try again.
const BOUND_WITHIN: Duration = Duration::from_secs(1);
/// Looks without a pause, before a stopped writer is taken into account, and the pause from then on.
const BOUND_LOOKS_EAGER: u32 = 10_000;
const BOUND_LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How often a lock that seems to belong to another `-shm` is looked at before it counts: a process that is just opening the database has
/// the one lock and not yet the other.
const FOREIGN_LOOKS: usize = 10;

pub(super) fn refuse_foreign_locks(file: &DatabaseFile) -> Result<(), CaptureError> {
    let mut seen = None;
    for _ in 0..FOREIGN_LOOKS {
        match file.foreign_user() {
            None => return Ok(()),
            Some(pid) => seen = Some(pid),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    seen.map_or(Ok(()), |pid| Err(CaptureError::ForeignLock { path: file.path().to_owned(), pid }))
}

/// Reads generation and bound that belong together; the salts are `None` while the log is empty.
pub(super) fn look_at_bound(
    frames: &Frames,
    bounds: &Link,
    file: &DatabaseFile,
) -> Result<(Option<Salts>, Bound), CaptureError> {
    let began = Instant::now();
    let mut looks = 0;
    while looks < BOUND_LOOKS_EAGER || began.elapsed() < BOUND_WITHIN {
        let before = frames.read_header()?.map(|header| header.salts);
        let bound = bounds.noop()?;
        let after = frames.read_header()?.map(|header| header.salts);
        match bound {
            Some(bound) if before == after && (after.is_some() || bound.committed == 0) => return Ok((after, bound)),
            _ if looks < BOUND_LOOKS_EAGER => std::thread::yield_now(),
            _ => std::thread::sleep(BOUND_LOOK_INTERVAL),
        }
        looks += 1;
    }
    Err(CaptureError::Locked { path: file.path().to_owned() })
}

/// How often the log may be restarted while we look where it ends.
const STANDS_MAX: usize = 1000;

/// Takes everything up to the bound as the state to start from: the pages that the log has are indexed, the others are in the file.
///
/// When everything is checkpointed the log may be restarted or truncated under us: then none of it is used, the file has it all.
pub(super) fn stand_at(
    frames: &mut Frames,
    bounds: &Link,
    file: &DatabaseFile,
) -> Result<(Position, Bound), CaptureError> {
    for _ in 0..STANDS_MAX {
        let (salts, bound) = look_at_bound(frames, bounds, file)?;
        let Some(salts) = salts.filter(|_| bound.committed > 0) else {
            frames.forget();
            return Ok((outside_generations(file)?, bound));
        };
        let Some(header) = frames.read_header()?.filter(|header| header.salts == salts) else { continue };
        let last = FrameNo(bound.committed);
        frames.begin_generation(header);
        if bound.checkpointed == bound.committed {
            let commit = frames.read_frame_header(&header, last)?;
            let still = frames.read_header()?.is_some_and(|header| header.salts == salts);
            match commit.and_then(|commit| Some((commit.checksum, commit.commit?))).filter(|_| still) {
                Some((checksum, page_count)) => {
                    return Ok((Position { salts, frame: last, checksum, page_count }, bound));
                }
                None => continue,
            }
        }
        frames.cover(last)?;
        let mut position = Position { salts, frame: FrameNo(0), checksum: Checksum::default(), page_count: 0 };
        while position.frame < last {
            let tx = frames.collect(FrameNo(position.frame.0 + 1), last)?;
            let Some((frame, header)) = tx.commit else { break };
            frames.take(&tx);
            position = Position { salts, frame, checksum: header.checksum, page_count: tx.page_count };
        }
        return Ok((position, bound));
    }
    Err(CaptureError::Locked { path: file.path().to_owned() })
}

/// The position while the log is empty. The checksum is a number that tells one such state from another: nothing else does.
fn outside_generations(file: &DatabaseFile) -> Result<Position, CaptureError> {
    let header = file.header()?;
    // With nothing in the log the size is what page 1 says; the file can be longer.
    let of_file = u32::try_from(file.file_bytes()? / u64::from(header.page_size.get())).unwrap_or(u32::MAX);
    let page_count = if header.size_is_valid { header.page_count } else { of_file };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let checksum = Checksum { s0: now.as_secs() as u32, s1: now.subsec_nanos() };
    Ok(Position { salts: Salts([0; 8]), frame: FrameNo(0), checksum, page_count })
}
