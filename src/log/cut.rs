//! The consistent cut: how far every shard may be applied so that no round, and so no transaction, is split.
//!
//! Invariant: a round is inside when its last message of every shard it names is folded or in the shard's prefix (order holds inside a
//! shard, so the others are too). A shard ends before the first message of a round that is not inside; that may put other rounds outside,
//! until nothing changes. The result is the largest such cut: every step is forced.

use std::collections::HashMap;

use super::message::{Header, Origin, ShardId};
use super::order::Folded;

/// What one shard holds beyond its applied position.
#[derive(Debug, Clone, Copy)]
pub struct CutShard<'a> {
    /// The shard.
    pub shard: ShardId,
    /// Per origin the last message folded.
    pub folded: &'a HashMap<Origin, Folded>,
    /// The headers that arrived, in log order, duplicates included.
    pub arrived: &'a [Header],
}

/// One round that arrived at least in part.
struct Round<'a> {
    header: &'a Header,
    /// Index of its shard and of its first message there.
    begins: Vec<(usize, usize)>,
    outside: bool,
}

/// One message that arrived.
#[derive(Clone, Copy)]
struct Arrived {
    /// Index of its round; `None` for what is folded already.
    round: Option<usize>,
    /// The round is inside only while this message is in the prefix.
    needed: bool,
}

/// For each of `shards`, how many of its messages belong to the largest consistent cut.
///
/// Messages that were folded before count as inside, whether or not they arrive again. A round that names a shard that is not among
/// `shards` is never inside. Time grows with the number of messages and of shards in their rounds.
#[must_use]
pub fn consistent_cut(shards: &[CutShard<'_>]) -> Vec<usize> {
    let shard_indexes: HashMap<ShardId, usize> = shards.iter().enumerate().map(|(i, shard)| (shard.shard, i)).collect();
    let mut round_indexes: HashMap<(Origin, u64), usize> = HashMap::new();
    let mut rounds: Vec<Round<'_>> = Vec::new();
    let mut arrived: Vec<Vec<Arrived>> = Vec::with_capacity(shards.len());
    // Where the last message of a round stands in a shard: the first copy counts, later ones are duplicates.
    let mut last_messages: HashMap<(usize, usize), usize> = HashMap::new();
    for (shard_index, shard) in shards.iter().enumerate() {
        let mut messages = Vec::with_capacity(shard.arrived.len());
        for (index, header) in shard.arrived.iter().enumerate() {
            let folded = shard.folded.get(&header.origin).copied().unwrap_or_default();
            if header.batch_no <= folded.batch_no {
                messages.push(Arrived { round: None, needed: false });
                continue;
            }
            let round_index = *round_indexes.entry((header.origin, header.round_no)).or_insert(rounds.len());
            if round_index == rounds.len() {
                rounds.push(Round { header, begins: Vec::new(), outside: false });
            }
            if let Some(round) = rounds.get_mut(round_index) {
                if round.begins.last().is_none_or(|(last, _)| *last != shard_index) {
                    round.begins.push((shard_index, index));
                }
                // All messages of a round name the same shards and counts; one that does not comes from a broken origin, and its
                // round stays outside.
                round.outside |= round.header.round != header.round;
            }
            let count = header.round.iter().find(|part| part.shard == shard.shard).map(|part| part.message_count);
            if count == Some(header.part.saturating_add(1)) {
                last_messages.entry((round_index, shard_index)).or_insert(index);
            }
            messages.push(Arrived { round: Some(round_index), needed: false });
        }
        arrived.push(messages);
    }

    let mut outside: Vec<usize> = Vec::new();
    for (round_index, round) in rounds.iter_mut().enumerate() {
        for part in &round.header.round {
            let Some(shard_index) = shard_indexes.get(&part.shard).copied() else {
                round.outside = true;
                continue;
            };
            let folded = shards.get(shard_index).and_then(|shard| shard.folded.get(&round.header.origin));
            let folded = folded.copied().unwrap_or_default();
            let last_part = part.message_count.saturating_sub(1);
            if (folded.round_no, folded.part) >= (round.header.round_no, last_part) {
                continue;
            }
            let message = last_messages
                .get(&(round_index, shard_index))
                .and_then(|index| arrived.get_mut(shard_index)?.get_mut(*index));
            match message {
                Some(message) => message.needed = true,
                None => round.outside = true,
            }
        }
        if round.outside {
            outside.push(round_index);
        }
    }

    // Every message is cut off at most once and every round goes outside at most once, so this ends.
    let mut cut: Vec<usize> = shards.iter().map(|shard| shard.arrived.len()).collect();
    while let Some(round_index) = outside.pop() {
        let begins = rounds.get_mut(round_index).map(|round| std::mem::take(&mut round.begins)).unwrap_or_default();
        for (shard_index, begin) in begins {
            let (Some(end), Some(messages)) = (cut.get_mut(shard_index), arrived.get(shard_index)) else { continue };
            for message in messages.get(begin..*end).unwrap_or_default() {
                let Some(round_index) = message.round.filter(|_| message.needed) else { continue };
                if let Some(round) = rounds.get_mut(round_index).filter(|round| !round.outside) {
                    round.outside = true;
                    outside.push(round_index);
                }
            }
            *end = begin.min(*end);
        }
    }
    cut
}
