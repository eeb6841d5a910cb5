//! A node's side of a comparison: it stops where it is told, takes hold of what it has there, and digests that while it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::super::config::RunConfig;
use super::super::snapshot::Ask;
use super::wire::{Answer, Body, Digests, Question, Summary, WireRow, hex};
use crate::apply::{ApplyError, FoldReader, FoldTable, RowFilter, RowFilters, TableFilter, is_out_of_bounds};
use crate::log::{JetStreamLog, Log, Question as Asked, ShardId, StreamSeq};

/// The kind of question.
pub(super) const QUESTION: &str = "verify";

/// How long a node may take to get to the messages that were named.
pub(super) const ARRIVE_MAX: Duration = Duration::from_secs(20);

/// Hashes in one answer: 32 bytes of text each, in a message of at most 1 MiB.
pub(super) const HASHES_MAX: usize = 20_000;

/// A row that is larger is named by its key alone.
const ROW_BYTES_MAX: usize = 2 << 10;

/// What a node took hold of.
pub(in crate::node) struct Taken {
    pub(in crate::node) reader: FoldReader,
    pub(in crate::node) applied: BTreeMap<ShardId, StreamSeq>,
}

/// What the database thread is asked.
pub(in crate::node) enum VerifyAsk {
    /// Which nodes the log has messages of.
    Origins(oneshot::Sender<BTreeSet<u64>>),
    /// To apply nothing for a moment.
    Hold { id: u64, answer: oneshot::Sender<Result<(), String>> },
    /// To take hold of what is there after these messages.
    Take {
        id: u64,
        last: BTreeMap<ShardId, StreamSeq>,
        until: Instant,
        within: Duration,
        answer: oneshot::Sender<Result<Taken, String>>,
    },
}

type Details = std::sync::mpsc::Sender<(Question, oneshot::Sender<Body>)>;

/// Answers and asks for comparisons.
pub(in crate::node) struct Verifier {
    pub(super) log: JetStreamLog,
    pub(super) node_id: u64,
    pub(super) asks: mpsc::Sender<Ask>,
    tables: Vec<String>,
    exclude_tables: Vec<String>,
    rows: RowFilters,
    /// The comparison under way.
    session: Mutex<Option<(u64, Details)>>,
}

impl Verifier {
    pub(in crate::node) fn new(
        log: &JetStreamLog,
        config: &RunConfig,
        node_id: u64,
        asks: mpsc::Sender<Ask>,
    ) -> Verifier {
        Verifier {
            log: log.clone(),
            node_id,
            asks,
            tables: config.tables.clone(),
            exclude_tables: config.exclude_tables.clone(),
            rows: config.row_filters.clone(),
            session: Mutex::new(None),
        }
    }

    /// Answers the nodes, itself as well, for as long as there is a connection.
    pub(in crate::node) async fn answer_nodes(self: Arc<Self>) {
        let mut questions = self.log.broadcasts(QUESTION).await;
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                question = questions.next() => match question {
                    Some(asked) => drop(tasks.spawn(Arc::clone(&self).answer(asked))),
                    None => return,
                },
                _ = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
    }

    async fn answer(self: Arc<Self>, asked: Asked) {
        let Ok(question) = serde_json::from_slice::<Question>(&asked.payload) else { return };
        let body = match question {
            Question::Present => Some(Body::Present { rows: self.rows.iter().map(RowFilter::text).collect() }),
            Question::Hold { id } => self.hold(id).await,
            Question::Digest { id, last, tables, exclude, rows, within_ms } => {
                let last = last.into_iter().map(|(shard, seq)| (ShardId(shard), StreamSeq(seq))).collect();
                let filter = TableFilter::new(&tables, &exclude);
                match RowFilters::parse(&rows) {
                    Ok(rows) => self.digest(id, last, (filter, rows), Duration::from_millis(within_ms)).await,
                    Err(error) => Some(Body::Cannot { why: error.to_string() }),
                }
            }
            Question::Buckets { id, .. } | Question::Hashes { id, .. } | Question::Rows { id, .. } => {
                self.detail(id, question).await
            }
            Question::Done { id } => {
                let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
                session.take_if(|(known, _)| *known == id);
                None
            }
        };
        let Some(body) = body else { return };
        let answer = Answer { node: self.node_id, body };
        let mut bytes = serde_json::to_vec(&answer).unwrap_or_default();
        if bytes.len() > self.log.message_bytes_max() {
            let why = "its answer is larger than a message of the server: name fewer tables".to_owned();
            bytes = serde_json::to_vec(&Answer { body: Body::Cannot { why }, ..answer }).unwrap_or_default();
        }
        asked.answer(Bytes::from(bytes)).await;
    }

    async fn hold(&self, id: u64) -> Option<Body> {
        let (answer, held) = oneshot::channel();
        self.asks.send(Ask::Verify(VerifyAsk::Hold { id, answer })).await.ok()?;
        Some(match held.await.ok()? {
            Ok(()) => Body::Held,
            Err(why) => Body::Cannot { why },
        })
    }

