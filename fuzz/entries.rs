//! The ways by which bytes from outside come in, one function each: any bytes give an answer or an error.
//!
//! cargo-fuzz calls them with bytes that it makes up (`fuzz_targets`), and `tests/fuzz.rs` with seeds, findings of the past and damaged
//! files.

use std::borrow::Cow;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use woodchuck::change::{ChangeSink, Differ, PageError, PageSource, RowChange, SchemaChange, TxSpan};
use woodchuck::cli::args::{Format, InspectArgs, View};
use woodchuck::cli::inspect::{Files, InspectReport, each_transaction, inspect as inspect_command};
use woodchuck::cli::output::Style;
use woodchuck::format::{
    BtreePage, Checksum, DatabaseHeader, FRAME_HEADER_BYTES, FrameScan, PageNo, Record, Salts, TextEncoding,
    WAL_HEADER_BYTES, WalHeader, local_payload_bytes,
};
use woodchuck::log::{MESSAGE_BYTES_MAX, decode, decode_header, decode_units, encode};
use woodchuck::schema::{Catalogue, SchemaRow, TableFilter, Tokens, VirtualTable, unquote};

/// An entry point by name.
pub type Entry = (&'static str, fn(&[u8]));

/// All of them.
pub const ENTRIES: [Entry; 7] = [
    ("wal", wal),
    ("page", page),
    ("record", record),
    ("schema", schema),
    ("envelope", envelope),
    ("inspect", inspect),
    ("differ", differ),
];

/// The largest message that is decoded here: small, so that a bomb goes off.
const MESSAGE_BYTES: usize = 1 << 20;

/// Frames of a WAL, from its header on.
pub fn wal(data: &[u8]) {
    let mended = mend(data);
    for bytes in [data, &mended] {
        let Ok(header) = WalHeader::parse(bytes) else { continue };
        let mut scan = FrameScan::new(header);
        loop {
            let no = scan.next_frame();
            let Some(frame) = bytes.get(usize::try_from(header.frame_offset(no)).unwrap_or(usize::MAX)..) else {
                break;
            };
            if scan.step(frame).is_err() {
                break;
            }
            assert_eq!(scan.next_frame().0, no.0 + 1, "a frame that is taken is one");
        }
    }
}

/// A page: one byte that says how much of it is reserved and which page it is, then the page.
pub fn page(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let usable = bytes.len().saturating_sub(usize::from(first >> 1));
    let no = if first & 1 == 1 { PageNo::ONE } else { PageNo::new(2).unwrap_or(PageNo::ONE) };
    let Ok(page) = BtreePage::parse(no, bytes, usable) else { return };
    let children = page.children().take(usable).filter(Result::is_ok).count();
    assert!(children <= page.cell_count() + 1);
    for index in 0..page.cell_count() {
        let Ok(cell) = page.cell(index) else { continue };
        assert!(cell.local.len() as u64 <= cell.payload_bytes);
        assert_eq!(cell.overflow.is_some(), (cell.local.len() as u64) < cell.payload_bytes);
        if !cell.local.is_empty() {
            let local = local_payload_bytes(page.kind(), usable, cell.payload_bytes);
            assert_eq!(local, Some(cell.local.len()));
        }
        record(cell.local);
    }
}

/// A record in each of the three encodings.
pub fn record(data: &[u8]) {
    for encoding in [TextEncoding::Utf8, TextEncoding::Utf16Le, TextEncoding::Utf16Be] {
        let Ok(record) = Record::new(data, encoding) else { continue };
        assert!(record.count() <= data.len(), "a value has at least its type's byte");
    }
}

/// Rows of `sqlite_schema`: statements, with a NUL between two. The first character says what a row is.
pub fn schema(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut rows = Vec::new();
    for (index, sql) in text.split('\0').enumerate().take(16) {
        for (_, token) in Tokens::new(sql) {
            let _ = unquote(token);
        }
        let _ = TableFilter::new(&[sql], &[] as &[&str]).matches("name");
        let name = Tokens::new(sql).nth(2).map_or_else(|| format!("t{index}"), |(_, token)| unquote(token));
        let kind =
            ["table", "index", "trigger", "view"].into_iter().find(|kind| sql.to_ascii_lowercase().contains(kind));
        let kind = kind.unwrap_or("table").to_owned();
        let is_virtual = VirtualTable::parse(&name, sql).is_some();
        let root = if is_virtual { None } else { PageNo::new(index as u32 + 2) };
        let root = root.filter(|_| kind == "table" || kind == "index");
        rows.push(SchemaRow { kind, table: name.clone(), name, root, sql: Some(sql.to_owned()) });
    }
    let Ok(catalogue) = Catalogue::build(rows, 3_054_001) else { return };
    for table in catalogue.tables() {
        assert!(table.record_columns.len() <= table.columns.len() + 1);
        let _ = table.decode_row(&[2, 1, 7], Some(1), TextEncoding::Utf8);
    }
}

/// A message of the log, and the units of one.
pub fn envelope(data: &[u8]) {
    let header = decode_header(data, MESSAGE_BYTES);
    if let Ok(decoded) = decode(data, MESSAGE_BYTES) {
        assert_eq!(header.as_ref(), Ok(&decoded.header), "both ways of decoding agree");
        assert_eq!(
            decode(&encode(&decoded, false), MESSAGE_BYTES_MAX),
            Ok(decoded),
            "what is decoded can be told again"
        );
    }
    let _ = decode_units(data);
}

/// A database and its WAL, through every view of `inspect`. See [`two`] for how both stand in the bytes.
pub fn inspect(data: &[u8]) {
    let Some((database, wal)) = two(data) else { return };
    let Ok(dir) = tempfile::tempdir() else { return };
    let write = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        let _ = std::fs::write(&path, bytes);
        path
    };
    let (database_path, wal_path) = (write("db", database), write("db-wal", &mend(wal)));
    let both = (!database.is_empty()).then_some(database_path.as_path());
    let Ok(files) = Files::open(both, Some(&wal_path)) else { return };
    let _ = InspectReport::new(&files, &TableFilter::default());
    let _ = each_transaction(&files, &mut Counted::default());
    drop(files);
    for (view, format) in [
        (View::Summary, Format::Json),
        (View::Frames, Format::Pretty),
        (View::Transactions, Format::Json),
        (View::Rows, Format::Pretty),
        (View::Rows, Format::Sql),
        (View::Schema, Format::Sql),
    ] {
        let args = InspectArgs {
            database: both.map(Path::to_owned),
            wal: Some(wal_path.clone()),
            format,
            view: Some(view),
            tables: Vec::new(),
            rows: Vec::new(),
            exclude_tables: Vec::new(),
            stale: format != Format::Sql,
            uncommitted: format != Format::Sql,
            row: (view == View::Rows && format == Format::Pretty).then(|| "t/1".to_owned()),
            page: None,
            frame: None,
            follow: false,
        };
        let _ = inspect_command(&args, &mut std::io::sink(), Style::coloured(false));
        let page = data.last().map(|last| u32::from(*last));
        let args = InspectArgs { page, frame: (page > Some(9)).then_some(1), view: None, row: None, ..args };
        let _ = inspect_command(&args, &mut std::io::sink(), Style::coloured(false));
    }
}

