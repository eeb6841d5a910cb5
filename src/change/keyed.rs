//! Rows that are told apart by a declared key: what left and what came, paired by key.
//!
//! Rowid order says nothing about them (REPLACE and VACUUM give a key a new rowid), and the order of an index-shaped tree may be that of a
//! collation which only the application has. So the rows that left are put into a map, and the rows that came look themselves up there.
//!
//! Memory: the map holds at most [`MAP_BYTES_MAX`]. When more rows left than fit, the keys are divided by their hash and the pages are gone
//! through once for each part.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::format::Row;
use crate::schema::RowView;

/// Bound on the rows that wait for their partner. A budget of 32 MiB keeps a daemon within its bound while a whole table is rewritten.
pub(crate) const MAP_BYTES_MAX: usize = 32 << 20;
/// Bytes that an entry needs beside its values.
const ENTRY_BYTES: usize = 96;
/// Bound on the passes over the pages, for rows so large that few of them fill the map.
const PARTS_MAX: u64 = 1 << 16;

/// A row with what tells it apart, lent.
#[derive(Clone, Copy)]
pub(crate) struct Keyed<'r> {
    pub(crate) canonical: &'r [u8],
    pub(crate) rowid: Option<i64>,
    pub(crate) row: RowView<'r>,
}

/// A row that waits for its partner.
struct Waiting {
    rowid: Option<i64>,
    row: Row,
}

impl Waiting {
    fn lend<'r>(&'r self, canonical: &'r [u8]) -> Keyed<'r> {
        Keyed { canonical, rowid: self.rowid, row: RowView::of(&self.row) }
    }

    fn bytes(&self, canonical: &[u8]) -> usize {
        let values: usize = self.row.iter().map(|value| value.heap_bytes() + size_of_val(value)).sum();
        canonical.len() + values + ENTRY_BYTES
    }
}

/// One pass over the rows of a side: gives each row to the callback.
pub(crate) trait Rows<E> {
    fn before(&mut self, take: &mut dyn FnMut(Keyed<'_>) -> Result<(), E>) -> Result<(), E>;
    fn after(&mut self, take: &mut dyn FnMut(Keyed<'_>) -> Result<(), E>) -> Result<(), E>;
}

/// Takes a row before and a row after; both are there for a row that kept its key.
pub(crate) type EmitPair<'e, E> = &'e mut dyn FnMut(Option<Keyed<'_>>, Option<Keyed<'_>>) -> Result<(), E>;

/// Pairs the rows of both sides by key. `emit` gets (before, after); both are there for a row that kept its key.
pub(crate) fn pair_by_key<E>(rows: &mut impl Rows<E>, bytes_max: usize, emit: EmitPair<'_, E>) -> Result<(), E> {
    let part_of = |canonical: &[u8], parts: u64| {
        if parts == 1 {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        canonical.hash(&mut hasher);
        hasher.finish() % parts
    };
    let mut parts = 1u64;
    let mut part = 0;
    loop {
        let mut left: HashMap<Vec<u8>, Waiting> = HashMap::new();
        let mut bytes = 0;
        rows.before(&mut |keyed| {
            if part_of(keyed.canonical, parts) != part {
                return Ok(());
            }
            let waiting = Waiting { rowid: keyed.rowid, row: keyed.row.to_row() };
            bytes += waiting.bytes(keyed.canonical);
            left.insert(keyed.canonical.to_vec(), waiting);
            // Only the first pass decides on the number of parts; doubling keeps what part 0 holds a subset of what it held.
            while part == 0 && bytes > bytes_max && left.len() > 1 && parts < PARTS_MAX {
                parts *= 2;
                left.retain(|canonical, _| part_of(canonical, parts) == 0);
                bytes = left.iter().map(|(canonical, waiting)| waiting.bytes(canonical)).sum();
            }
            Ok(())
        })?;
        rows.after(&mut |keyed| {
            if part_of(keyed.canonical, parts) != part {
                return Ok(());
            }
            match left.remove(keyed.canonical) {
                Some(waited) => emit(Some(waited.lend(keyed.canonical)), Some(keyed)),
                None => emit(None, Some(keyed)),
            }
        })?;
        let mut gone: Vec<(Vec<u8>, Waiting)> = left.into_iter().collect();
        gone.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (canonical, waited) in gone {
            emit(Some(waited.lend(&canonical)), None)?;
        }
        part += 1;
        if part == parts {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Value;

    struct Two(Vec<(u8, i64)>, Vec<(u8, i64)>);

    impl Two {
        fn give(rows: &[(u8, i64)], take: &mut dyn FnMut(Keyed<'_>) -> Result<(), ()>) -> Result<(), ()> {
            rows.iter().try_for_each(|(key, value)| {
                take(Keyed { canonical: &[*key], rowid: None, row: RowView::of(&[Value::Integer(*value)]) })
            })
        }
    }

    impl Rows<()> for Two {
        fn before(&mut self, take: &mut dyn FnMut(Keyed<'_>) -> Result<(), ()>) -> Result<(), ()> {
            Two::give(&self.0, take)
        }
        fn after(&mut self, take: &mut dyn FnMut(Keyed<'_>) -> Result<(), ()>) -> Result<(), ()> {
            Two::give(&self.1, take)
        }
    }

    #[test]
    fn rows_pair_by_key_in_any_number_of_parts() {
        let mut rows = Two((0..100).map(|k| (k, 0)).collect(), (50..150).map(|k| (k, 1)).collect());
        for bytes_max in [usize::MAX, 1000, 200] {
            let (mut both, mut gone, mut new) = (0, 0, 0);
            pair_by_key(&mut rows, bytes_max, &mut |before, after| {
                match (before, after) {
                    (Some(a), Some(b)) => {
                        assert_eq!(a.canonical, b.canonical);
                        both += 1;
                    }
                    (Some(_), None) => gone += 1,
                    (None, _) => new += 1,
                }
                Ok(())
            })
            .unwrap();
            assert_eq!((both, gone, new), (50, 50, 50));
        }
    }
}
