//! A node's status as metrics, in the text format that Prometheus and its relatives read.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Names end in their unit, or in `_total` when they count up from
//! the start of the process.

use std::fmt::Write;

use crate::node::Status;

/// Writes all metrics of a node; `running` is whether its process lives.
#[must_use]
pub fn metrics(status: &Status, running: bool) -> String {
    let mut out = Metrics { text: String::new(), node: status.node_id };
    let (committed, checkpointed) = status.wal_frames;
    let is = u64::from;
    out.one("up", "gauge", "Whether the node's process runs.", is(running));
    out.one("connected", "gauge", "Whether the NATS server answers.", is(status.connected && running));
    let at = status.written_at_ms as f64 / 1e3;
    out.one("status_timestamp_seconds", "gauge", "When the node last told of itself.", at);
    out.one("captured_transactions_total", "counter", "Local transactions captured.", status.transactions_captured);
    out.one("applied_rows_total", "counter", "Rows changed for other nodes.", status.rows_applied);
    out.one("conflicts_total", "counter", "Changes that overrode a concurrent one.", status.conflicts);
    out.one("torn_rounds_total", "counter", "Times that the rest of a round was not waited for.", status.cuts_broken);
    out.one("outbox_units", "gauge", "Local changes that are not on the log, in units.", status.outbox_units);
    out.one("outbox_bytes", "gauge", "Local changes that are not on the log, in bytes.", status.outbox_bytes);
    out.one("inbox_messages", "gauge", "Messages that wait to be applied.", status.inbox_messages);
    out.one("wal_bytes", "gauge", "Length of the database's WAL.", status.wal_bytes);
    out.one("wal_frames", "gauge", "Committed frames in it.", committed);
    out.one("wal_frames_checkpointed", "gauge", "Frames that are in the database file.", checkpointed);
    let pin = status.pin_age_ms as f64 / 1e3;
    out.one("pin_age_seconds", "gauge", "How long a checkpoint may have been held back.", pin);
    out.one(
        "wal_pinned_by_others",
        "gauge",
        "Whether a reader keeps the WAL from restarting.",
        is(status.pinned_by_others),
    );
    let shards = || status.shards.iter();
    out.each("shard_applied", "Last message applied.", shards().map(|(shard, of)| (*shard, of.applied)));
    out.each("shard_last", "Last message on the log.", shards().map(|(shard, of)| (*shard, of.last)));
    let stopped = shards().map(|(shard, of)| (*shard, u64::from(!of.blocked.is_empty())));
    out.each("shard_stopped", "Whether the shard cannot go on.", stopped);
    out.text
}

struct Metrics {
    text: String,
    node: u64,
}

impl Metrics {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP woodchuck_{name} {help}\n# TYPE woodchuck_{name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.text, "woodchuck_{name}{{node=\"{}\"}} {value}", self.node);
    }

    fn each(&mut self, name: &str, help: &str, values: impl Iterator<Item = (u16, u64)>) {
        self.head(name, "gauge", help);
        for (shard, value) in values {
            let _ = writeln!(self.text, "woodchuck_{name}{{node=\"{}\",shard=\"{shard}\"}} {value}", self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::node::ShardStatus;

    #[test]
    fn every_metric_is_described_and_has_a_number() {
        let blocked = ShardStatus { applied: 3, last: 5, blocked: "no table\n\"t\"".to_owned() };
        let shards = BTreeMap::from([(1, ShardStatus::default()), (2, blocked)]);
        let status =
            Status { node_id: 7, conflicts: 4, pin_age_ms: 1500, connected: true, shards, ..Status::default() };
        let text = metrics(&status, true);
        let mut described = BTreeSet::new();
        for line in text.lines() {
            match line.strip_prefix("# ") {
                Some(head) => drop(described.insert(head.split(' ').nth(1).unwrap())),
                None => {
                    let (name, value) = line.rsplit_once(' ').unwrap();
                    assert!(described.contains(name.split('{').next().unwrap()), "{line}");
                    assert!(value.parse::<f64>().is_ok(), "{line}");
                }
            }
        }
        for wanted in [
            "woodchuck_conflicts_total{node=\"7\"} 4",
            "woodchuck_pin_age_seconds{node=\"7\"} 1.5",
            "woodchuck_shard_stopped{node=\"7\",shard=\"2\"} 1",
            "woodchuck_shard_stopped{node=\"7\",shard=\"1\"} 0",
        ] {
            assert!(text.lines().any(|line| line == wanted), "{wanted} in {text}");
        }
        assert!(metrics(&status, false).contains("woodchuck_connected{node=\"7\"} 0"));
    }
}
