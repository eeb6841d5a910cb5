//! `--page N`: what is on one page, as it stands in the file or in a frame.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::{Value as Json, json};

use super::files::Files;
use super::rows::State;
use crate::change::{Differ, PageSource};
use crate::cli::Failure;
use crate::cli::args::Format;
use crate::cli::output::{Style, printable, value_json};
use crate::format::{BtreePage, Cell, DATABASE_HEADER_BYTES, FrameNo, PageKind, PageNo, Record, TextEncoding};
use crate::schema::Table;

/// Bytes of a payload that are put together to show its values: what a person reads, and not more than memory.
const SHOWN_PAYLOAD_MAX: u64 = 64 << 20;
/// Bytes of a page that is no b-tree page that are shown.
const SHOWN_BYTES_MAX: usize = 64;

/// Shows the page.
///
/// # Errors
/// A page or frame that is not there, or that cannot be read.
pub(super) fn show(
    files: &Files,
    number: u32,
    frame: Option<u32>,
    format: Format,
    out: &mut dyn Write,
    style: Style,
) -> Result<(), Failure> {
    if format == Format::Sql {
        return Err(Failure::usage("a page has no form in SQL").hint("use --format pretty or json"));
    }
    let last = State::last(files);
    let page = PageNo::new(number)
        .ok_or_else(|| Failure::usage("pages count from 1").hint("--page 1 is the one with the header"))?;
    let (from, bytes) = read(files, page, frame)?;
    let structure = Differ::open(&last).ok();
    let view = View { page, bytes: &bytes, structure: structure.as_ref(), last: &last };
    let shown = view.describe(from);
    let written = if format == Format::Json { writeln!(out, "{shown}") } else { pretty(&shown, out, style) };
    written.and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}

/// The page's bytes, and the frame that they are in (0: the database file).
fn read(files: &Files, page: PageNo, frame: Option<u32>) -> Result<(u32, Vec<u8>), Failure> {
    let unreadable = |error: io::Error| Failure::failed(format_args!("page {page} cannot be read: {error}"));
    let frame = match frame {
        Some(wanted) => files.frame_by(page, FrameNo(wanted)).map_err(unreadable)?,
        None => files.commits().last().and_then(|commit| files.frame_at(page, commit.last)),
    };
    if let Some(frame) = frame {
        return files.read_frame(frame).map(|bytes| (frame.0, bytes)).map_err(unreadable);
    }
    match files.read_file(page).map_err(unreadable)? {
        Some(bytes) => Ok((0, bytes)),
        None => Err(Failure::failed(format_args!("there is no page {page} in the files as they are there"))
            .hint("--view frames lists the pages of the WAL, the summary says how many the database has")),
    }
}

struct View<'v> {
    page: PageNo,
    bytes: &'v [u8],
    /// The database as it is after the last commit, where it can be understood.
    structure: Option<&'v Differ>,
    last: &'v State<'v>,
}

