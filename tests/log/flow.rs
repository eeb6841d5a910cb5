//! What tests of publishing and reading have in common.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use woodchuck::change::Op;
use woodchuck::format::Value;
use woodchuck::log::{
    Arrived, Body, Delivery, Log, LogError, Numbers, Origin, Outgoing, PublishState, Published, Round, ShardId,
    StreamSeq, TableShape, Unit, UnitChange, UnitKey, publish, seal, send_round,
};

/// Nothing here takes long; what takes this long hangs.
pub const HANGS: Duration = Duration::from_secs(60);

pub const ORIGIN: Origin = Origin { node_id: 3, epoch: 77 };

/// A unit of one row that holds a blob.
pub fn unit(tx: u64, blob_bytes: usize) -> Unit {
    let shape =
        TableShape { name: "t".into(), columns: vec!["id".into(), "x".into()], key: vec![0], beginnings: Vec::new() };
    let id = Value::Integer(tx as i64);
    let change = UnitChange {
        table: 0,
        op: Op::Insert,
        key: UnitKey::Columns(vec![id.clone()]),
        image: Some(vec![id, Value::Blob((0..blob_bytes).map(|i| (i * 7 + i / 251) as u8).collect())]),
        mask: Vec::new(),
        before: None,
        if_there: false,
    };
    let tables = vec![Arc::new(shape)];
    Unit {
        tx,
        part: 0,
        salts: [0; 8],
        frame: 1,
        repaired: false,
        seen: woodchuck::log::StreamSeq(0),
        schema: Vec::new(),
        tables,
        changes: vec![change],
    }
}

/// Rounds that each have `messages` messages in every one of `shards` shards.
pub fn rounds(count: u64, shards: u16, messages: u64) -> Vec<Round> {
    (0..count)
        .map(|round| {
            let numbers = Numbers {
                round_no: round + 1,
                batch_no_last: (1..=shards).map(|shard| (ShardId(shard), round * messages)).collect(),
                barrier: false,
            };
            let units: BTreeMap<ShardId, Vec<Unit>> = (1..=shards)
                .map(|shard| (ShardId(shard), (0..messages).map(|i| unit(round * messages + i, 1000)).collect()))
                .collect();
            let sealed = seal(&units, &numbers, ORIGIN, 1500, false);
            assert_eq!(sealed.messages.len() as u64, u64::from(shards) * messages);
            sealed
        })
        .collect()
}

/// A publisher that runs.
pub struct Publishing {
    pub outgoing: mpsc::Sender<Outgoing>,
    pub published: mpsc::Receiver<Published>,
    pub state: watch::Receiver<PublishState>,
    pub task: tokio::task::JoinHandle<()>,
}

pub fn start_publisher(log: Arc<dyn Log>) -> Publishing {
    let (outgoing, queue) = mpsc::channel(4);
    let (reports, published) = mpsc::channel(1000);
    let (state_sender, state) = watch::channel(PublishState::new());
    let task = tokio::spawn(publish(log, queue, reports, state_sender, std::future::pending()));
    Publishing { outgoing, published, state, task }
}

impl Publishing {
    /// Sends a round and waits until all of it is acknowledged.
    pub async fn publish(&mut self, round: Round) {
        let round_no = round.round_no;
        assert!(send_round(&self.outgoing, round).await);
        self.wait_for(round_no).await;
    }

    pub async fn wait_for(&mut self, round_no: u64) {
        let done = async {
            while self.published.recv().await.expect("the publisher runs") != (Published::Round { round_no }) {}
        };
        tokio::time::timeout(HANGS, done).await.expect("the round is acknowledged");
    }
}

/// The next delivery, which must be a message.
pub async fn arrived(deliveries: &mut mpsc::Receiver<Delivery>) -> Arrived {
    match delivery(deliveries).await {
        Delivery::Arrived(arrived) => arrived,
        Delivery::Failed { shard, error } => panic!("shard {}: {error}", shard.0),
    }
}

/// The next delivery, which must be a failure.
pub async fn failure(deliveries: &mut mpsc::Receiver<Delivery>) -> LogError {
    match delivery(deliveries).await {
        Delivery::Arrived(arrived) => panic!("message {} came", arrived.seq.0),
        Delivery::Failed { error, .. } => error,
    }
}

pub async fn delivery(deliveries: &mut mpsc::Receiver<Delivery>) -> Delivery {
    tokio::time::timeout(HANGS, deliveries.recv()).await.expect("a delivery comes").expect("the consumer runs")
}

/// Transactions that a message carries.
pub fn transactions(arrived: &Arrived) -> Vec<u64> {
    match &arrived.batch.body {
        Body::Units(units) => units.iter().map(|unit| unit.tx).collect(),
        Body::Piece { .. } => Vec::new(),
    }
}

/// Starts a consumer of one shard.
pub fn start_consumer(log: &Arc<dyn Log>, shard: u16, from: u64) -> mpsc::Receiver<Delivery> {
    let (deliveries, receiver) = mpsc::channel(8);
    tokio::spawn(woodchuck::log::consume(Arc::clone(log), ShardId(shard), StreamSeq(from), deliveries));
    receiver
}

/// Reads until batch `batch_no_last` of a shard; checks that the first copies come in order and returns how many copies were dropped.
pub async fn expect_in_order(deliveries: &mut mpsc::Receiver<Delivery>, batch_no_last: u64) -> u64 {
    use woodchuck::log::{Folded, Sequence};
    let (mut folded, mut dropped, mut seq_last) = (Folded::default(), 0, 0);
    while folded.batch_no < batch_no_last {
        let message = arrived(deliveries).await;
        assert_eq!(message.seq.0, seq_last + 1, "every message of the stream is delivered once, in order");
        seq_last = message.seq.0;
        match folded.judge(&message.batch.header) {
            Sequence::Next => {
                assert_eq!(transactions(&message), [folded.batch_no]);
                folded = Folded::from(&message.batch.header);
            }
            Sequence::Duplicate => dropped += 1,
            Sequence::Missing { from, to } => panic!("batches {from} to {to} are missing"),
        }
    }
    dropped
}
