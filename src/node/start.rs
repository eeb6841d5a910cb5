//! From a configuration to a database thread that is ready to run.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::attached::Attached;
use super::config::{Conflict, RunConfig};
use super::database::{Database, Links};
use super::error::NodeError;
use super::patience::patiently;
use super::place::Seen;
use super::sent::Sent;
use super::snapshot::{clear_work_directory, refuse_interrupted};
use super::state_dir::StateDirectory;
use crate::apply::{KEPT_TO_ITSELF, Merge, Replica, Route, State, TableFilter, route_by_hash};
use crate::capture::{DatabaseFile, POSITION_BYTES, Position};
use crate::log::{Origin, ShardId, StreamSeq};

/// What the network side needs to know of the state.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) origin: Origin,
    /// The last message applied in each shard.
    pub(super) applied: Vec<(ShardId, StreamSeq)>,
    /// What was seen of each shard when that was applied; of none where others' messages are passed over.
    pub(super) seen: Vec<Seen>,
    /// The node has been part of the log before: what the log has lost since is in snapshots.
    pub(super) joined: bool,
}

/// The setting that a node stores once it has found the log complete, or begins with as the log's own copy.
const JOINED: &str = "joined";

/// The setting that keeps the filters that the state was begun with, and the one of a state that may begin with any.
pub(super) const WHERE: &str = "where";
pub(super) const WHERE_OPEN: &str = "where_open";

/// The setting that keeps the tables that the node became part of the log with.
const TABLES: &str = "tables";
/// The setting of a state that passed over what others wrote.
pub(super) const PASSED_OVER: &str = "passed_over";

/// The tables that take part, as options.
fn tables_shown(config: &RunConfig) -> String {
    let globs = |option: &str, list: &[String]| {
        let all: BTreeSet<String> =
            list.iter().map(|glob| format!("{option} '{}'", glob.to_ascii_lowercase())).collect();
        all.into_iter().collect::<Vec<_>>().join(" ")
    };
    let all = [globs("--tables", &config.tables), globs("--exclude-tables", &config.exclude_tables)];
    let all = all.join(" ").trim().to_owned();
    if all.is_empty() { "all tables".to_owned() } else { all }
}

/// Refuses other tables than those that the node was part of the log with: what happened to the others was neither sent nor taken.
fn refuse_other_tables(state: &State, config: &RunConfig) -> Result<(), NodeError> {
    if !state.has_setting(TABLES)? {
        return Ok(());
    }
    let wanted = tables_shown(config);
    let found = String::from_utf8_lossy(&state.setting_or(TABLES, b"")?).into_owned();
    if found == wanted {
        return Ok(());
    }
    Err(NodeError::OtherFilters { path: config.state_dir.clone(), found, wanted })
}

/// Notes that the node has become part of the log, with these tables.
pub(super) fn note_joined(state: &State, config: &RunConfig) -> Result<(), NodeError> {
    state.setting_or(TABLES, tables_shown(config).as_bytes())?;
    state.setting_or(JOINED, b"")?;
    Ok(())
}

/// Refuses to go on with both directions where one was left out: what was not taken then would never be, nor what was not sent.
fn refuse_left_out(state: &State, config: &RunConfig) -> Result<(), NodeError> {
    let left_out = match () {
        () if config.apply_changes && state.has_setting(PASSED_OVER)? => "--no-apply, and others wrote meanwhile",
        () if config.publish && state.has_setting(KEPT_TO_ITSELF)? => "--no-publish, and was written to here meanwhile",
        () => return Ok(()),
    };
    Err(NodeError::LeftOut { path: config.state_dir.clone(), left_out })
}