impl View<'_> {
    fn describe(&self, frame: u32) -> Json {
        let mut shown = json!({ "page": self.page.get(), "frame": frame });
        let usable = self.structure.map_or(self.bytes.len(), |structure| structure.header().usable());
        let free = self.structure.map(|structure| freelist(structure, self.last));
        let (kind, rest) = match self.structure {
            Some(structure) if structure.is_map_or_lock(self.last, self.page) => self.map_or_lock(usable),
            _ if free.as_ref().is_some_and(|(trunks, _)| trunks.contains(&self.page)) => {
                ("freelist trunk", self.trunk())
            }
            _ if free.as_ref().is_some_and(|(_, leaves)| leaves.contains(&self.page)) => ("freelist leaf", json!({})),
            _ => match BtreePage::parse(self.page, self.bytes, usable) {
                Ok(page) => self.btree(&page),
                Err(damage) => ("no b-tree page", self.other(&damage.to_string())),
            },
        };
        let owner = self.structure.and_then(|structure| structure.object_of(self.page));
        let object = owner.map(|(kind, name, _)| json!({ "type": kind, "name": name }));
        if let (Some(shown), Json::Object(rest)) = (shown.as_object_mut(), rest) {
            shown.insert("kind".to_owned(), json!(kind));
            shown.insert("object".to_owned(), json!(object));
            shown.extend(rest);
        }
        shown
    }

    fn u16_at(&self, offset: usize) -> u16 {
        self.bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_be_bytes(*bytes))
    }

    fn u32_at(&self, offset: usize) -> u32 {
        self.bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    fn map_or_lock(&self, usable: usize) -> (&'static str, Json) {
        let is_lock = u64::from(self.page.get() - 1) * self.bytes.len() as u64 == 0x4000_0000;
        if is_lock {
            return ("lock bytes", json!({}));
        }
        let kinds =
            ["b-tree root", "free", "first overflow page of a cell", "overflow page", "b-tree page below a root"];
        let entries = (0..usable / 5).filter_map(|index| {
            let kind = *self.bytes.get(index * 5)?;
            let what = kinds.get(usize::from(kind).checked_sub(1)?)?;
            let page = self.page.get().saturating_add(index as u32 + 1);
            Some(json!({ "page": page, "kind": what, "parent": self.u32_at(index * 5 + 1) }))
        });
        ("pointer map", json!({ "entries": entries.collect::<Vec<_>>() }))
    }

    fn trunk(&self) -> Json {
        let count = (self.u32_at(4) as usize).min(self.bytes.len() / 4);
        let leaves: Vec<u32> = (0..count).map(|index| self.u32_at(8 + index * 4)).collect();
        json!({ "next_trunk": self.u32_at(0), "leaves": leaves })
    }

    /// An overflow page, or damage: its first word would be the next page of the chain.
    fn other(&self, why: &str) -> Json {
        let next = self.u32_at(0);
        let text: String = self.bytes.iter().take(SHOWN_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect();
        json!({
            "damage": why,
            "next_overflow": (next <= self.last.page_count()).then_some(next),
            "first_bytes": text,
        })
    }

    fn btree(&self, page: &BtreePage<'_>) -> (&'static str, Json) {
        let header = if self.page == PageNo::ONE { DATABASE_HEADER_BYTES } else { 0 };
        let kind = match page.kind() {
            PageKind::InteriorIndex => "index interior",
            PageKind::InteriorTable => "table interior",
            PageKind::LeafIndex => "index leaf",
            PageKind::LeafTable => "table leaf",
        };
        let (freeblocks, block_damage) = self.freeblocks(header);
        let content = match self.u16_at(header + 5) {
            0 => 65_536,
            offset => u32::from(offset),
        };
        let cells: Vec<Json> = (0..page.cell_count()).map(|index| self.cell(page, index)).collect();
        let free = freeblocks.iter().map(|(_, size)| usize::from(*size)).sum::<usize>()
            + usize::from(self.bytes.get(header + 7).copied().unwrap_or(0))
            + (content as usize).saturating_sub(page.content_offset());
        let mut shown = json!({
            "cell_count": page.cell_count(),
            "content_start": content,
            "free_bytes": free,
            "fragmented_bytes": self.bytes.get(header + 7),
            "freeblocks": freeblocks.iter().map(|(offset, size)| json!({ "offset": offset, "bytes": size })).collect::<Vec<_>>(),
            "cells": cells,
        });
        if let Some(shown) = shown.as_object_mut() {
            if page.kind().is_interior() {
                shown.insert("right_child".to_owned(), json!(self.u32_at(header + 8)));
            }
            if let Some(damage) = block_damage {
                shown.insert("damage".to_owned(), json!(damage));
            }
        }
        (kind, shown)
    }

    /// Free blocks, each with its offset and bytes. They ascend, which also ends a chain that goes round.
    fn freeblocks(&self, header: usize) -> (Vec<(u16, u16)>, Option<String>) {
        let mut found = Vec::new();
        let mut offset = self.u16_at(header + 1);
        while offset != 0 {
            let is_behind = found.last().is_none_or(|(last, _)| *last < offset);
            if !is_behind || usize::from(offset) + 4 > self.bytes.len() {
                return (found, Some(format!("the list of free blocks leads to {offset}")));
            }
            found.push((offset, self.u16_at(usize::from(offset) + 2)));
            offset = self.u16_at(usize::from(offset));
        }
        (found, None)
    }

    fn cell(&self, page: &BtreePage<'_>, index: usize) -> Json {
        let offset = page.pointers().get(index).map(|pointer| u16::from_be_bytes(*pointer));
        let mut shown = json!({ "cell": index, "offset": offset });
        let Some(members) = shown.as_object_mut() else { return shown };
        let cell = match page.cell(index) {
            Ok(cell) => cell,
            Err(damage) => {
                members.insert("damage".to_owned(), json!(damage.to_string()));
                return shown;
            }
        };
        if let Some(child) = cell.left_child {
            members.insert("left_child".to_owned(), json!(child.get()));
        }
        if let Some(rowid) = cell.rowid {
            members.insert("rowid".to_owned(), json!(rowid));
        }
        if page.kind() == PageKind::InteriorTable {
            return shown;
        }
        members.insert("payload_bytes".to_owned(), json!(cell.payload_bytes));
        let (payload, chain, damage) = self.payload(&cell);
        if cell.overflow.is_some() {
            let pages: Vec<u32> = chain.iter().map(|page| page.get()).collect();
            members.insert("overflow".to_owned(), json!(pages));
        }
        let (values, wrong) = self.values(&payload, cell.rowid);
        members.insert("values".to_owned(), values);
        if let Some(damage) = damage.or(wrong) {
            members.insert("damage".to_owned(), json!(damage));
        }
        shown
    }

    /// The payload with what is known of it, and the pages that it goes on in as they are after the last commit.
    fn payload(&self, cell: &Cell<'_>) -> (Vec<u8>, Vec<PageNo>, Option<String>) {
        let local = || (cell.local.to_vec(), cell.overflow.into_iter().collect::<Vec<_>>());
        let whole = match self.structure {
            Some(_) if cell.overflow.is_none() => return (cell.local.to_vec(), Vec::new(), None),
            Some(_) if cell.payload_bytes > SHOWN_PAYLOAD_MAX => Err("too long to be shown".to_owned()),
            Some(structure) => {
                structure.payload(self.last, self.page, cell).map_err(|error| Failure::of(&error).message)
            }
            None => Err("the pages behind it are not known".to_owned()),
        };
        match whole {
            Ok((payload, chain)) => (payload, chain, None),
            Err(damage) => {
                let (payload, chain) = local();
                (payload, chain, Some(damage))
            }
        }
    }

    /// The values of a record: by column where the page's table is known, else in their order.
    fn values(&self, payload: &[u8], rowid: Option<i64>) -> (Json, Option<String>) {
        let encoding = self.structure.map_or(TextEncoding::Utf8, |structure| structure.header().encoding);
        let table = self.structure.and_then(|structure| structure.object_of(self.page)).and_then(|(_, _, table)| table);
        if let Some(row) = table.and_then(|table| table.decode_row(payload, rowid, encoding).ok()) {
            let columns = table.map_or(&[][..], |table: &std::sync::Arc<Table>| table.columns.as_slice());
            let pairs = columns.iter().zip(&row).map(|(column, value)| (column.name.clone(), value_json(value)));
            return (Json::Object(pairs.collect()), None);
        }
        let mut values = Vec::new();
        let mut wrong = None;
        match Record::new(payload, encoding) {
            Ok(record) => {
                for value in record {
                    match value {
                        Ok(value) => values.push(value_json(&value)),
                        Err(error) => wrong = Some(error.to_string()),
                    }
                }
            }
            Err(error) => wrong = Some(error.to_string()),
        }
        (Json::Array(values), wrong)
    }
}

/// The trunks and the leaves of the freelist, as far as it can be followed.
fn freelist(structure: &Differ, source: &State<'_>) -> (BTreeSet<PageNo>, BTreeSet<PageNo>) {
    let (mut trunks, mut leaves) = (BTreeSet::new(), BTreeSet::new());
    let mut next = structure.header().freelist_trunk;
    // Ends because no trunk is taken twice.
    while let Some(trunk) = next.filter(|trunk| trunks.insert(*trunk)) {
        let Ok(bytes) = source.page(trunk) else { break };
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
        next = words.next().and_then(PageNo::new);
        let count = words.next().unwrap_or(0) as usize;
        leaves.extend(words.take(count).filter_map(PageNo::new));
    }
    (trunks, leaves)
}

fn pretty(shown: &Json, out: &mut dyn Write, style: Style) -> io::Result<()> {
    let text = |value: &Json| match value {
        Json::String(text) => printable(text),
        other => printable(&other.to_string()),
    };
    let frame = match shown.get("frame").and_then(Json::as_u64) {
        Some(0) | None => "in the database file".to_owned(),
        Some(frame) => format!("in frame {frame}"),
    };
    let kind = shown.get("kind").map(&text).unwrap_or_default();
    let object = shown.get("object").filter(|object| object.is_object()).map_or_else(String::new, |object| {
        let part = |name: &str| object.get(name).map(&text).unwrap_or_default();
        format!(" of {} {}", part("type"), part("name"))
    });
    let number = shown.get("page").map(&text).unwrap_or_default();
    writeln!(out, "{}", style.bold(&format!("page {number}, {frame}: {kind}{object}")))?;
    for (name, value) in shown.as_object().into_iter().flatten() {
        match value {
            _ if ["page", "frame", "kind", "object"].contains(&name.as_str()) => {}
            Json::Array(items) if items.iter().any(Json::is_object) => {
                writeln!(out, "  {}", style.faint(&format!("{}: {}", name.replace('_', " "), items.len())))?;
                for item in items {
                    let parts = item.as_object().into_iter().flatten().map(|(name, value)| {
                        let line = format!("{} {}", name.replace('_', " "), text(value));
                        if name == "damage" { style.red(&line) } else { line }
                    });
                    writeln!(out, "    {}", parts.collect::<Vec<_>>().join("  "))?;
                }
            }
            value if name == "damage" => writeln!(out, "  {}", style.red(&text(value)))?,
            value => writeln!(out, "  {} {}", style.faint(&format!("{:<16}", name.replace('_', " "))), text(value))?,
        }
    }
    Ok(())
}
