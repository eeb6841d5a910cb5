//! What nodes say to each other while they compare their databases. Nothing of it is stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A question to all nodes. `id` names one comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    /// Who is there?
    Present,
    /// Apply nothing until [`Question::Digest`] says how far, or for [`super::HOLD_MAX`].
    Hold { id: u64 },
    /// Apply up to these messages, and digest the fold of whole rounds there.
    Digest {
        id: u64,
        last: BTreeMap<u16, u64>,
        tables: Vec<String>,
        exclude: Vec<String>,
        rows: Vec<String>,
        within_ms: u64,
    },
    /// The sums of a table.
    Buckets { id: u64, table: String },
    /// The hashes of keys and rows in some buckets of a table.
    Hashes { id: u64, table: String, buckets: Vec<u16> },
    /// The rows whose keys have these hashes.
    Rows { id: u64, table: String, keys: Vec<u64> },
    /// That was all.
    Done { id: u64 },
}

/// An answer of one node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) node: u64,
    pub(super) body: Body,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Body {
    Present {
        /// The filters of its rows.
        rows: Vec<String>,
    },
    Held,
    Digests(Digests),
    /// 16 bytes each, as hexadecimal text.
    Buckets {
        sums: String,
    },
    /// Pairs of hashes of key and row, 8 bytes each, as hexadecimal text, by key.
    Hashes {
        pairs: String,
        all: bool,
    },
    Rows {
        rows: Vec<WireRow>,
    },
    Cannot {
        why: String,
    },
}

/// What a node has at the place where it stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Digests {
    /// The last message applied, by shard.
    pub(super) applied: BTreeMap<u16, u64>,
    pub(super) tables: Vec<Summary>,
    /// Tables that could not be read, with the reason.
    pub(super) unread: Vec<(String, String)>,
    /// Tables that this node leaves out.
    pub(super) excluded: Vec<String>,
    /// The globs of those that it replicates, and of those that it does not.
    #[serde(default)]
    pub(super) globs: (Vec<String>, Vec<String>),
    /// How long reading took.
    pub(super) read_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
    /// Indexes into `columns`; empty where the rowid is the key.
    pub(super) key: Vec<u16>,
    pub(super) rows: u64,
    /// A number of 16 bytes, as hexadecimal text.
    pub(super) root: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct WireRow {
    pub(super) hash: u64,
    pub(super) key: String,
    /// Empty when the row is too large to be shown.
    pub(super) row: String,
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `None` where the text is no hexadecimal.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_travel_as_text() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        assert_eq!((unhex("0"), unhex("zz"), unhex("")), (None, None, Some(Vec::new())));
    }
}
