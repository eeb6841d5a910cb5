//! Which pending units change a row.
//!
//! A row that every transaction writes has as many as a long outage has transactions, and what is kept of the row is read and written
//! with each of them. So only few are named; of many it is known how many they are, and the first and the last.
//!
//! Invariant: units are noted in order and come back in order, for a row travels in one shard. Of many, those that are left are the ones of
//! the row from `first` on, and all of its units between the two are among them.

use super::codec::{Reader, push_varint};
use super::error::ApplyError;

/// Units that are named one by one: a row that is written now and then has fewer, and whoever redoes one with more reads most of the
/// table's units anyway. Few enough for simulations to have rows with more.
const FEW_MAX: usize = 4;

/// What stands in the place of the count when units are not named.
const MANY: u64 = u64::MAX;

/// The pending units of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PendingUnits {
    /// These, oldest first.
    Few(Vec<i64>),
    /// This many, of which two are known.
    Many { count: u64, first: i64, last: i64 },
}

impl PendingUnits {
    pub(super) const NONE: PendingUnits = PendingUnits::Few(Vec::new());

    pub(super) fn is_empty(&self) -> bool {
        match self {
            PendingUnits::Few(ids) => ids.is_empty(),
            PendingUnits::Many { count, .. } => *count == 0,
        }
    }

    /// A unit changes the row. Whether that is new.
    pub(super) fn note(&mut self, unit: i64) -> bool {
        match self {
            PendingUnits::Few(ids) if ids.last() == Some(&unit) => return false,
            PendingUnits::Few(ids) => ids.push(unit),
            PendingUnits::Many { last, .. } if *last == unit => return false,
            PendingUnits::Many { count, last, .. } => {
                *count += 1;
                *last = unit;
            }
        }
        self.name_few();
        true
    }

    /// A unit is pending no more.
    pub(super) fn take(&mut self, unit: i64) {
        match self {
            PendingUnits::Few(ids) => ids.retain(|id| *id != unit),
            PendingUnits::Many { count, first, last } if (*first..=*last).contains(&unit) => {
                *count = count.saturating_sub(1);
                *first = unit.saturating_add(1);
                if *count == 0 {
                    *self = PendingUnits::NONE;
                }
            }
            PendingUnits::Many { .. } => {}
        }
    }

    fn name_few(&mut self) {
        if let PendingUnits::Few(ids) = self
            && ids.len() > FEW_MAX
            && let (Some(first), Some(last)) = (ids.first(), ids.last())
        {
            *self = PendingUnits::Many { count: ids.len() as u64, first: *first, last: *last };
        }
    }

    /// `varint count, varint differences`, or `varint MANY, varint count, varint first, varint difference to the last`
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            PendingUnits::Few(ids) => {
                push_varint(out, ids.len() as u64);
                let mut last = 0_i64;
                for id in ids {
                    push_varint(out, id.wrapping_sub(last) as u64);
                    last = *id;
                }
            }
            PendingUnits::Many { count, first, last } => {
                push_varint(out, MANY);
                push_varint(out, *count);
                push_varint(out, *first as u64);
                push_varint(out, last.wrapping_sub(*first) as u64);
            }
        }
    }

    /// Reads what was written, and what earlier versions wrote, who named all.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<PendingUnits, ApplyError> {
        let count = reader.varint()?;
        if count == MANY {
            let (count, first) = (reader.varint()?, reader.varint()? as i64);
            return Ok(PendingUnits::Many { count, first, last: first.wrapping_add(reader.varint()? as i64) });
        }
        let (mut ids, mut last) = (Vec::new(), 0_u64);
        for _ in 0..count {
            last = last.wrapping_add(reader.varint()?);
            ids.push(last as i64);
        }
        let mut units = PendingUnits::Few(ids);
        units.name_few();
        Ok(units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(units: &PendingUnits) -> Vec<u8> {
        let mut bytes = Vec::new();
        units.write(&mut bytes);
        assert_eq!(&PendingUnits::read(&mut Reader::new(&bytes)).unwrap(), units);
        bytes
    }

    /// What was kept of a row named every unit that waited, and was read and written again with each: an hour without a server wrote 40 GB,
    /// and applying took the lock for half a minute at a time.
    #[test]
    fn what_is_kept_of_a_row_does_not_grow_with_the_units_that_wait() {
        let mut units = PendingUnits::NONE;
        for unit in 1..=100_000 {
            assert!(units.note(unit * 3) && !units.note(unit * 3));
            if unit % 1000 == 0 {
                assert!(written(&units).len() <= 20, "{unit}");
            }
        }
        for unit in 1..=100_000 {
            assert!(!units.is_empty());
            units.take(unit * 3);
            units.take(unit * 3);
        }
        assert!(units.is_empty());
        assert_eq!(written(&units), [0]);
    }

    #[test]
    fn units_that_were_all_named_are_read() {
        let mut bytes = Vec::new();
        push_varint(&mut bytes, 50);
        (0..50).for_each(|_| push_varint(&mut bytes, 2));
        let mut units = PendingUnits::read(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(units, PendingUnits::Many { count: 50, first: 2, last: 100 });
        (1..=50).for_each(|unit| units.take(unit * 2));
        assert!(units.is_empty());
    }
}
