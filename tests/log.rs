//! The log: envelope, rounds, cut, and what must hold while servers die.

mod cut;
mod envelope;
mod flow;
mod jetstream;
mod memory;
mod seal;
mod seeded;
mod snapshots;

/// Messages of made-up transactions, as they are on the log; some are compressed.
pub fn messages(count: u64) -> Vec<Vec<u8>> {
    let message =
        |seed: u64| woodchuck::log::encode(&seeded::batch(&mut seeded::Random::new(seed)), seed.is_multiple_of(4));
    (0..count).map(message).collect()
}
