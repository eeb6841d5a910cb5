//! `subscribe`: what is on the log, decoded, from its first message on and then as it comes.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::args::ReportFormat;
use super::config::LogAddress;
use super::exit::Failure;
use super::output::{Style, UnitPlace, unit_json, unit_pretty};
use crate::log::{
    Arrived, Assembler, Delivery, Log, LogError, MESSAGE_BYTES_MAX, Origin, ShardId, StreamOptions, consume,
};
use crate::node::connect_log;

/// Messages that wait for the output.
const MESSAGES_WAITING_MAX: usize = 64;

/// Prints the units of all shards until interrupted, or until nobody reads the output.
///
/// # Errors
/// [`Failure`] when the server or a stream cannot be reached, or a message cannot be decoded.
pub(super) fn subscribe(address: &LogAddress, format: ReportFormat) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format_args!("cannot start: {error}")))?;
    let printed = runtime.block_on(async {
        tokio::select! {
            printed = print(address, format) => printed,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    });
    runtime.shutdown_background();
    printed
}

async fn print(address: &LogAddress, format: ReportFormat) -> Result<(), Failure> {
    let streams = StreamOptions {
        stream_prefix: address.stream_prefix.clone(),
        subject_prefix: address.subject_prefix.clone(),
        shard_count: address.shards,
        ..StreamOptions::default()
    };
    let log: Arc<dyn Log> = Arc::new(connect_log(&address.nats, streams, 0).await?);
    let (sender, mut deliveries) = mpsc::channel(MESSAGES_WAITING_MAX);
    let mut tasks = JoinSet::new();
    for shard in (1..=address.shards).map(ShardId) {
        let first = log.bounds(shard).await.map_err(failure)?.first;
        tasks.spawn(consume(Arc::clone(&log), shard, first, sender.clone()));
    }
    drop(sender);
    let mut shown = Shown::new(format);
    while let Some(delivery) = deliveries.recv().await {
        match delivery {
            Delivery::Arrived(message) => shown.show(message)?,
            Delivery::Failed { error, .. } => return Err(failure(error)),
        }
        if deliveries.is_empty() {
            shown.flush()?;
        }
    }
    Ok(())
}

fn failure(error: LogError) -> Failure {
    let hint = error.hint();
    Failure::of(&error).hint(hint)
}

/// What was shown so far, and where it goes.
struct Shown {
    format: ReportFormat,
    out: io::BufWriter<io::Stdout>,
    style: Style,
    assemblers: HashMap<ShardId, Assembler>,
    last: HashMap<(ShardId, Origin), u64>,
}

impl Shown {
    fn new(format: ReportFormat) -> Shown {
        let out = io::BufWriter::new(io::stdout());
        Shown { format, out, style: Style::of_stdout(), assemblers: HashMap::new(), last: HashMap::new() }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| Failure::output(&error))
    }

    fn show(&mut self, message: Arrived) -> Result<(), Failure> {
        let Arrived { shard, seq, batch, .. } = message;
        let origin = batch.header.origin;
        let last = self.last.entry((shard, origin)).or_default();
        if batch.header.batch_no <= *last {
            return Ok(());
        }
        *last = batch.header.batch_no;
        let assembler = self.assemblers.entry(shard).or_insert_with(|| Assembler::new(MESSAGE_BYTES_MAX));
        let joined = match assembler.push(batch) {
            Ok(joined) => joined,
            Err(error) => {
                // The log begins in the middle of a unit: its rest cannot be shown.
                assembler.forget(origin);
                return writeln!(io::stderr(), "shard {}: {error}; passed over", shard.0)
                    .map_err(|error| Failure::output(&error));
            }
        };
        let Some((header, units)) = joined else { return Ok(()) };
        let place = UnitPlace { node_id: header.origin.node_id, shard: shard.0, seq: seq.0 };
        let mut text = Vec::new();
        for unit in &units {
            match self.format {
                ReportFormat::Json => unit_json(&mut text, &place, unit),
                ReportFormat::Pretty => unit_pretty(&mut text, &place, unit, self.style),
            }
        }
        self.out.write_all(&text).map_err(|error| Failure::output(&error))
    }
}
