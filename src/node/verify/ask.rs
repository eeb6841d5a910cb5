//! The side of who asks: finds the place to compare at, collects the digests, and goes down to the rows where they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::super::snapshot::Ask;
use super::answer::{ARRIVE_MAX, HASHES_MAX, QUESTION, Verifier, VerifyAsk};
use super::report::{DifferingRow, TableReport, TableVerdict, VerifyReport};
use super::wire::{Answer, Body, Digests, Question, Summary, unhex};
use super::{HOLD_MAX, VerifyOptions};
use crate::apply::{FOLD_BUCKETS, TableFilter};
use crate::log::{Log, ShardId};

/// How long nodes have to say that they are there, however busy they are.
const PRESENT_WITHIN: Duration = Duration::from_secs(1);
/// How often those that are named and do not answer are asked again: one that has just begun may not listen yet.
const PRESENT_TRIES_MAX: u32 = 3;
/// What an answer may take beyond the time that the work is given.
const SLACK: Duration = Duration::from_secs(3);
/// Rows of a table that are named.
const ROWS_SHOWN_MAX: usize = 20;
/// Tables whose rows are looked for.
const TABLES_SHOWN_MAX: usize = 20;
/// Buckets whose rows are compared one by one, at most; the larger the table, the fewer.
const BUCKETS_MAX: usize = 64;

