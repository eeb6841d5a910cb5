//! Snapshots are listed, read and made while others make more of them, and remove the old ones.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use woodchuck::log::{
    JetStreamLog, Lease, Log, Maker, NatsOptions, ShardId, ShardStand, SnapshotError, SnapshotManifest, SnapshotStore,
    StreamOptions, StreamSeq, hash_file,
};

use crate::support::nats::NatsServer;

/// A list and a look take a moment; waiting for what cannot come takes half a minute.
const AT_ONCE: Duration = Duration::from_secs(10);
const SNAPSHOTS: u64 = 150;

async fn open(server: &NatsServer) -> JetStreamLog {
    let options = NatsOptions { urls: vec![server.url()], name: "test".into(), ..NatsOptions::default() };
    let log = JetStreamLog::connect(&options, StreamOptions { shard_count: 1, ..StreamOptions::default() }).await;
    let log = log.unwrap();
    log.ensure().await.unwrap();
    log
}

async fn put(store: &SnapshotStore, content: &[u8]) -> u64 {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let (database_bytes, blake3) = hash_file(&mut file).unwrap();
    let stand = BTreeMap::from([(ShardId(1), ShardStand { seq: StreamSeq(1), folded: Vec::new() })]);
    let (routing, names) = (BTreeMap::new(), Vec::new());
    let manifest = SnapshotManifest { stand, routing, names, database_bytes, blake3 };
    let maker = Maker { node_id: 1, now_ms: 1, tables: String::new() };
    store.put(manifest, file, &maker, |_| {}).await.unwrap().no
}

/// Nothing tells where a list ends whose last entry is removed while it is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_does_not_wait_for_snapshots_that_are_removed_meanwhile() {
    let server = NatsServer::start();
    let log = open(&server).await;
    let making = SnapshotStore::of(&log);
    making.prepare().await.unwrap();
    let (made, mut seen) = tokio::sync::watch::channel(0);
    let maker = tokio::spawn(async move {
        for no in 1..=SNAPSHOTS {
            assert_eq!(put(&making, &no.to_be_bytes()).await, no);
            made.send_replace(no);
        }
    });
    let store = SnapshotStore::of(&open(&server).await);
    let (mut lists, mut longest) = (0, Duration::ZERO);
    // Each list is on its way while the next snapshot takes the place of one that is in it.
    while seen.changed().await.is_ok() {
        let began = Instant::now();
        store.list().await.unwrap();
        longest = longest.max(began.elapsed());
        lists += 1;
    }
    maker.await.unwrap();
    assert!(longest < AT_ONCE, "one of {lists} lists took {longest:?}");
    let left: Vec<u64> = store.list().await.unwrap().iter().map(|info| info.no).collect();
    assert_eq!(left, [SNAPSHOTS, SNAPSHOTS - 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_removed_while_it_is_read_is_given_up_at_once() {
    let server = NatsServer::start();
    let log = open(&server).await;
    let store = SnapshotStore::of(&log);
    put(&store, &[7; 1 << 20]).await;
    let info = store.list().await.unwrap().remove(0);
    // What a reader still waits for is gone first, and then what says that there is such a snapshot.
    let stream = format!("OBJ_{}-snapshot-store", log.stream_prefix());
    let stream = log.context().get_stream(stream).await.unwrap();
    stream.purge().filter("$O.*.C.>").await.unwrap();
    let consumers = stream.get_info().await.unwrap().state.consumer_count;
    let reading = SnapshotStore::of(&log);
    let began = Instant::now();
    let read = tokio::spawn(async move { reading.get(&info, tempfile::tempfile().unwrap(), |_, _| {}).await });
    while stream.get_info().await.unwrap().state.consumer_count == consumers {}
    stream.purge().filter("$O.*.M.>").await.unwrap();
    let read = read.await.unwrap();
    assert!(matches!(read, Err(SnapshotError::Removed { no: 1 })), "{read:?}");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_stored_where_messages_are_small() {
    let server = NatsServer::start_with("max_payload: 8192");
    let store = SnapshotStore::of(&open(&server).await);
    let content: Vec<u8> = (0..300_000_u32).flat_map(|i| i.wrapping_mul(i).to_le_bytes()).collect();
    put(&store, &content).await;
    let info = store.list().await.unwrap().remove(0);
    let mut into = tempfile::tempfile().unwrap();
    store.get(&info, into.try_clone().unwrap(), |_, _| {}).await.unwrap();
    let mut found = Vec::new();
    std::io::Seek::rewind(&mut into).unwrap();
    std::io::Read::read_to_end(&mut into, &mut found).unwrap();
    assert!(found == content);
}

/// A node that was killed while it made one kept all nodes from it for as long as a lease lasts, itself too.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_up_the_lease_that_it_held_before() {
    let server = NatsServer::start();
    let log = open(&server).await;
    drop(Lease::take(&log, 1).await.unwrap().expect("nobody holds it"));
    assert!(Lease::take(&log, 2).await.unwrap().is_none(), "another node holds it");
    let lease = Lease::take(&log, 1).await.unwrap().expect("it is its own");
    lease.give_back().await;
    assert!(Lease::take(&log, 2).await.unwrap().is_some(), "it was given back");
    assert!(Lease::take(&log, 1).await.unwrap().is_none());
}
