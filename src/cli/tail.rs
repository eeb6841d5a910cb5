//! `tail`: the row changes of a live database as they are committed.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::args::TailArgs;
use super::config::row_filters;
use super::exit::Failure;
use super::inspect::{Follow, beside, follow};
use super::output::{Filtered, RowWriter, SchemaObject, Style, printable};
use crate::capture::{CaptureError, FollowError, Follower, HANDOVER_INTERVAL, IDLE_INTERVAL, WakeUps};
use crate::schema::{Catalogue, RowFilters, TableFilter};

/// How long a database that nobody can read is waited for: longer than an application's last close takes, and not so long that people
/// wonder.
const ATTACH_WITHIN: Duration = Duration::from_secs(3);
/// What a shell reports for a program that SIGINT ended: the second signal ends us where we stand.
const EXIT_INTERRUPTED: i32 = 130;

/// Prints changes until SIGINT or SIGTERM, or until nobody reads the output any more.
///
/// # Errors
/// [`CaptureError`] as a failure with its hint; failures of the output.
pub(super) fn tail(args: &TailArgs) -> Result<(), Failure> {
    if let (true, Some(state_dir)) = (args.once, &args.state_dir) {
        return super::tail_once::tail_once(args, state_dir);
    }
    let rows = row_filters(&args.rows)?;
    let stop = stop_signal()?;
    if args.raw {
        let what = Follow {
            database: Some(&args.database),
            wal: beside(&args.database),
            format: args.format,
            filter: TableFilter::new(&args.tables, &args.exclude_tables),
            rows,
            from_start: false,
        };
        return follow(&what, &mut io::stdout().lock(), Style::of_stdout(), &stop);
    }
    let mut follower = attach(&args.database, &stop)?;
    let mut wake_ups = WakeUps::new(&follower)?;
    for damage in follower.damage() {
        note(format_args!("a tree of the database cannot be read: {}", Failure::of(damage).message));
    }
    note(format_args!("following {} (Ctrl-C ends)", follower.file().path().display()));

    let mut sink = match fitting(&rows, follower.catalogue()) {
        Ok(()) => sink(args, rows, &follower),
        Err(failure) => {
            follower.detach()?;
            return Err(failure);
        }
    };
    let mut is_locked_out = false;
    let mut follow = || -> Result<(), FollowError<io::Error>> {
        loop {
            // Asked before the look: what was committed before the signal is still shown.
            let stopping = stop.load(Ordering::Relaxed);
            let polled = follower.poll(&mut sink).and_then(|polled| follower.maintain(&mut sink).map(|()| polled));
            let polled = match polled {
                Err(FollowError::Capture(error @ CaptureError::Locked { .. })) if !stopping => {
                    if !std::mem::replace(&mut is_locked_out, true) {
                        note(format_args!("{error}: waiting for it"));
                    }
                    continue;
                }
                polled => polled?,
            };
            is_locked_out = false;
            if stopping && !polled.more {
                return Ok(());
            }
            if !polled.more {
                let idle = if follower.is_resting() { IDLE_INTERVAL } else { HANDOVER_INTERVAL };
                if wake_ups.wait_after(&follower, idle) {
                    follower.await_commit()?;
                }
            }
        }
    };
    let followed = follow();
    // Also after an error: whatever happened, the database is left as one that nobody follows.
    let detached = follower.detach();
    followed?;
    Ok(detached?)
}

/// Attaches as soon as nobody keeps everybody else from reading, which passes unless an application means it.
fn attach(database: &Path, stop: &AtomicBool) -> Result<Follower, CaptureError> {
    let began = Instant::now();
    loop {
        match Follower::attach(database) {
            Err(CaptureError::Locked { .. }) if began.elapsed() < ATTACH_WITHIN && !stop.load(Ordering::Relaxed) => {}
            attached => return attached,
        }
    }
}

/// Refuses filters that do not fit the tables that there are. A table may come later.
pub(super) fn fitting(rows: &RowFilters, catalogue: &Catalogue) -> Result<(), Failure> {
    let mut filtered = rows.iter().filter_map(|row| catalogue.written_table(&row.table));
    let fits = filtered.try_for_each(|table| rows.test(table).map(drop));
    fits.map_err(|error| Failure::usage(&error).hint(error.hint()))
}

/// Where the changes of a follower go.
pub(super) fn sink(
    args: &TailArgs,
    rows: RowFilters,
    follower: &Follower,
) -> Filtered<RowWriter<io::StdoutLock<'static>>> {
    let objects = follower.catalogue().rows().iter().filter_map(SchemaObject::of).collect();
    let encoding = follower.header().encoding;
    let writer = RowWriter::new(args.format, io::stdout().lock(), Style::of_stdout(), encoding, objects);
    Filtered::new(writer, TableFilter::new(&args.tables, &args.exclude_tables), rows)
}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Failure {
        let hint = error.hint();
        Failure::of(&error).hint(hint)
    }
}

impl From<FollowError<io::Error>> for Failure {
    fn from(error: FollowError<io::Error>) -> Failure {
        match error {
            FollowError::Capture(error) => error.into(),
            FollowError::Sink(error) => Failure::output(&error),
        }
    }
}

pub(super) fn note(text: std::fmt::Arguments<'_>) {
    // With stderr gone there is nobody left to tell.
    let _ = io::stderr().write_all(format!("{}\n", printable(&text.to_string())).as_bytes());
}

/// Becomes true with the first SIGINT or SIGTERM. The second ends the process at once: someone is in a hurry, or the output is stuck.
pub(super) fn stop_signal() -> Result<Arc<AtomicBool>, Failure> {
    wait_for_signals().map_err(|error| Failure::failed(format_args!("cannot wait for signals: {error}")))
}

fn wait_for_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    // Registered here and not in the thread: from now on no signal is lost.
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = async move {
        loop {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if seen.swap(true, Ordering::Relaxed) {
                std::process::exit(EXIT_INTERRUPTED);
            }
        }
    };
    // Ends with the process.
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(wait))?;
    Ok(stop)
}