    async fn digest(
        &self,
        id: u64,
        last: BTreeMap<ShardId, StreamSeq>,
        (filter, rows): (TableFilter, RowFilters),
        within: Duration,
    ) -> Option<Body> {
        let (answer, taken) = oneshot::channel();
        let until = Instant::now() + ARRIVE_MAX;
        self.asks.send(Ask::Verify(VerifyAsk::Take { id, last, until, within, answer })).await.ok()?;
        let taken = match taken.await.ok()? {
            Ok(taken) => taken,
            Err(why) => return Some(Body::Cannot { why }),
        };
        let own = TableFilter::new(&self.tables, &self.exclude_tables);
        let rows = self.rows.and(&rows);
        let globs = (self.tables.clone(), self.exclude_tables.clone());
        let (details, questions) = std::sync::mpsc::channel();
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, details));
        let (answer, digests) = oneshot::channel();
        let work = move || match digest(&taken, &filter, &own, &rows) {
            Ok((digests, tables)) => {
                let _ = answer.send(Body::Digests(Digests { globs, ..digests }));
                answer_details(&taken.reader, &tables, &questions, Instant::now() + within);
            }
            Err(error) => drop(answer.send(Body::Cannot { why: error.to_string() })),
        };
        std::thread::Builder::new().name("verify".to_owned()).spawn(work).ok()?;
        digests.await.ok()
    }

    async fn detail(&self, id: u64, question: Question) -> Option<Body> {
        let over = || Some(Body::Cannot { why: "it has let go already".to_owned() });
        let details = {
            let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            session.as_ref().filter(|(known, _)| *known == id).map(|(_, details)| details.clone())
        };
        let Some(details) = details else { return over() };
        let (answer, body) = oneshot::channel();
        if details.send((question, answer)).is_err() {
            return over();
        }
        body.await.ok().or_else(over)
    }
}

/// Digests the tables that both filters let through.
fn digest(
    taken: &Taken,
    wanted: &TableFilter,
    own: &TableFilter,
    rows: &RowFilters,
) -> Result<(Digests, Vec<FoldTable>), ApplyError> {
    let began = Instant::now();
    let applied = taken.applied.iter().map(|(shard, seq)| (shard.0, seq.0)).collect();
    let mut digests = Digests { applied, ..Digests::default() };
    let mut tables = taken.reader.tables(rows)?;
    tables.retain(|table| wanted.matches(&table.shape().name));
    for table in &tables {
        let name = table.shape().name.clone();
        if !own.matches(&name) {
            digests.excluded.push(name);
            continue;
        }
        match taken.reader.digest(table) {
            Ok(digest) => digests.tables.push(Summary {
                name,
                columns: table.shape().columns.clone(),
                key: table.shape().key.clone(),
                rows: digest.rows,
                root: hex(&digest.root().to_be_bytes()),
            }),
            Err(error) if is_out_of_bounds(&error) => {
                digests.unread.push((
                    name,
                    "reading it took longer than it may, or the WAL grew to its bound meanwhile".to_owned(),
                ));
            }
            Err(ApplyError::Cannot(cannot)) => digests.unread.push((name, cannot.to_string())),
            Err(error) => return Err(error),
        }
    }
    digests.read_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok((digests, tables))
}

/// Answers until nobody asks any more, or until the time is over.
fn answer_details(
    reader: &FoldReader,
    tables: &[FoldTable],
    questions: &std::sync::mpsc::Receiver<(Question, oneshot::Sender<Body>)>,
    until: Instant,
) {
    reader.read_until(until);
    while let Ok((question, answer)) = questions.recv_timeout(until.saturating_duration_since(Instant::now())) {
        let body = detail(reader, tables, question).unwrap_or_else(|error| Body::Cannot {
            why: if is_out_of_bounds(&error) {
                "reading it again took longer than it may, or the WAL grew to its bound meanwhile".to_owned()
            } else {
                error.to_string()
            },
        });
        // Whoever asked may be gone.
        let _ = answer.send(body);
    }
}

fn detail(reader: &FoldReader, tables: &[FoldTable], question: Question) -> Result<Body, ApplyError> {
    let table = |name: &str| tables.iter().find(|table| table.shape().name.eq_ignore_ascii_case(name));
    let none = || Body::Cannot { why: "it has no such table".to_owned() };
    Ok(match question {
        Question::Buckets { table: name, .. } => match table(&name) {
            Some(table) => {
                let sums = reader.digest(table)?.buckets;
                Body::Buckets { sums: hex(&sums.iter().flat_map(|sum| sum.to_be_bytes()).collect::<Vec<u8>>()) }
            }
            None => none(),
        },
        Question::Hashes { table: name, buckets, .. } => match table(&name) {
            Some(table) => {
                let (hashes, all) = reader.hashes(table, &buckets.into_iter().collect(), HASHES_MAX)?;
                let pairs = hashes.iter().flat_map(|(key, row)| [key.to_be_bytes(), row.to_be_bytes()].concat());
                Body::Hashes { pairs: hex(&pairs.collect::<Vec<u8>>()), all }
            }
            None => none(),
        },
        Question::Rows { table: name, keys, .. } => match table(&name) {
            Some(table) => {
                let rows = reader.rows(table, &keys.into_iter().collect())?;
                let rows = rows.into_iter().map(|(hash, found)| WireRow {
                    hash,
                    key: hex(&found.key),
                    row: if found.row.len() <= ROW_BYTES_MAX { hex(&found.row) } else { String::new() },
                });
                Body::Rows { rows: rows.collect() }
            }
            None => none(),
        },
        Question::Present | Question::Hold { .. } | Question::Digest { .. } | Question::Done { .. } => none(),
    })
}
