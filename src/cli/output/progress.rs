//! A bar for who waits at a terminal; elsewhere a line once a second.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::node::{SnapshotProgress, SnapshotStep, TellSnapshot, tell_log};

/// How often the bar is drawn.
const DRAWS_PER_SECOND: u8 = 10;
/// How often its clock goes on while nothing is heard.
const TICK: Duration = Duration::from_millis(200);
/// Bytes, their speed, and the time that is left.
const TEMPLATE: &str = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// A bar on stderr. Nothing of it stays when it is dropped.
#[derive(Debug)]
pub(in crate::cli) struct Bar(Option<ProgressBar>);

impl Bar {
    /// A bar, if stderr is a terminal.
    pub(in crate::cli) fn new() -> Bar {
        if !std::io::stderr().is_terminal() {
            return Bar(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
        bar.set_message("waiting for a snapshot");
        bar.enable_steady_tick(TICK);
        Bar(Some(bar))
    }

    /// What moves it.
    pub(in crate::cli) fn tell(&self) -> TellSnapshot {
        let Some(bar) = self.0.clone() else { return tell_log() };
        // A template of ours is a good one: a test reads it.
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        std::sync::Arc::new(move |SnapshotProgress { step, done_bytes, total_bytes }| {
            if bar.length() != Some(total_bytes) {
                bar.set_style(style.clone());
                bar.set_length(total_bytes);
            }
            bar.set_message(match step {
                SnapshotStep::Store => "making the snapshot",
                SnapshotStep::Fetch => "fetching the snapshot",
                SnapshotStep::Check => "checking the database",
            });
            bar.set_position(done_bytes);
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_a_style() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
