//! Publishing and reading with the log in memory, which fails on demand.

use std::sync::Arc;

use bytes::Bytes;
use woodchuck::log::{Faults, Log, LogError, MemoryLog, PublishError, ShardId, StreamSeq};

use super::flow::{arrived, expect_in_order, failure, rounds, start_consumer, start_publisher};
use super::seeded::{Random, for_seeds};

const ONE: ShardId = ShardId(1);

#[test]
fn order_holds_through_faults_of_every_kind() {
    for_seeds(30, |random: &mut Random| {
        let seed = random.next();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let log = MemoryLog::new(3, seed);
            let faults = Faults { delay_percent: 10, duplicate_percent: 10, drop_ack_percent: 20, fail_percent: 20 };
            log.set_faults(faults);
            log.remember_ids(seed.is_multiple_of(2));
            let shared: Arc<dyn Log> = Arc::new(log.clone());
            let mut publisher = start_publisher(Arc::clone(&shared));
            for round in rounds(10, 3, 3) {
                publisher.publish(round).await;
            }
            assert!(publisher.state.borrow().is_empty(), "nothing is in trouble when all is acknowledged");
            log.release();
            for shard in 1..=3 {
                expect_in_order(&mut start_consumer(&shared, shard, 1), 30).await;
            }
        });
    });
}

#[tokio::test]
async fn the_state_tells_what_is_in_trouble_and_for_how_long() {
    let log = MemoryLog::new(1, 1);
    log.fail_next(3);
    let mut publisher = start_publisher(Arc::new(log));
    let mut state = publisher.state.clone();
    let round = rounds(1, 1, 1).remove(0);
    let send = publisher.publish(round);
    let (trouble, ()) = tokio::join!(
        async {
            let state = state.wait_for(|state| state.get(&ONE).is_some_and(|shard| shard.attempt_count == 3)).await;
            state.unwrap()[&ONE].error_last.clone()
        },
        send
    );
    assert_eq!(trouble, PublishError::Disconnected.to_string());
    assert!(publisher.state.borrow().is_empty());
}

#[tokio::test]
async fn a_closed_queue_ends_the_publisher_after_the_last_acknowledgement() {
    let log = MemoryLog::new(1, 1);
    log.fail_next(2);
    let publisher = start_publisher(Arc::new(log.clone()));
    let round = rounds(1, 1, 3).remove(0);
    assert!(woodchuck::log::send_round(&publisher.outgoing, round).await);
    drop(publisher.outgoing);
    publisher.task.await.unwrap();
    assert_eq!(log.entries(ONE, StreamSeq(1)).len(), 3);
}

#[tokio::test]
async fn shutdown_ends_the_publisher_although_the_log_never_answers() {
    let log = MemoryLog::new(1, 1);
    log.fail_next(u32::MAX);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (outgoing, queue) = tokio::sync::mpsc::channel(4);
    let (reports, _published) = tokio::sync::mpsc::channel(4);
    let (state, mut watched) = tokio::sync::watch::channel(woodchuck::log::PublishState::new());
    let shutdown = async { stopped.await.unwrap_or(()) };
    let task = tokio::spawn(woodchuck::log::publish(Arc::new(log), queue, reports, state, shutdown));
    woodchuck::log::send_round(&outgoing, rounds(1, 1, 1).remove(0)).await;
    watched.wait_for(|state| !state.is_empty()).await.unwrap();
    stop.send(()).unwrap();
    tokio::time::timeout(super::flow::HANGS, task).await.expect("the publisher ends").unwrap();
}

#[tokio::test]
async fn a_full_channel_holds_the_consumer_back_and_loses_nothing() {
    let log = MemoryLog::new(1, 1);
    let shared: Arc<dyn Log> = Arc::new(log.clone());
    let mut publisher = start_publisher(Arc::clone(&shared));
    // The consumer's channel holds 8; 50 messages are in the log before anybody takes one.
    let mut deliveries = start_consumer(&shared, 1, 1);
    for round in rounds(10, 1, 5) {
        publisher.publish(round).await;
    }
    assert_eq!(expect_in_order(&mut deliveries, 50).await, 0);
}