/// Says which filters and globs are about no table: a slip of the pen lets everything through, or nothing.
fn warn_of_nobody(attached: &Attached, config: &RunConfig) {
    let tables = || attached.follower.catalogue().tables().filter(|table| !table.is_internal());
    for filter in config.row_filters.iter() {
        if !tables().any(|table| table.name.eq_ignore_ascii_case(&filter.table)) {
            tracing::warn!(
                "where {:?}: there is no table {} (yet): nothing is left out by it",
                filter.text(),
                filter.table
            );
        }
    }
    for (option, glob) in config
        .tables
        .iter()
        .map(|glob| ("--tables", glob))
        .chain(config.exclude_tables.iter().map(|glob| ("--exclude-tables", glob)))
    {
        let filter = TableFilter::new(std::slice::from_ref(glob), &[] as &[String]);
        if !tables().any(|table| filter.matches(&table.name)) {
            tracing::warn!("{option} {glob:?}: there is no such table (yet)");
        }
    }
}

/// Whether a state has not begun with any filters yet, nor with none.
fn is_open_to_filters(state: &State) -> Result<bool, NodeError> {
    let is_new = state.capture_position()?.is_empty() || state.has_setting(WHERE_OPEN)?;
    Ok(is_new && !state.has_setting(WHERE)?)
}

/// Refuses filters that are not those that the state was begun with: rows that were outside of them were not kept, and rows that are
/// outside of the new ones would look like the application's own.
fn refuse_other_filters(state: &State, config: &RunConfig) -> Result<(), NodeError> {
    let wanted = config.row_filters.text();
    if is_open_to_filters(state)? {
        return Ok(());
    }
    let found = String::from_utf8_lossy(&state.setting_or(WHERE, b"")?).into_owned();
    if found == wanted {
        return Ok(());
    }
    let shown = |text: String| if text.is_empty() { "no filter".to_owned() } else { text };
    Err(NodeError::OtherFilters { path: config.state_dir.clone(), found: shown(found), wanted: shown(wanted) })
}

/// The capture position as `state.db` keeps it: the position, then the number of the next transaction.
pub(super) fn position_bytes(position: &Position, next_tx: u64) -> Vec<u8> {
    let mut bytes = position.to_bytes().to_vec();
    bytes.extend_from_slice(&next_tx.to_be_bytes());
    bytes
}

/// The capture position of the state, and the number of the next transaction.
///
/// # Errors
/// When `state.db` fails.
pub(super) fn stored_position(state: &State) -> Result<Option<(Position, u64)>, NodeError> {
    Ok(position_of(&state.capture_position()?))
}

pub(super) fn position_of(bytes: &[u8]) -> Option<(Position, u64)> {
    let (position, next_tx) = bytes.split_at_checked(POSITION_BYTES)?;
    Some((Position::from_bytes(position)?, u64::from_be_bytes(next_tx.try_into().ok()?)))
}

/// Refuses a directory that has a shadow and no state: a node that began anew there would forget what it had not published.
fn refuse_lost_state(directory: &StateDirectory) -> Result<(), NodeError> {
    let path = directory.file("state.db");
    if !directory.file("shadow.journal").exists() {
        return Ok(());
    }
    // All of a young state is in its write-ahead log: without that log the file is one of SQLite's, and holds nothing.
    let is_there = std::fs::metadata(&path).is_ok_and(|found| found.len() > 0);
    if !is_there || State::is_empty(&path)? {
        return Err(NodeError::StateLost { path });
    }
    Ok(())
}