impl Verifier {
    /// Compares all nodes. What cannot be told is in the report.
    ///
    /// # Errors
    /// Why there was nothing to compare at, in words for people.
    pub(in crate::node) async fn verify(&self, options: VerifyOptions) -> Result<VerifyReport, String> {
        let began = Instant::now();
        let mut report = VerifyReport::default();
        let id = RandomState::new().build_hasher().finish();
        let (present, rows) = self.present(&options, &mut report).await?;
        let options = VerifyOptions { rows, ..options };
        let digests = self.digests(id, &present, &options, &mut report).await;
        let done = match digests {
            Ok(digests) => {
                self.compare(id, digests, &options, &mut report).await;
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.ask(&Question::Done { id }, &BTreeSet::new(), Duration::ZERO, &mut 0).await;
        done?;
        report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(report)
    }

    /// Asks all nodes, until those that are wanted have answered or the time is over.
    async fn ask(
        &self,
        question: &Question,
        wanted: &BTreeSet<u64>,
        within: Duration,
        answer_bytes: &mut u64,
    ) -> BTreeMap<u64, Body> {
        let mut answers = BTreeMap::new();
        let mut hear = |bytes: &Bytes| {
            if let Ok(Answer { node, body }) = serde_json::from_slice(bytes) {
                *answer_bytes += bytes.len() as u64;
                answers.insert(node, body);
            }
            !wanted.is_empty() && wanted.iter().all(|node| answers.contains_key(node))
        };
        let bytes = Bytes::from(serde_json::to_vec(question).unwrap_or_default());
        if let Err(error) = self.log.ask_all(QUESTION, bytes, within, &mut hear).await {
            tracing::debug!("{error}");
        }
        answers
    }

    /// The nodes to compare, and the filters that their rows have to pass: a node has those alone that pass its own.
    async fn present(
        &self,
        options: &VerifyOptions,
        report: &mut VerifyReport,
    ) -> Result<(BTreeSet<u64>, Vec<String>), String> {
        let (answer, origins) = oneshot::channel();
        let stopping = || "the node is stopping".to_owned();
        self.asks.send(Ask::Verify(VerifyAsk::Origins(answer))).await.map_err(|_| stopping())?;
        let origins = origins.await.map_err(|_| stopping())?;
        let mut wanted: BTreeSet<u64> = options.nodes.iter().copied().collect();
        if !wanted.is_empty() {
            wanted.insert(self.node_id);
        }
        let mut present = BTreeMap::new();
        for _ in 0..PRESENT_TRIES_MAX {
            let answers = self.ask(&Question::Present, &wanted, PRESENT_WITHIN, &mut report.answer_bytes).await;
            present.extend(answers);
            if wanted.iter().all(|node| present.contains_key(node)) {
                break;
            }
        }
        if wanted.is_empty() {
            wanted = origins.iter().chain(present.keys()).copied().collect();
        }
        for node in wanted.iter().filter(|node| !present.contains_key(node)) {
            report.missing.insert(*node, "it does not answer".to_owned());
        }
        present.retain(|node, _| wanted.contains(node));
        if !present.contains_key(&self.node_id) {
            return Err("the server does not bring this node's own question back to it".to_owned());
        }
        let mut rows = options.rows.clone();
        for body in present.values() {
            if let Body::Present { rows: theirs } = body {
                rows.extend(theirs.iter().filter(|one| !options.rows.contains(one)).cloned());
            }
        }
        rows.sort();
        rows.dedup();
        Ok((present.into_keys().collect(), rows))
    }

    /// What each node has at one place.
    async fn digests(
        &self,
        id: u64,
        present: &BTreeSet<u64>,
        options: &VerifyOptions,
        report: &mut VerifyReport,
    ) -> Result<BTreeMap<u64, Digests>, String> {
        let held = self.ask(&Question::Hold { id }, present, HOLD_MAX / 2, &mut report.answer_bytes).await;
        let mut ready = BTreeSet::new();
        for node in present {
            match held.get(node) {
                Some(Body::Held) => {
                    ready.insert(*node);
                }
                Some(Body::Cannot { why }) => drop(report.missing.insert(*node, why.clone())),
                Some(_) | None => drop(report.missing.insert(*node, "it does not answer in time".to_owned())),
            }
        }
        // Nobody applies now: no node is beyond the ends that the streams have.
        let looks = (1..=self.log.shard_count())
            .map(|shard| async move { self.log.bounds(ShardId(shard)).await.map(|bounds| (shard, bounds.last.0)) });
        let last = futures_util::future::try_join_all(looks).await.map_err(|error| error.to_string())?;
        let question = Question::Digest {
            id,
            last: last.into_iter().collect(),
            tables: options.tables.clone(),
            exclude: options.exclude_tables.clone(),
            rows: options.rows.clone(),
            within_ms: options.within_ms,
        };
        let within = ARRIVE_MAX + Duration::from_millis(options.within_ms) + SLACK;
        let mut digests = BTreeMap::new();
        let answers = self.ask(&question, &ready, within, &mut report.answer_bytes).await;
        for node in ready {
            let why = match answers.get(&node) {
                Some(Body::Digests(found)) => {
                    digests.insert(node, found.clone());
                    continue;
                }
                Some(Body::Cannot { why }) => why.clone(),
                Some(_) | None => "it gave no digests in time".to_owned(),
            };
            report.missing.insert(node, why);
        }
        let Some(own) = digests.get(&self.node_id) else {
            let why = report.missing.remove(&self.node_id).unwrap_or_default();
            return Err(format!("this node cannot say what it has: {why}"));
        };
        report.applied = own.applied.clone();
        let elsewhere: Vec<u64> =
            digests.iter().filter(|(_, found)| found.applied != report.applied).map(|(node, _)| *node).collect();
        for node in elsewhere {
            digests.remove(&node);
            report.missing.insert(node, "it stands at another place of the log".to_owned());
        }
        report.nodes = digests.keys().copied().collect();
        report.read_ms = digests.values().map(|found| found.read_ms).max().unwrap_or(0);
        Ok(digests)
    }

    async fn compare(
        &self,
        id: u64,
        digests: BTreeMap<u64, Digests>,
        options: &VerifyOptions,
        report: &mut VerifyReport,
    ) {
        let fold_case = |name: &str| name.to_ascii_lowercase();
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for found in digests.values() {
            let read = found.tables.iter().map(|table| &table.name);
            for name in read.chain(found.unread.iter().map(|(name, _)| name)) {
                names.entry(fold_case(name)).or_insert_with(|| name.clone());
            }
        }
        let mut shown = 0;
        for name in names.into_values() {
            let mut here: BTreeMap<u64, &Summary> = BTreeMap::new();
            let (mut unread, mut absent) = (Vec::new(), Vec::new());
            for (node, found) in &digests {
                let is_it = |other: &str| other.eq_ignore_ascii_case(&name);
                if let Some(table) = found.tables.iter().find(|table| is_it(&table.name)) {
                    here.insert(*node, table);
                } else if let Some((_, why)) = found.unread.iter().find(|(other, _)| is_it(other)) {
                    unread.push(format!("node {node}: {why}"));
                } else if !found.excluded.iter().any(|other| is_it(other))
                    && TableFilter::new(&found.globs.0, &found.globs.1).matches(&name)
                {
                    absent.push(format!("node {node}"));
                }
            }
            let rows = here.iter().map(|(node, table)| (*node, table.rows)).collect();
            let verdict = match judge(&here, &absent, &unread) {
                Some(verdict) => verdict,
                None if shown >= TABLES_SHOWN_MAX => {
                    different("its rows are not looked at: too many tables differ".to_owned(), &here)
                }
                None => {
                    shown += 1;
                    let nodes = here.keys().copied().collect();
                    let within = Duration::from_millis(options.within_ms) + SLACK;
                    match self.rows(id, &name, &nodes, within, &mut report.answer_bytes).await {
                        Ok((found, all)) => match different(String::new(), &here) {
                            TableVerdict::Different { why, columns, key, .. } => {
                                TableVerdict::Different { why, differing: found, more: !all, columns, key }
                            }
                            other => other,
                        },
                        Err(why) => different(format!("its rows cannot be named: {why}"), &here),
                    }
                }
            };
            report.tables.push(TableReport { table: name, rows, verdict });
        }
    }

    /// Rows of a table that differ, and whether these are all.
    async fn rows(
        &self,
        id: u64,
        table: &str,
        nodes: &BTreeSet<u64>,
        within: Duration,
        answer_bytes: &mut u64,
    ) -> Result<(Vec<DifferingRow>, bool), String> {
        let table = table.to_owned();
        let answers = self.ask(&Question::Buckets { id, table: table.clone() }, nodes, within, answer_bytes).await;
        let mut sums: Vec<Vec<u8>> = Vec::new();
        for body in of_all(nodes, &answers)? {
            if let Body::Buckets { sums: text } = body {
                sums.push(unhex(text).unwrap_or_default());
            }
        }
        let sum_of = |sums: &[u8], bucket: u16| {
            sums.chunks_exact(size_of::<u128>()).nth(usize::from(bucket)).map(<[u8]>::to_vec)
        };
        let is_equal = |bucket: u16| same(sums.iter().map(|sums| sum_of(sums, bucket)));
        let differing: Vec<u16> = (0..FOLD_BUCKETS).filter(|bucket| !is_equal(*bucket)).collect();
        let looked_at: Vec<u16> = differing.iter().copied().take(BUCKETS_MAX).collect();
        let mut all = looked_at.len() == differing.len();

        let question = Question::Hashes { id, table: table.clone(), buckets: looked_at };
        let answers = self.ask(&question, nodes, within, answer_bytes).await;
        let mut hashes: Vec<BTreeMap<u64, u64>> = Vec::new();
        // Beyond the end of a list that was cut nothing is known.
        let mut known_to = u64::MAX;
        for body in of_all(nodes, &answers)? {
            if let Body::Hashes { pairs, all: is_whole } = body {
                let list = pairs_of(pairs);
                if !is_whole {
                    known_to = known_to.min(list.last_key_value().map_or(0, |(key, _)| *key));
                    all = false;
                }
                hashes.push(list);
            }
        }
        let keys: BTreeSet<u64> =
            hashes.iter().flat_map(BTreeMap::keys).copied().filter(|key| *key <= known_to).collect();
        let mut keys: BTreeSet<u64> =
            keys.into_iter().filter(|key| !same(hashes.iter().map(|list| list.get(key)))).collect();
        while keys.len() > ROWS_SHOWN_MAX {
            keys.pop_last();
            all = false;
        }

        let question = Question::Rows { id, table, keys: keys.iter().copied().collect() };
        let answers = self.ask(&question, nodes, within, answer_bytes).await;
        of_all(nodes, &answers)?;
        let mut found: BTreeMap<u64, DifferingRow> = BTreeMap::new();
        for (node, body) in &answers {
            let Body::Rows { rows } = body else { continue };
            for row in rows.iter().filter(|row| keys.contains(&row.hash)) {
                let empty =
                    || DifferingRow { key: row.key.clone(), rows: nodes.iter().map(|node| (*node, None)).collect() };
                found.entry(row.hash).or_insert_with(empty).rows.insert(*node, Some(row.row.clone()));
            }
        }
        Ok((found.into_values().collect(), all))
    }
}

/// What can be said without looking at rows; `None` where they have to be.
fn judge(here: &BTreeMap<u64, &Summary>, absent: &[String], unread: &[String]) -> Option<TableVerdict> {
    if !absent.is_empty() && !here.is_empty() {
        return Some(different(format!("{} has no such table", absent.join(" and ")), here));
    }
    if !same(here.values().map(|table| (&table.columns, &table.key))) {
        return Some(different(definitions_differ(here), here));
    }
    if !same(here.values().map(|table| (table.rows, &table.root))) {
        return None;
    }
    if !unread.is_empty() {
        return Some(TableVerdict::Inconclusive { why: unread.join("; ") });
    }
    Some(TableVerdict::Equal)
}

/// Names columns and keys, and whether it is their order alone: rows are compared column by column, and no row has to be written for that.
fn definitions_differ(here: &BTreeMap<u64, &Summary>) -> String {
    let names = |columns: &[String]| format!("({})", columns.join(", "));
    let key = |table: &Summary| -> Vec<String> {
        table.key.iter().filter_map(|index| table.columns.get(usize::from(*index)).cloned()).collect()
    };
    let of_node = |(node, table): (&u64, &&Summary)| match key(table) {
        key if key.is_empty() => format!("node {node} has {}", names(&table.columns)),
        key => format!("node {node} has {} with the key {}", names(&table.columns), names(&key)),
    };
    let sorted = |columns: &[String]| {
        let mut columns: Vec<String> = columns.iter().map(|name| name.to_ascii_lowercase()).collect();
        columns.sort_unstable();
        columns
    };
    let is_order = same(here.values().map(|table| (sorted(&table.columns), key(table))));
    let what = if is_order { "its columns stand in another order" } else { "its columns or its key differ" };
    format!("{what}: {}", here.iter().map(of_node).collect::<Vec<_>>().join(", "))
}

fn different(why: String, here: &BTreeMap<u64, &Summary>) -> TableVerdict {
    let (columns, key) =
        here.values().next().map(|table| (table.columns.clone(), table.key.clone())).unwrap_or_default();
    TableVerdict::Different { why, differing: Vec::new(), more: true, columns, key }
}

fn same<T: PartialEq>(mut all: impl Iterator<Item = T>) -> bool {
    let Some(first) = all.next() else { return true };
    all.all(|other| other == first)
}

/// The answers of the nodes, if all have one.
fn of_all<'a>(nodes: &BTreeSet<u64>, answers: &'a BTreeMap<u64, Body>) -> Result<Vec<&'a Body>, String> {
    nodes
        .iter()
        .map(|node| match answers.get(node) {
            Some(Body::Cannot { why }) => Err(format!("node {node}: {why}")),
            Some(body) => Ok(body),
            None => Err(format!("node {node} does not answer")),
        })
        .collect()
}

