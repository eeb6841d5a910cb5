//! The log on real servers that are killed, restarted, trimmed and configured differently.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use woodchuck::log::{
    Assembler, ConnectError, JetStreamLog, Log, LogError, NatsOptions, Numbers, PublishError, ShardId, StreamOptions,
    StreamSeq, seal,
};

use super::flow::{
    HANGS, ORIGIN, arrived, expect_in_order, failure, rounds, start_consumer, start_publisher, transactions, unit,
};
use crate::support::nats::{NatsCluster, NatsServer};

fn nats(urls: Vec<String>) -> NatsOptions {
    NatsOptions { urls, name: "test".into(), ..NatsOptions::default() }
}

fn streams(shard_count: u16) -> StreamOptions {
    StreamOptions { shard_count, ..StreamOptions::default() }
}

async fn open(server: &NatsServer, streams: StreamOptions) -> JetStreamLog {
    let log = JetStreamLog::connect(&nats(vec![server.url()]), streams).await.unwrap();
    log.ensure().await.unwrap();
    log
}

fn shared(log: &JetStreamLog) -> Arc<dyn Log> {
    Arc::new(log.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_arrive_in_order_in_every_shard() {
    let server = NatsServer::start();
    let log = shared(&open(&server, streams(3)).await);
    let mut consumers: Vec<_> = (1..=3).map(|shard| start_consumer(&log, shard, 1)).collect();
    let mut publisher = start_publisher(Arc::clone(&log));
    for round in rounds(20, 3, 3) {
        publisher.publish(round).await;
    }
    for consumer in &mut consumers {
        assert_eq!(expect_in_order(consumer, 60).await, 0);
    }
    let bounds = log.bounds(ShardId(2)).await.unwrap();
    assert_eq!((bounds.first, bounds.last), (StreamSeq(1), StreamSeq(60)));
    assert_eq!(log.stream_name(ShardId(2)), "woodchuck-changes-3-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn order_holds_while_the_server_is_killed_mid_round_again_and_again() {
    let mut server = NatsServer::start();
    let log = shared(&open(&server, streams(2)).await);
    let mut consumers: Vec<_> = (1..=2).map(|shard| start_consumer(&log, shard, 1)).collect();
    let publisher = start_publisher(Arc::clone(&log));
    let outgoing = publisher.outgoing.clone();
    tokio::spawn(async move {
        for round in rounds(60, 2, 5) {
            woodchuck::log::send_round(&outgoing, round).await;
        }
    });
    let mut acknowledged = publisher.published;
    for _ in 0..5 {
        // Some acknowledgements into the next round: the kill falls between two messages or between a message and its acknowledgement.
        for _ in 0..37 {
            tokio::time::timeout(HANGS, acknowledged.recv()).await.unwrap().unwrap();
        }
        server.kill();
        tokio::task::block_in_place(|| server.restart());
    }
    tokio::spawn(async move { while acknowledged.recv().await.is_some() {} });
    for consumer in &mut consumers {
        expect_in_order(consumer, 300).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_reader_hears_again_after_the_server_was_away() {
    let mut server = NatsServer::start();
    let log = shared(&open(&server, streams(1)).await);
    let mut deliveries = start_consumer(&log, 1, 1);
    let mut publisher = start_publisher(Arc::clone(&log));
    let mut all = rounds(3, 1, 1).into_iter();
    for _ in 0..3 {
        publisher.publish(all.next().unwrap()).await;
        arrived(&mut deliveries).await;
        server.kill();
        tokio::task::block_in_place(|| server.restart());
    }
    let state = log.bounds(ShardId(1)).await;
    assert!(state.is_ok() || matches!(state, Err(LogError::Unreachable(_))), "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_consumer_is_replaced() {
    let server = NatsServer::start();
    let log = open(&server, streams(1)).await;
    let mut deliveries = start_consumer(&shared(&log), 1, 1);
    let mut publisher = start_publisher(shared(&log));
    for round in rounds(3, 1, 1) {
        publisher.publish(round).await;
        arrived(&mut deliveries).await;
        let stream = log.context().get_stream(log.stream_name(ShardId(1))).await.unwrap();
        let names: Vec<_> = stream.consumer_names().collect().await;
        assert!(!names.is_empty());
        for name in names {
            stream.delete_consumer(&name.unwrap()).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_behind_the_trimmed_log_is_told_so() {
    let server = NatsServer::start();
    let log = shared(&open(&server, StreamOptions { max_log_entries: 5, ..streams(1) }).await);
    let mut publisher = start_publisher(Arc::clone(&log));
    for round in rounds(12, 1, 1) {
        publisher.publish(round).await;
    }
    let stream = "woodchuck-changes-1-1".to_owned();
    let behind = LogError::FellBehind { stream, wanted: StreamSeq(7), first: StreamSeq(8) };
    assert_eq!(failure(&mut start_consumer(&log, 1, 7)).await, behind);
    assert_eq!(arrived(&mut start_consumer(&log, 1, 8)).await.seq, StreamSeq(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_deleted_from_the_middle_is_a_hole_and_not_a_trimmed_log() {
    let server = NatsServer::start();
    let log = open(&server, streams(1)).await;
    let mut publisher = start_publisher(shared(&log));
    for round in rounds(4, 1, 1) {
        publisher.publish(round).await;
    }
    let stream = log.context().get_stream(log.stream_name(ShardId(1))).await.unwrap();
    stream.delete_message(2).await.unwrap();
    let mut deliveries = start_consumer(&shared(&log), 1, 1);
    arrived(&mut deliveries).await;
    let stream = "woodchuck-changes-1-1".to_owned();
    assert_eq!(failure(&mut deliveries).await, LogError::Hole { stream, wanted: StreamSeq(2), found: StreamSeq(3) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_and_one_made_anew_are_noticed() {
    let server = NatsServer::start();
    let log = open(&server, streams(2)).await;
    let mut publisher = start_publisher(shared(&log));
    publisher.publish(rounds(1, 2, 1).remove(0)).await;
    let mut consumers: Vec<_> = (1..=2).map(|shard| start_consumer(&shared(&log), shard, 1)).collect();
    for consumer in &mut consumers {
        arrived(consumer).await;
    }
    log.context().delete_stream("woodchuck-changes-2-1").await.unwrap();
    log.context().delete_stream("woodchuck-changes-2-2").await.unwrap();
    assert!(matches!(failure(&mut consumers[0]).await, LogError::StreamMissing { .. }));
    // The second reader may have seen the stream missing as well before it is there again.
    log.ensure().await.unwrap();
    let error = failure(&mut consumers[1]).await;
    assert!(matches!(error, LogError::StreamRecreated { .. } | LogError::StreamMissing { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_back_in_time_is_noticed() {
    let mut server = NatsServer::start();
    let log = shared(&open(&server, streams(1)).await);
    let mut publisher = start_publisher(Arc::clone(&log));
    let mut deliveries = start_consumer(&log, 1, 1);
    let all = rounds(4, 1, 1);
    let backup = tempfile::tempdir().unwrap();
    for (index, round) in all.into_iter().enumerate() {
        publisher.publish(round).await;
        arrived(&mut deliveries).await;
        if index == 1 {
            server.kill();
            server.copy_store(backup.path(), false);
            tokio::task::block_in_place(|| server.restart());
        }
    }
    server.kill();
    server.delete_store();
    server.copy_store(backup.path(), true);
    tokio::task::block_in_place(|| server.restart());
    let stream = "woodchuck-changes-1-1".to_owned();
    let lost = LogError::LostTail { stream, wanted: StreamSeq(5), last: StreamSeq(2) };
    assert_eq!(failure(&mut deliveries).await, lost);
    // Nothing takes the place of what is lost, until that is back.
    let payload = bytes::Bytes::from_static(b"the next");
    let refused = log.publish(ShardId(1), "next", payload.clone()).await.unwrap_err();
    assert!(matches!(refused, PublishError::LostTail { last: StreamSeq(2), known: StreamSeq(4), .. }), "{refused}");
    assert!(matches!(log.publish_at(ShardId(1), StreamSeq(4), payload.clone()).await, Err(PublishError::Refused(_))));
    for seq in 3..=4 {
        assert_eq!(log.publish_at(ShardId(1), StreamSeq(seq), payload.clone()).await, Ok(StreamSeq(seq)));
    }
    assert_eq!(log.publish(ShardId(1), "next", payload).await, Ok(StreamSeq(5)));
}

/// It had not read what is lost, so the stream looked whole to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_knows_nothing_of_lost_messages_hears_of_them_before_it_publishes() {
    let mut server = NatsServer::start();
    let (knowing, other) = (open(&server, streams(2)).await, open(&server, streams(2)).await);
    let answering = knowing.clone();
    let answers = tokio::spawn(async move { answering.answer_tails().await });
    let backup = tempfile::tempdir().unwrap();
    let payload = bytes::Bytes::from_static(b"something");
    for seq in 1..=4 {
        let log = if seq == 2 { &other } else { &knowing };
        assert_eq!(log.publish(ShardId(1), &format!("message {seq}"), payload.clone()).await, Ok(StreamSeq(seq)));
        if seq == 2 {
            server.kill();
            server.copy_store(backup.path(), false);
            tokio::task::block_in_place(|| server.restart());
        }
    }
    server.kill();
    server.delete_store();
    server.copy_store(backup.path(), true);
    tokio::task::block_in_place(|| server.restart());
    let refused = other.publish(ShardId(1), "next", payload.clone()).await.unwrap_err();
    assert!(matches!(refused, PublishError::LostTail { last: StreamSeq(2), known: StreamSeq(4), .. }), "{refused}");
    for seq in 3..=4 {
        assert_eq!(knowing.publish_at(ShardId(1), StreamSeq(seq), payload.clone()).await, Ok(StreamSeq(seq)));
    }
    assert_eq!(other.publish(ShardId(1), "next", payload.clone()).await, Ok(StreamSeq(5)));
    assert_eq!(other.publish(ShardId(2), "first", payload).await, Ok(StreamSeq(1)));
    answers.abort();
}

/// A client that connects again sends what it had queued before anybody can look at what the server has.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_a_connection_goes_to_no_server_that_lost_its_tail() {
    let mut server = NatsServer::start();
    let log = open(&server, streams(1)).await;
    let backup = tempfile::tempdir().unwrap();
    let small = bytes::Bytes::from_static(b"small");
    for seq in 1..=4 {
        assert_eq!(log.publish(ShardId(1), &format!("small {seq}"), small.clone()).await, Ok(StreamSeq(seq)));
        if seq == 2 {
            server.kill();
            server.copy_store(backup.path(), false);
            tokio::task::block_in_place(|| server.restart());
        }
    }
    // More than the sockets hold, so that most of it waits in the client.
    server.pause();
    let large = bytes::Bytes::from(vec![7; log.message_bytes_max()]);
    let sent = (0..64).map(|index| {
        let (log, large) = (log.clone(), large.clone());
        async move { log.publish(ShardId(1), &format!("large {index}"), large).await }
    });
    let sent = futures_util::future::join_all(sent).await;
    assert!(sent.iter().all(|result| *result == Err(PublishError::TimedOut)), "{sent:?}");
    let mut link = log.link();
    let change_count = link.borrow().change_count;
    server.kill();
    server.delete_store();
    server.copy_store(backup.path(), true);
    tokio::task::block_in_place(|| server.restart());
    link.wait_for(|link| link.connected && link.change_count > change_count).await.unwrap();
    assert_eq!(log.bounds(ShardId(1)).await.unwrap().last, StreamSeq(2));
    let refused = log.publish(ShardId(1), "small 5", small.clone()).await.unwrap_err();
    assert!(matches!(refused, PublishError::LostTail { last: StreamSeq(2), known: StreamSeq(4), .. }), "{refused}");
    for seq in 3..=5 {
        assert_eq!(log.publish_at(ShardId(1), StreamSeq(seq), small.clone()).await, Ok(StreamSeq(seq)));
    }
}

/// A server that lost its tail and took new messages before the reader was back has as many messages as the reader knows of. Those that
/// took the numbers of the lost ones would never have been read.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_back_in_time_and_on_is_noticed() {
    let mut server = NatsServer::start();
    let log = shared(&open(&server, streams(1)).await);
    let mut publisher = start_publisher(Arc::clone(&log));
    let mut deliveries = start_consumer(&log, 1, 1);
    let backup = tempfile::tempdir().unwrap();
    let mut all = rounds(20, 1, 1).into_iter();
    for index in 0..4 {
        publisher.publish(all.next().unwrap()).await;
        arrived(&mut deliveries).await;
        if index == 1 {
            server.kill();
            server.copy_store(backup.path(), false);
            tokio::task::block_in_place(|| server.restart());
        }
    }
    server.kill();
    server.delete_store();
    server.copy_store(backup.path(), true);
    tokio::task::block_in_place(|| server.restart());
    // A node that knows nothing of what was lost: one that does would not take its place.
    let mut publisher = start_publisher(shared(&open(&server, streams(1)).await));
    for round in all {
        publisher.publish(round).await;
    }
    let stream = "woodchuck-changes-1-1".to_owned();
    assert_eq!(failure(&mut deliveries).await, LogError::Rewritten { stream, seq: StreamSeq(4) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_configured_differently_is_refused_by_the_settings_name() {
    let server = NatsServer::start();
    let log = open(&server, StreamOptions { conflict: "column", ..streams(2) }).await;
    log.ensure().await.expect("what is as it must be is accepted");
    let url = nats(vec![server.url()]);
    let other = JetStreamLog::connect(&url, StreamOptions { max_log_entries: 99, ..streams(2) }).await.unwrap();
    let error = other.ensure().await.unwrap_err();
    assert_eq!(error.to_string(), "stream woodchuck-changes-2-1 has max_msgs = 1024, this node wants 99");
    assert!(error.hint().contains("--max-log-entries 1024"), "{}", error.hint());
    // How rows are merged stands with the streams, and whoever merges none takes any.
    let other = JetStreamLog::connect(&url, StreamOptions { conflict: "row", ..streams(2) }).await.unwrap();
    let error = other.ensure().await.unwrap_err();
    assert_eq!(error.to_string(), "stream woodchuck-changes-2-1 has conflict = column, this node wants row");
    assert!(error.hint().contains("apply.conflict"), "{}", error.hint());
    let with = |prefix: &str, conflict| StreamOptions {
        stream_prefix: prefix.into(),
        subject_prefix: prefix.into(),
        conflict,
        ..streams(1)
    };
    for (first, second) in [("row", "column"), ("column", "row")] {
        let prefix = format!("of-{first}");
        JetStreamLog::connect(&url, with(&prefix, first)).await.unwrap().ensure().await.unwrap();
        for (conflict, is_taken) in [(first, true), (second, false), ("", true)] {
            let other = JetStreamLog::connect(&url, with(&prefix, conflict)).await.unwrap();
            assert_eq!(other.ensure().await.is_ok(), is_taken, "{first} {conflict}");
        }
    }
    // One that was made by hand is taken at its first node's word.
    for (prefix, first, second) in [("hand", "row", "column"), ("other-hand", "column", "row")] {
        JetStreamLog::connect(&url, with(prefix, "")).await.unwrap().ensure().await.unwrap();
        for _ in 0..2 {
            JetStreamLog::connect(&url, with(prefix, first)).await.unwrap().ensure().await.unwrap();
        }
        let other = JetStreamLog::connect(&url, with(prefix, second)).await.unwrap();
        let error = other.ensure().await.unwrap_err().to_string();
        assert!(error.contains(&format!("has conflict = {first}")), "{error}");
    }
    let other = JetStreamLog::connect(&url, streams(4)).await.unwrap();
    let error = other.ensure().await.unwrap_err();
    assert_eq!(error.to_string(), "stream woodchuck-changes-2-1 has shards = 2, this node wants 4");
    assert!(error.hint().contains("--shards 2"), "{}", error.hint());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_larger_than_max_payload_travels() {
    let server = NatsServer::start_with("max_payload: 16384");
    let log = shared(&open(&server, streams(1)).await);
    assert_eq!(log.message_bytes_max(), 16384 - 1024);
    let units = vec![unit(1, 10), unit(2, 3_000_000), unit(3, 10)];
    for compress in [false, true] {
        let numbers = Numbers {
            round_no: 1 + u64::from(compress),
            batch_no_last: BTreeMap::from([(ShardId(1), log.bounds(ShardId(1)).await.unwrap().last.0)]),
            barrier: false,
        };
        let waiting = BTreeMap::from([(ShardId(1), units.clone())]);
        let round = seal(&waiting, &numbers, ORIGIN, log.message_bytes_max(), compress);
        let (count, from) = (round.messages.len(), numbers.batch_no_last[&ShardId(1)] + 1);
        let mut publisher = start_publisher(Arc::clone(&log));
        publisher.publish(round).await;
        let mut deliveries = start_consumer(&log, 1, from);
        let mut assembler = Assembler::new(8 << 20);
        let mut found = Vec::new();
        for _ in 0..count {
            let message = arrived(&mut deliveries).await;
            found.extend(assembler.push(message.batch).unwrap().map(|(_, units)| units).unwrap_or_default());
        }
        assert!(found == units, "all three units come whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_as_large_as_the_server_takes_travel() {
    let server = NatsServer::start();
    let log = shared(&open(&server, streams(1)).await);
    let largest = log.message_bytes_max();
    let numbers = Numbers { round_no: 1, batch_no_last: BTreeMap::new(), barrier: false };
    let waiting = BTreeMap::from([(ShardId(1), vec![unit(0, 20 * largest)])]);
    let round = seal(&waiting, &numbers, ORIGIN, largest, false);
    let count = round.messages.len();
    // Full but for the room that the longest possible header would take.
    assert!(round.messages[0].payload.len() > largest - 200);
    let mut publisher = start_publisher(Arc::clone(&log));
    publisher.publish(round).await;
    let mut deliveries = start_consumer(&log, 1, 1);
    for seq in 1..=count as u64 {
        assert_eq!(arrived(&mut deliveries).await.seq, StreamSeq(seq));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_a_server_goes_on() {
    let mut cluster = NatsCluster::start();
    let options = StreamOptions { replica_count: 3, ..streams(1) };
    let log = JetStreamLog::connect(&nats(cluster.urls()), options).await.unwrap();
    let created = async {
        // The cluster elects its leaders first.
        while let Err(error) = log.ensure().await {
            eprintln!("not yet: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(HANGS, created).await.expect("the cluster creates the stream");
    let mut deliveries = start_consumer(&shared(&log), 1, 1);
    let mut publisher = start_publisher(shared(&log));
    for (index, round) in rounds(9, 1, 2).into_iter().enumerate() {
        publisher.publish(round).await;
        if index % 3 == 2 {
            let server = index / 3;
            cluster.servers[server].kill();
            tokio::task::block_in_place(|| cluster.servers[server].restart());
        }
    }
    expect_in_order(&mut deliveries, 18).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_or_refuses_is_told_apart() {
    let options = nats(vec!["nats://127.0.0.1:1".into()]);
    let error = JetStreamLog::connect(&options, streams(1)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");

    let server = NatsServer::start_with("authorization { user: a, password: b }");
    let error = JetStreamLog::connect(&nats(vec![server.url()]), streams(1)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unauthorized { .. }), "{error:?}");
    let user = Some(("a".to_owned(), "b".to_owned()));
    let log = JetStreamLog::connect(&NatsOptions { user, ..nats(vec![server.url()]) }, streams(1)).await.unwrap();
    log.ensure().await.unwrap();

    let bad = StreamOptions { stream_prefix: "a.b".into(), ..streams(1) };
    let error = JetStreamLog::connect(&nats(vec![server.url()]), bad).await.unwrap_err();
    assert!(matches!(error, ConnectError::Option { option: "stream-prefix", .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_readers_of_one_log_see_the_same() {
    let server = NatsServer::start();
    let log = open(&server, streams(2)).await;
    let other = shared(&open(&server, streams(2)).await);
    let (deliveries, mut all) = mpsc::channel(4);
    let from = [(ShardId(1), StreamSeq(1)), (ShardId(2), StreamSeq(1))];
    let consumers = woodchuck::log::spawn_consumers(&other, from, &deliveries);
    let mut publisher = start_publisher(shared(&log));
    for round in rounds(5, 2, 2) {
        publisher.publish(round).await;
    }
    let mut seen: BTreeMap<ShardId, Vec<u64>> = BTreeMap::new();
    for _ in 0..20 {
        let message = arrived(&mut all).await;
        seen.entry(message.shard).or_default().extend(transactions(&message));
    }
    assert_eq!(seen, (1..=2).map(|shard| (ShardId(shard), (0..10).collect())).collect());
    drop(consumers);
}

fn tls_file(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/log/tls").join(name)
}

#[tokio::test]
async fn tls_works_both_ways_and_a_server_without_our_trust_is_refused() {
    let [ca, cert, key] = ["ca.pem", "server.pem", "server.key"].map(|name| tls_file(name).display().to_string());
    // The readiness check reads the greeting, which comes in plain text before the handshake.
    let config = format!("tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}");
    let server = NatsServer::start_with(&config);
    let identity = Some((tls_file("client.pem"), tls_file("client.key")));
    let trusted = NatsOptions { tls_ca: Some(tls_file("ca.pem")), tls_identity: identity, ..nats(vec![server.url()]) };
    let log = JetStreamLog::connect(&trusted, streams(1)).await.unwrap();
    log.ensure().await.unwrap();

    let anonymous = NatsOptions { tls_identity: None, ..trusted.clone() };
    JetStreamLog::connect(&anonymous, streams(1)).await.expect_err("the server asks for a certificate");
    let untrusting = NatsOptions { tls_ca: None, ..trusted };
    let error = JetStreamLog::connect(&untrusting, streams(1)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
}

#[tokio::test]
async fn tokens_and_nkeys_are_accepted() {
    let server = NatsServer::start_with("authorization { token: s3cret }");
    let token = NatsOptions { token: Some("s3cret".into()), ..nats(vec![server.url()]) };
    JetStreamLog::connect(&token, streams(1)).await.unwrap().ensure().await.unwrap();

    // The pair of the NATS documentation.
    let (seed, public) = (
        "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
        "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
    );
    let config = format!("authorization {{ users: [ {{ nkey: {public} }} ] }}");
    let server = NatsServer::start_with(&config);
    let nkey = NatsOptions { nkey_seed: Some(seed.into()), ..nats(vec![server.url()]) };
    JetStreamLog::connect(&nkey, streams(1)).await.unwrap().ensure().await.unwrap();
    let error = JetStreamLog::connect(&nats(vec![server.url()]), streams(1)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unauthorized { .. }), "{error:?}");
}