/// Opens database and state. Nothing of ours is made before the database was found fit to be followed.
pub(super) fn open(config: RunConfig, links: Links) -> Result<(Database, Known), NodeError> {
    refuse_interrupted(&config.state_dir)?;
    let file = DatabaseFile::open(&config.db_path)?;
    if config.apply_changes {
        file.must_be_writable()?;
    }
    if !file.claim() {
        return Err(NodeError::AlreadyAttached { path: file.path().to_owned() });
    }
    let directory = StateDirectory::open(&config.state_dir)?;
    clear_work_directory(&config.state_dir);
    let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let random = || RandomState::new().build_hasher().finish();
    let origin = Origin { node_id: config.node_id.unwrap_or_else(random), epoch: random() };
    refuse_lost_state(&directory)?;
    let state = State::open(&directory.file("state.db"), &name, origin)?;
    let path = || config.state_dir.clone();
    let found = state.origin().node_id;
    if let Some(wanted) = config.node_id.filter(|wanted| *wanted != found) {
        return Err(NodeError::OtherNode { path: path(), found, wanted });
    }
    let wanted = config.log.shards;
    let found = state.setting_or("shards", &wanted.to_be_bytes())?;
    let found = found.try_into().map_or(0, u16::from_be_bytes);
    if found != wanted {
        return Err(NodeError::OtherShards { path: path(), found, wanted });
    }

    refuse_other_filters(&state, &config)?;
    refuse_other_tables(&state, &config)?;
    refuse_left_out(&state, &config)?;

    let shards: Vec<ShardId> = (1..=wanted).map(ShardId).collect();
    let mut applied = Vec::with_capacity(shards.len());
    for shard in &shards {
        applied.push((*shard, state.position(*shard)?));
    }
    // States of before this setting are known by what they applied.
    let joined = state.has_setting(JOINED)? || applied.iter().any(|(_, seq)| seq.0 > 0);
    let known = Known { origin: state.origin(), applied, seen: Vec::new(), joined };

    let stored = stored_position(&state)?;
    if stored.is_none() && Sent::is_there(&config.state_dir) {
        // The end of the state's write-ahead log is gone, and the position with it: a new one would pass over what changed since.
        return Err(NodeError::StateLost { path: directory.file("state.db") });
    }
    let from = stored.map(|(position, _)| position).filter(|_| !config.new_shadow);
    let is_new = is_open_to_filters(&state)?;
    let mut attached = patiently(&links.stop, || Attached::open(&config, from, &links.wake, &links.stop))?;
    let misfit = attached.follower.catalogue().tables().find_map(|table| config.row_filters.test(table).err());
    if let Some(misfit) = misfit {
        attached.detach()?;
        return Err(NodeError::Filter(misfit));
    }
    warn_of_nobody(&attached, &config);
    if is_new {
        state.setting_or(WHERE, config.row_filters.text().as_bytes())?;
    }
    if let Some((_, next_tx)) = stored {
        attached.follower.set_next_tx(next_tx);
    }
    if from.is_none() {
        // From here on changes are counted: a node that dies before its first one must come back to this place.
        let (position, next_tx) = (attached.follower.position(), attached.follower.next_tx());
        state.store_capture_position(&position_bytes(&position, next_tx))?;
        if stored.is_some() {
            tracing::warn!("the shadow was made anew: what changed while nobody followed stays on this node alone");
        }
    }

    let filter = TableFilter::new(&config.tables, &config.exclude_tables);
    let route: Route = if config.publish {
        route_by_hash(filter.clone(), wanted)
    } else {
        // Nothing that happens here leaves the machine.
        Box::new(|_, _| None)
    };
    let merge = match config.apply.conflict {
        Conflict::Column => Merge::Column,
        Conflict::Row => Merge::Row,
    };
    let mut replica = Replica::new(state, route, merge)?;
    replica.set_row_filters(config.row_filters.clone())?;
    if config.publish {
        replica.set_schema_travels(wanted, Box::new(move |table| filter.matches(table)));
    }
    let filter = TableFilter::new(&config.tables, &config.exclude_tables);
    replica.set_taken(route_by_hash(filter.clone(), wanted), Box::new(move |table| filter.matches(table)));
    replica.set_send_before(config.log.before_images);
    replica.set_conflicts_max(config.apply.conflict_rows_max);
    replica.set_position_of(Box::new(|span| position_bytes(&Position::from(span), span.tx + 1)));
    let sent = Sent::open(&config.state_dir).map_err(|source| NodeError::StateDirectory {
        path: config.state_dir.clone(),
        what: "cannot open what was sent",
        source,
    })?;
    Ok((Database::new(config, directory, attached, replica, shards, links, sent), known))
}
