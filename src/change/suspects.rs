//! Which cells of a page may differ between its two versions.
//!
//! Most transactions change a few cells of a page. Decoding all others on both sides to find them equal would be most of the work, so they
//! are left out here, by the page's bytes alone.
//!
//! Invariant: a cell that is left out stands at the same offset of both versions with the same bytes, so it is the same row on both sides.
//! How long a cell is follows from its own bytes, and in a page that is not damaged no cell begins within another: a changed byte belongs
//! to the cell that begins last before it. Cells that are named although they are equal cost time and nothing else.

use crate::format::BtreePage;

/// Bytes compared at a time. A changed block also names the cells that share it.
const BLOCK_BYTES: usize = 32;
/// Runs of changed blocks that are told apart. Beyond, the last one is taken to reach as far as the changes do.
const RUNS_MAX: usize = 16;

/// The cells of a page's two versions that may differ, ascending.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    pub(crate) before: Vec<u16>,
    pub(crate) after: Vec<u16>,
    runs: Vec<(usize, usize)>,
    dirty: Vec<bool>,
}

impl Suspects {
    /// Finds them. `before` and `after` are the same page of a database.
    pub(crate) fn find(&mut self, before: &BtreePage<'_>, after: &BtreePage<'_>) {
        self.before.clear();
        self.after.clear();
        let (old, new) = (before.pointers(), after.pointers());
        if before.kind() != after.kind() || before.content().len() != after.content().len() {
            self.before.extend(0..old.len() as u16);
            self.after.extend(0..new.len() as u16);
            return;
        }
        // Cells that come or go move the pointers behind them. What stands before and behind is aligned.
        let prefix = old.iter().zip(new).take_while(|(a, b)| a == b).count();
        let (old_rest, new_rest) = (old.get(prefix..).unwrap_or(&[]), new.get(prefix..).unwrap_or(&[]));
        let suffix = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
        let tail = old_rest.get(old_rest.len() - suffix..).unwrap_or(&[]);
        self.find_runs(before, after);
        self.mark(old.get(..prefix).unwrap_or(&[]), tail);

        let (head_dirty, tail_dirty) = self.dirty.split_at(prefix);
        for (out, count) in [(&mut self.before, old.len()), (&mut self.after, new.len())] {
            out.extend(set(head_dirty, 0));
            out.extend(prefix as u16..(count - suffix) as u16);
            out.extend(set(tail_dirty, count - suffix));
        }
    }

    /// Runs of changed bytes behind the pointers, as offsets in the page, in whole blocks.
    fn find_runs(&mut self, before: &BtreePage<'_>, after: &BtreePage<'_>) {
        self.runs.clear();
        // An aligned cell lies behind the pointers of both.
        let start = before.content_offset().max(after.content_offset());
        let old = before.content().get(start..).unwrap_or(&[]);
        let new = after.content().get(start..).unwrap_or(&[]);
        for (index, (a, b)) in old.chunks(BLOCK_BYTES).zip(new.chunks(BLOCK_BYTES)).enumerate() {
            let same = match (a.first_chunk::<BLOCK_BYTES>(), b.first_chunk::<BLOCK_BYTES>()) {
                (Some(a), Some(b)) => a == b,
                _ => a == b,
            };
            if same {
                continue;
            }
            let (from, to) = (start + index * BLOCK_BYTES, start + (index + 1) * BLOCK_BYTES);
            let full = self.runs.len() >= RUNS_MAX;
            match self.runs.last_mut() {
                Some(last) if last.1 == from || full => last.1 = to,
                _ => self.runs.push((from, to)),
            }
        }
    }

    /// Marks the aligned cells that have changed bytes.
    fn mark(&mut self, head: &[[u8; 2]], tail: &[[u8; 2]]) {
        self.dirty.clear();
        self.dirty.resize(head.len() + tail.len(), false);
        for (from, to) in &self.runs {
            let mut reaches_in: Option<(usize, usize)> = None;
            for (index, pointer) in head.iter().chain(tail).enumerate() {
                let offset = usize::from(u16::from_be_bytes(*pointer));
                if offset >= *to {
                    continue;
                }
                if offset > *from {
                    if let Some(slot) = self.dirty.get_mut(index) {
                        *slot = true;
                    }
                } else if reaches_in.is_none_or(|(nearest, _)| offset > nearest) {
                    reaches_in = Some((offset, index));
                }
            }
            if let Some(slot) = reaches_in.and_then(|(_, index)| self.dirty.get_mut(index)) {
                *slot = true;
            }
        }
    }
}

/// Indexes of what is set, counted from `first`.
fn set(flags: &[bool], first: usize) -> impl Iterator<Item = u16> {
    flags.iter().enumerate().filter(|(_, flag)| **flag).map(move |(index, _)| (first + index) as u16)
}
