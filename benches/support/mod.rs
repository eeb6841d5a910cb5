//! What the benches share: their one option, how figures are printed, databases and logs to measure on.
//!
//! Absolute times are not stable on shared machines. So every figure that counts is a ratio of two times of the same run, and what is
//! printed is the median over the runs with the smallest and the largest beside it.
// Benches may panic, nothing outside sees what they make public, and none of them uses everything.
#![allow(unreachable_pub, missing_docs, dead_code)]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

pub mod daemon;
#[path = "../../tests/support/gate.rs"]
pub mod gate;
#[path = "../../tests/support/nats.rs"]
pub mod nats;
#[path = "../../tests/support/random.rs"]
pub mod random;
pub mod wal;

use std::time::{Duration, Instant};

use woodchuck::change::{ChangeSink, ChangedRow, RowChange, SchemaChange, TxSpan};
use woodchuck::schema::RowView;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub quick: bool,
}

impl Extent {
    /// From the arguments: `--quick` measures less. What else cargo passes on is not for us.
    pub fn from_args() -> Extent {
        Extent { quick: std::env::args().any(|argument| argument == "--quick") }
    }

    pub fn pick<T>(self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// What a ratio should be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Printed for comparison only.
    None,
}

/// One figure, measured several times.
#[derive(Debug, Clone, Default)]
pub struct Series(pub Vec<f64>);

impl Series {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value below which this part (0 to 1) of the measured ones lie.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = (part * (sorted.len().max(1) - 1) as f64).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// Begins a table of figures.
pub fn section(title: &str) {
    println!("\n{title}");
    println!("  {:<52} {:>14}  {:>21}  {:<12}", "", "median", "(min … max)", "unit");
}

/// Prints a figure.
pub fn figure(what: &str, unit: &str, series: &Series) {
    let spread = format!("({} … {})", number(series.quantile(0.0)), number(series.quantile(1.0)));
    println!("  {what:<52} {:>14}  {spread:>21}  {unit}", number(series.median()));
}

/// Prints a ratio and whether it is what it should be. A missed target is told and not a failure: the machine may be busy.
pub fn ratio(what: &str, series: &Series, target: Target) {
    let median = series.median();
    let judged = match target {
        Target::AtLeast(wanted) if median >= wanted => format!("target ≥ {wanted}: reached"),
        Target::AtLeast(wanted) => format!("target ≥ {wanted}: target missed"),
        Target::AtMost(wanted) if median <= wanted => format!("target ≤ {wanted}: reached"),
        Target::AtMost(wanted) => format!("target ≤ {wanted}: target missed"),
        Target::None => String::new(),
    };
    figure(what, &format!("× {judged}"), series);
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    out.push(' ');
                }
                out.push(digit);
            }
            out
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// How long it takes.
pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begin = Instant::now();
    let out = work();
    (begin.elapsed(), out)
}

/// Counts changes and lets the optimiser drop none of them.
#[derive(Debug, Default)]
pub struct Counter {
    pub transactions: u64,
    pub changes: u64,
}

impl ChangeSink<std::convert::Infallible> for Counter {
    fn begin(&mut self, _: &TxSpan) -> Result<(), std::convert::Infallible> {
        self.transactions += 1;
        Ok(())
    }
    fn schema(&mut self, change: SchemaChange) -> Result<(), std::convert::Infallible> {
        std::hint::black_box(change);
        Ok(())
    }
    fn change(&mut self, change: RowChange) -> Result<(), std::convert::Infallible> {
        self.changes += 1;
        std::hint::black_box(&change);
        Ok(())
    }
    /// Looks at every value, as whoever wants the row would.
    fn row(&mut self, row: ChangedRow<'_>) -> Result<(), std::convert::Infallible> {
        self.changes += 1;
        for value in row.before.iter().chain(&row.after).flat_map(RowView::iter) {
            std::hint::black_box(value);
        }
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
}
