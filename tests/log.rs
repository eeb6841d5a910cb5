//! The log: envelope, rounds, cut, and what must hold while servers die.

mod cut;
mod envelope;
mod flow;
mod jetstream;
mod memory;
mod seal;
mod seeded;