fn pairs_of(text: &str) -> BTreeMap<u64, u64> {
    let bytes = unhex(text).unwrap_or_default();
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    let pairs = bytes.chunks_exact(2 * size_of::<u64>()).filter_map(|pair| {
        let (key, row) = pair.split_at_checked(size_of::<u64>())?;
        Some((number(key)?, number(row)?))
    });
    pairs.take(HASHES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[&str], key: &[u16]) -> Summary {
        let columns = columns.iter().map(|name| (*name).to_owned()).collect();
        Summary { name: "t".to_owned(), columns, key: key.to_vec(), rows: 0, root: String::new() }
    }

    #[test]
    fn definitions_that_differ_are_named() {
        let (one, other, third) = (table(&["id", "a", "b"], &[0]), table(&["id", "b", "a"], &[0]), table(&["id"], &[]));
        assert_eq!(
            definitions_differ(&BTreeMap::from([(1, &one), (2, &other)])),
            "its columns stand in another order: node 1 has (id, a, b) with the key (id), node 2 has (id, b, a) with the key (id)"
        );
        assert_eq!(
            definitions_differ(&BTreeMap::from([(1, &one), (7, &third)])),
            "its columns or its key differ: node 1 has (id, a, b) with the key (id), node 7 has (id)"
        );
    }
}
