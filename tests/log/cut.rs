//! The consistent cut against a literal translation of the model that the design was checked with.

use std::collections::HashMap;

use woodchuck::log::{CutShard, Folded, Header, Origin, RoundPart, ShardId, consistent_cut};

use super::seeded::{Random, for_seeds};

/// The model's `closed()`: tries every shard again until nothing changes.
fn naive(shards: &[CutShard<'_>]) -> Vec<usize> {
    let mut cut: Vec<usize> = shards.iter().map(|shard| shard.arrived.len()).collect();
    let inside = |cut: &[usize], header: &Header, part: &RoundPart| {
        let Some(index) = shards.iter().position(|shard| shard.shard == part.shard) else { return false };
        let last = shards[index].folded.get(&header.origin).copied().unwrap_or_default();
        (last.round_no, last.part) >= (header.round_no, part.message_count - 1)
            || shards[index].arrived[..cut[index]].iter().any(|other| {
                other.origin == header.origin
                    && other.round_no == header.round_no
                    && other.part == part.message_count - 1
            })
    };
    let mut again = true;
    while again {
        again = false;
        for (index, shard) in shards.iter().enumerate() {
            let end = (0..cut[index]).find(|i| {
                let header = &shard.arrived[*i];
                let last = shard.folded.get(&header.origin).copied().unwrap_or_default();
                header.batch_no > last.batch_no && !header.round.iter().all(|part| inside(&cut, header, part))
            });
            if let Some(end) = end {
                cut[index] = end;
                again = true;
            }
        }
    }
    cut
}

/// A log that several origins wrote at random speed with retries, seen from a random position, arrived up to a random end.
struct Scene {
    folded: Vec<HashMap<Origin, Folded>>,
    arrived: Vec<Vec<Header>>,
}

fn scene(random: &mut Random) -> Scene {
    let shard_count = 1 + random.below(5);
    let mut log: Vec<Vec<Header>> = vec![Vec::new(); shard_count];
    let origins = 1 + random.below(4) as u64;
    let mut queues: Vec<Vec<Vec<Header>>> = Vec::new();
    for node_id in 0..origins {
        let origin = Origin { node_id, epoch: 1 };
        let mut queue: Vec<Vec<Header>> = vec![Vec::new(); shard_count];
        let mut batch = vec![0; shard_count];
        for round_no in 1..2 + random.below(6) as u64 {
            let mut round = Vec::new();
            for shard in 1..=shard_count as u16 {
                if random.percent(60) {
                    round.push(RoundPart { shard: ShardId(shard), message_count: 1 + random.below(3) as u32 });
                }
            }
            for part in &round {
                let shard = usize::from(part.shard.0) - 1;
                for no in 0..part.message_count {
                    batch[shard] += 1;
                    let header = Header {
                        origin,
                        batch_no: batch[shard],
                        round_no,
                        part: no,
                        round: round.clone(),
                        barrier: false,
                    };
                    queue[shard].push(header);
                }
            }
        }
        queues.push(queue);
    }
    for _ in 0..200 {
        let (node, shard) = (random.below(queues.len()), random.below(shard_count));
        let queue = &mut queues[node][shard];
        if !queue.is_empty() {
            let header = if random.percent(15) { queue[0].clone() } else { queue.remove(0) };
            log[shard].push(header);
        }
    }
    let mut folded = vec![HashMap::new(); shard_count];
    let mut arrived = Vec::new();
    for (shard, messages) in log.iter().enumerate() {
        let position = if random.percent(50) { random.below(messages.len() + 1) } else { 0 };
        for header in &messages[..position] {
            let last = folded[shard].entry(header.origin).or_insert_with(Folded::default);
            if header.batch_no > last.batch_no {
                *last = Folded::from(header);
            }
        }
        let end = position + random.below(messages.len() - position + 1);
        arrived.push(messages[position..end].to_vec());
    }
    Scene { folded, arrived }
}

#[test]
fn the_cut_is_the_models_cut() {
    for_seeds(5000, |random| {
        let scene = scene(random);
        let shards: Vec<CutShard<'_>> = (0_u16..)
            .zip(scene.folded.iter().zip(&scene.arrived))
            .map(|(index, (folded, arrived))| CutShard { shard: ShardId(index + 1), folded, arrived })
            .collect();
        assert_eq!(consistent_cut(&shards), naive(&shards));
    });
}

#[test]
fn a_round_that_names_an_unknown_shard_is_never_inside() {
    let origin = Origin { node_id: 1, epoch: 1 };
    let part = |shard| RoundPart { shard: ShardId(shard), message_count: 1 };
    let arrived = [Header { origin, batch_no: 1, round_no: 1, part: 0, round: vec![part(1), part(9)], barrier: false }];
    let folded = HashMap::new();
    assert_eq!(consistent_cut(&[CutShard { shard: ShardId(1), folded: &folded, arrived: &arrived }]), [0]);
}

#[test]
fn a_long_log_is_cut_in_a_moment() {
    // Every round spans all shards and the very last message is missing in one: everything stays but the last round.
    let origin = Origin { node_id: 1, epoch: 1 };
    let round: Vec<RoundPart> = (1..=8).map(|shard| RoundPart { shard: ShardId(shard), message_count: 1 }).collect();
    let headers: Vec<Header> = (1..=50_000)
        .map(|no| Header { origin, batch_no: no, round_no: no, part: 0, round: round.clone(), barrier: false })
        .collect();
    let folded = HashMap::new();
    let shards: Vec<CutShard<'_>> = (1..=8_u16)
        .map(|shard| CutShard {
            shard: ShardId(shard),
            folded: &folded,
            arrived: &headers[..50_000 - usize::from(shard == 8)],
        })
        .collect();
    let started = std::time::Instant::now();
    assert_eq!(consistent_cut(&shards), [49_999; 8]);
    assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
}
