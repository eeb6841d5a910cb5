//! What makes the position durable, and the merge that follows from it.

use std::time::{Duration, Instant};

use super::resume::Started;
use super::shadow::Shadow;
use super::{CaptureError, Follower, Position};

/// Makes durable what the sink stored, and may note the position that is durable then.
pub type DurableHook = Box<dyn FnMut(&Position) -> std::io::Result<()> + Send>;

/// How often everything is made durable, unless told otherwise: at most this much is in doubt after a power failure.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// From here on the journal is merged before a checkpoint: as many pages as make a checkpoint worthwhile.
const MERGE_PAGES: u64 = 1000;
/// From here on the journal is merged when everything was made durable anyway.
const MERGE_BYTES: u64 = 4 << 20;
/// From here on the journal is merged at once: it bounds the time to open it.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// The same in versions of pages: it bounds the index, and with little changed in each page there are many.
const JOURNAL_PAGES_MAX: u64 = 1 << 18;
/// What makes the position durable, and when it did.
pub(super) struct Durability {
    pub(super) hook: Option<DurableHook>,
    synced_at: Instant,
    synced: Option<Position>,
    pub(super) accept_restored: bool,
    pub(super) started: Option<Started>,
    /// The machine was started anew since, and this was on disk for certain.
    pub(super) rebooted: Option<Position>,
    /// What a power failure took was looked for: the log is known to have lost its tail.
    pub(super) went_back: bool,
    interval: Duration,
}

impl Default for Durability {
    fn default() -> Durability {
        Durability {
            hook: None,
            synced_at: Instant::now(),
            synced: None,
            accept_restored: false,
            started: None,
            rebooted: None,
            went_back: false,
            interval: SYNC_INTERVAL,
        }
    }
}

impl std::fmt::Debug for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Durability").field("synced", &self.synced).finish_non_exhaustive()
    }
}

impl Follower {
    /// Sets how often everything is made durable.
    pub fn set_sync_interval(&mut self, interval: Duration) {
        self.durability.interval = interval;
    }

    /// Takes note that the position is stored, also where transactions up to it changed no row: the shadow must know it for as long as it is.
    pub fn note_stored(&mut self) {
        let position = self.position;
        if let Some(shadow) = self.shadow.as_mut().filter(|shadow| shadow.position() == position) {
            shadow.note_given();
            // The one that was stored before is known no longer after a merge, which must not come before this one is on disk.
            self.durability.synced = None;
        }
    }

    /// Makes everything up to the position durable: the log, the journal, and what the sink stored.
    ///
    /// # Errors
    /// [`CaptureError`] when syncing fails or the hook does.
    pub fn make_durable(&mut self) -> Result<(), CaptureError> {
        let Some(shadow) = &self.shadow else { return Ok(()) };
        if self.durability.synced == Some(self.position) {
            self.durability.synced_at = Instant::now();
            return Ok(());
        }
        self.frames.sync()?;
        shadow.sync()?;
        if let Some(hook) = &mut self.durability.hook {
            hook(&self.position).map_err(|source| CaptureError::Durable { source })?;
        }
        self.durability.synced = Some(self.position);
        self.durability.synced_at = Instant::now();
        Ok(())
    }

    /// Makes durable what is due, and merges a journal that has become long.
    pub(super) fn keep_shadow(&mut self) -> Result<(), CaptureError> {
        let Some(shadow) = &mut self.shadow else { return Ok(()) };
        shadow.revoke_hold_if_long();
        let ((pages, bytes), can_merge) = (shadow.journal_extent(), shadow.can_merge());
        if self.durability.synced_at.elapsed() >= self.durability.interval {
            self.note_content();
            self.make_durable()?;
            if bytes >= MERGE_BYTES {
                self.merge()?;
            }
        } else if (bytes >= JOURNAL_BYTES_MAX || pages >= JOURNAL_PAGES_MAX) && can_merge {
            self.merge()?;
        }
        Ok(())
    }

    /// Before a checkpoint of ours the position is made durable, and a long journal merged.
    pub(super) fn before_checkpoint(&mut self) -> Result<(), CaptureError> {
        let Some((pages, _)) = self.shadow.as_ref().map(Shadow::journal_extent) else { return Ok(()) };
        if pages >= MERGE_PAGES { self.merge() } else { self.make_durable() }
    }

    /// Brings `shadow.db` to the position.
    ///
    /// # Errors
    /// [`CaptureError`]; an interrupted merge is done again by the next.
    pub fn merge(&mut self) -> Result<(), CaptureError> {
        self.make_durable()?;
        let identity = self.file.identity();
        match &mut self.shadow {
            Some(shadow) if shadow.can_merge() => Ok(shadow.merge(identity)?),
            _ => Ok(()),
        }
    }
}
