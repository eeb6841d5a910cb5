//! Two versions of a page as the ranges in which they differ.
//!
//! | bytes | field |
//! |---|---|
//! | 2 | offset in the page |
//! | 2 | number of bytes *n*, less one |
//! | *n* | the new bytes |
//!
//! and so on until the record ends. New bytes, not a difference of both: putting them in place twice is as good as once.

/// What the head of a range takes; equal bytes fewer than these do not end one.
const HEAD_BYTES: usize = 4;
/// What is compared at a time while nothing differs.
const STEP_BYTES: usize = 64;

/// Appends the ranges of `new` that differ from `base`, a page of the same size. `false`, and nothing appended, when they would take more
/// than `bytes_max`.
pub(super) fn encode(base: &[u8], new: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> bool {
    let began = out.len();
    let mut at = 0;
    while let Some(first) = next_difference(base, new, at) {
        let mut end = first + 1;
        let rest = base.iter().zip(new).enumerate().skip(end);
        for (place, (was, is)) in rest {
            if was != is {
                end = place + 1;
            }
            if place + 1 - end >= HEAD_BYTES || end - first > bytes_max {
                break;
            }
        }
        let (Ok(offset), Ok(length)) = (u16::try_from(first), u16::try_from(end - first - 1)) else {
            out.truncate(began);
            return false;
        };
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(new.get(first..end).unwrap_or_default());
        if out.len() - began > bytes_max {
            out.truncate(began);
            return false;
        }
        at = end;
    }
    true
}

/// Puts the ranges in place; `false` when they do not fit the page.
pub(super) fn apply(page: &mut [u8], mut ranges: &[u8]) -> bool {
    while let Some((head, rest)) = ranges.split_first_chunk::<HEAD_BYTES>() {
        let [a, b, c, d] = *head;
        let (offset, length) = (usize::from(u16::from_be_bytes([a, b])), usize::from(u16::from_be_bytes([c, d])) + 1);
        let (Some(to), Some((from, next))) = (page.get_mut(offset..offset + length), rest.split_at_checked(length))
        else {
            return false;
        };
        to.copy_from_slice(from);
        ranges = next;
    }
    ranges.is_empty()
}

fn next_difference(base: &[u8], new: &[u8], from: usize) -> Option<usize> {
    let (base, new) = (base.get(from..)?, new.get(from..)?);
    let steps = base.chunks(STEP_BYTES).zip(new.chunks(STEP_BYTES));
    let (step, (was, is)) = steps.enumerate().find(|(_, (was, is))| was != is)?;
    let within = was.iter().zip(is).position(|(was, is)| was != is)?;
    Some(from + step * STEP_BYTES + within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_put_back() {
        for page_bytes in [512, 65_536] {
            let base: Vec<u8> = (0..page_bytes).map(|at| (at % 251) as u8).collect();
            for changes in [vec![], vec![0], vec![page_bytes - 1], vec![3, 4, 9, 100, 63, 64, 65], (0..200).collect()] {
                let mut new = base.clone();
                changes.iter().for_each(|at| new[*at] ^= 0xff);
                let mut ranges = vec![7];
                assert!(encode(&base, &new, page_bytes / 2, &mut ranges));
                let mut page = base.clone();
                assert!(apply(&mut page, &ranges[1..]) && page == new);
                assert!(apply(&mut page, &ranges[1..]) && page == new, "a second time");
            }
        }
    }

    #[test]
    fn a_page_that_differs_much_is_none_of_ranges() {
        let mut out = vec![7];
        assert!(!encode(&[0; 512], &[1; 512], 256, &mut out));
        let scattered: Vec<u8> = (0..512).map(|at| u8::from(at % 8 == 0)).collect();
        assert!(!encode(&[0; 512], &scattered, 256, &mut out));
        assert_eq!(out, [7]);
    }

    #[test]
    fn ranges_that_do_not_fit_are_refused() {
        for bad in [&[0, 0, 0][..], &[0, 0, 0, 1, 5], &[1, 255, 0, 1, 5, 5], &[2, 0, 0, 0, 5]] {
            assert!(!apply(&mut [0; 512], bad), "{bad:?}");
        }
    }
}