/// Two versions of a database, as in [`two`], compared.
pub fn differ(data: &[u8]) {
    let Some((before, after)) = two(data) else { return };
    let Ok(header) = DatabaseHeader::parse(before) else { return };
    let size = header.page_size.bytes();
    let (before, after) = (Pages { bytes: before, size }, Pages { bytes: after, size });
    let Ok(mut differ) = Differ::open(&before) else { return };
    let pages = (1..=after.page_count()).filter_map(PageNo::new);
    let changed: Vec<PageNo> = pages.filter(|page| before.page(*page).ok() != after.page(*page).ok()).collect();
    let (checksum, first) = (Checksum::default(), woodchuck::format::FrameNo(1));
    let span = TxSpan {
        tx: 1,
        salts: Salts([0; 8]),
        frame_first: first,
        frame_last: first,
        checksum,
        page_count: after.page_count(),
        repaired: false,
    };
    let _ = differ.transaction(&before, &after, &changed, &span, &mut Counted::default());
    let _ = differ.transaction(&after, &before, &changed, &span, &mut Counted::default());
}

/// Four bytes with the length of the first part, little-endian, then both parts.
pub fn two(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// The opposite of [`two`].
pub fn joined(first: &[u8], second: &[u8]) -> Vec<u8> {
    [&(first.len() as u32).to_le_bytes(), first, second].concat()
}

/// A WAL whose checksums are right: no fuzzer would find them. Frames of other generations stay what they are.
pub fn mend(wal: &[u8]) -> Vec<u8> {
    let mut bytes = wal.to_vec();
    if bytes.len() < WAL_HEADER_BYTES {
        return bytes;
    }
    let big = bytes.get(3).is_some_and(|last| last & 1 == 1);
    let order = if big { woodchuck::format::ByteOrder::Big } else { woodchuck::format::ByteOrder::Little };
    let put = |at: usize, sum: Checksum, bytes: &mut Vec<u8>| {
        if let Some(place) = bytes.get_mut(at..at + 8) {
            place[..4].copy_from_slice(&sum.s0.to_be_bytes());
            place[4..].copy_from_slice(&sum.s1.to_be_bytes());
        }
    };
    let mut sum = Checksum::default().over(order, &bytes[..24]);
    put(24, sum, &mut bytes);
    let Ok(header) = WalHeader::parse(&bytes) else { return bytes };
    let mut at = WAL_HEADER_BYTES;
    let frame = FRAME_HEADER_BYTES + header.page_size.bytes();
    while let Some(whole) = bytes.get(at..at + frame) {
        if whole[8..16] != header.salts.0 {
            break;
        }
        sum = sum.over(order, &whole[..8]).over(order, &whole[FRAME_HEADER_BYTES..]);
        put(at + 16, sum, &mut bytes);
        at += frame;
    }
    bytes
}

struct Pages<'b> {
    bytes: &'b [u8],
    size: usize,
}

impl PageSource for Pages<'_> {
    fn page_count(&self) -> u32 {
        (self.bytes.len() / self.size) as u32
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        let from = (page.get() as usize - 1) * self.size;
        let bytes = self.bytes.get(from..from + self.size);
        bytes.map(Cow::Borrowed).ok_or(PageError::Missing { page, page_count: self.page_count() })
    }
}

/// Counts what it is given, and checks that calls come in their order.
#[derive(Default)]
struct Counted {
    changes: u64,
    begun: bool,
}

impl ChangeSink<Infallible> for Counted {
    fn begin(&mut self, _: &TxSpan) -> Result<(), Infallible> {
        self.changes = 0;
        self.begun = true;
        Ok(())
    }

    fn schema(&mut self, _: SchemaChange) -> Result<(), Infallible> {
        assert!(self.begun && self.changes == 0, "changes of the schema come first");
        Ok(())
    }

    fn change(&mut self, change: RowChange) -> Result<(), Infallible> {
        assert!(self.begun, "a change belongs to a transaction");
        assert!(change.before.is_some() || change.after.is_some() || change.before_unknown);
        self.changes += 1;
        Ok(())
    }

    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), Infallible> {
        assert!(std::mem::take(&mut self.begun), "a transaction ends once");
        Ok(())
    }
}