#[tokio::test]
async fn a_reader_that_the_log_was_trimmed_beyond_is_told_so() {
    let log = MemoryLog::new(1, 1);
    let shared: Arc<dyn Log> = Arc::new(log.clone());
    let mut publisher = start_publisher(Arc::clone(&shared));
    for round in rounds(4, 1, 1) {
        publisher.publish(round).await;
    }
    log.trim(ONE, StreamSeq(3));
    let error = failure(&mut start_consumer(&shared, 1, 2)).await;
    let stream = "memory-1".to_owned();
    assert_eq!(error, LogError::FellBehind { stream, wanted: StreamSeq(2), first: StreamSeq(3) });
    assert_eq!(arrived(&mut start_consumer(&shared, 1, 3)).await.seq, StreamSeq(3));
}

#[tokio::test]
async fn a_log_that_lost_its_tail_or_was_made_anew_is_noticed() {
    let log = MemoryLog::new(1, 1);
    let shared: Arc<dyn Log> = Arc::new(log.clone());
    let mut publisher = start_publisher(Arc::clone(&shared));
    for round in rounds(4, 1, 1) {
        publisher.publish(round).await;
    }
    let mut deliveries = start_consumer(&shared, 1, 4);
    assert_eq!(arrived(&mut deliveries).await.seq, StreamSeq(4));
    log.lose_tail(ONE, StreamSeq(2));
    let stream = "memory-1".to_owned();
    let lost = LogError::LostTail { stream: stream.clone(), wanted: StreamSeq(5), last: StreamSeq(2) };
    assert_eq!(failure(&mut deliveries).await, lost);

    let mut deliveries = start_consumer(&shared, 1, 2);
    assert_eq!(arrived(&mut deliveries).await.seq, StreamSeq(2));
    log.delete_stream(ONE);
    assert_eq!(failure(&mut deliveries).await, LogError::StreamMissing { stream });
}

#[tokio::test]
async fn a_message_that_is_not_ours_stops_its_shard_with_stream_and_number() {
    let log = MemoryLog::new(1, 1);
    let shared: Arc<dyn Log> = Arc::new(log.clone());
    let mut publisher = start_publisher(Arc::clone(&shared));
    publisher.publish(rounds(1, 1, 1).remove(0)).await;
    log.append(ONE, "foreign", Bytes::from_static(b"hello")).unwrap();
    let mut deliveries = start_consumer(&shared, 1, 1);
    arrived(&mut deliveries).await;
    let error = failure(&mut deliveries).await;
    assert!(error.to_string().starts_with("message 2 of stream memory-1: not a woodchuck message"), "{error}");
    assert_eq!(deliveries.recv().await, None, "nothing behind it is delivered");
}

#[tokio::test]
async fn a_message_in_a_shard_that_its_round_does_not_name_is_refused() {
    let log = MemoryLog::new(2, 1);
    let payload = rounds(1, 1, 1).remove(0).messages.remove(0).payload;
    log.append(ShardId(2), "astray", payload.into()).unwrap();
    let shared: Arc<dyn Log> = Arc::new(log);
    let error = failure(&mut start_consumer(&shared, 2, 1)).await;
    assert!(error.to_string().ends_with("its round has no messages in shard 2"), "{error}");
}

#[tokio::test]
async fn headers_come_with_payloads_that_decode_to_the_same() {
    let log: Arc<dyn Log> = Arc::new(MemoryLog::new(1, 1));
    let mut publisher = start_publisher(Arc::clone(&log));
    publisher.publish(rounds(1, 1, 3).remove(0)).await;
    let (deliveries, mut announced) = tokio::sync::mpsc::channel(1);
    tokio::spawn(woodchuck::log::consume_headers(Arc::clone(&log), ONE, StreamSeq(1), deliveries));
    let mut whole = start_consumer(&log, 1, 1);
    for _ in 0..3 {
        let wanted = arrived(&mut whole).await;
        let Some(woodchuck::log::Delivery::Arrived(found)) = announced.recv().await else { panic!("a header comes") };
        assert_eq!((found.seq, &found.header), (wanted.seq, &wanted.batch.header));
        assert_eq!(woodchuck::log::decode(&found.payload, 1 << 20), Ok(wanted.batch));
    }
}
