//! The differ: keeps the structure of a database and turns each transaction's pages into row changes.
//!
//! Work per transaction depends on the pages it changed. The structure is replaced only after the whole transaction was given to the sink,
//! so that an error leaves the differ where it was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::explain::heads;
use super::keyed::MAP_BYTES_MAX;
use super::overflow::OverflowMap;
use super::owners::{Owners, TreeNo};
use super::pages::{DiffError, PageSource, Version};
use super::plan::{Plan, SchemaAfter, Touched};
use super::row::{ChangeSink, TxSpan};
use super::rows::{RowBuffers, TableDiff, note, reshape};
use super::structure::Root;
use super::trees::{Schema, Tree, read_schema, schema_changes, schema_table};
use crate::format::{DatabaseHeader, PageNo};
use crate::schema::{Catalogue, Table};

/// Why a transaction was not taken to its end.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError<E> {
    /// The versions could not be compared.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// The sink refused.
    #[error("{0}")]
    Sink(E),
}

/// The structure of a database at one position.
#[derive(Debug)]
pub struct Differ {
    pub(super) header: DatabaseHeader,
    pub(super) schema: Schema,
    pub(super) catalogue: Arc<Catalogue>,
    /// Tree 0 is the schema's.
    pub(super) trees: Vec<Option<Tree>>,
    /// Numbers of trees that are gone, to be given out again.
    pub(super) free: Vec<TreeNo>,
    pub(super) owners: Owners,
    pub(super) overflow: Option<OverflowMap>,
    damage: Vec<DiffError>,
    map_bytes_max: usize,
    pub(super) follows_copies: bool,
    skipped: Option<Mutex<Vec<DiffError>>>,
    /// Memory that one transaction leaves for the next.
    buffers: Buffers,
}

/// What a transaction needs, and the next can use again.
#[derive(Debug, Default)]
struct Buffers {
    leaves: Vec<(TreeNo, PageNo, u8)>,
    pages: Vec<(PageNo, u8)>,
    rows: RowBuffers,
}

impl Differ {
    /// Reads schema and interior pages of a database.
    ///
    /// # Errors
    /// [`DiffError`] when page 1 or the schema cannot be read. Damage in other trees is listed by [`Differ::damage`].
    pub fn open(source: &dyn PageSource) -> Result<Differ, DiffError> {
        let header = DatabaseHeader::parse(&source.page(PageNo::ONE)?)?;
        let version = Version::with_header(source, &header);
        let schema = read_schema(&version)?;
        let catalogue = Arc::new(Catalogue::build(schema.values().cloned().collect(), header.sqlite_version)?);
        let mut differ = Differ {
            header,
            schema,
            catalogue,
            trees: Vec::new(),
            free: Vec::new(),
            owners: Owners::default(),
            overflow: None,
            damage: Vec::new(),
            map_bytes_max: MAP_BYTES_MAX,
            follows_copies: false,
            skipped: None,
            buffers: Buffers::default(),
        };
        let height = differ.owners.walk(&version, TreeNo(0), PageNo::ONE)?;
        differ.trees.push(Some(Tree {
            kind: "table".into(),
            name: "sqlite_schema".into(),
            schema_rowid: 0,
            root: Root { page: PageNo::ONE, height },
            table: Some(Arc::new(schema_table())),
        }));
        for (rowid, row) in &differ.schema {
            let Some(root) = row.root else { continue };
            let number = TreeNo(differ.trees.len() as u32);
            match differ.owners.walk(&version, number, root) {
                Ok(height) => differ.trees.push(Some(Tree {
                    kind: row.kind.as_str().into(),
                    name: row.name.as_str().into(),
                    schema_rowid: *rowid,
                    root: Root { page: root, height },
                    table: differ.catalogue.table(&row.name).filter(|_| row.kind == "table").cloned(),
                })),
                Err(damage) => {
                    differ.damage.push(damage);
                    differ.trees.push(None);
                }
            }
        }
        Ok(differ)
    }

    /// The tables as they are at this position.
    #[must_use]
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// The database header at this position.
    #[must_use]
    pub fn header(&self) -> &DatabaseHeader {
        &self.header
    }

    /// The object of which a b-tree page is: its type, its name, and the table if it is one.
    #[must_use]
    pub fn object_of(&self, page: PageNo) -> Option<(&str, &str, Option<&Arc<Table>>)> {
        let (number, _) = self.owners.get(page)?;
        let tree = self.trees.get(number.0 as usize)?.as_ref()?;
        Some((&tree.kind, &tree.name, tree.table.as_ref()))
    }

    /// Whether all of these are leaves of tables and indexes, none of them the schema's.
    #[must_use]
    pub fn are_leaves(&self, pages: &[PageNo]) -> bool {
        let is_leaf = |page: &PageNo| matches!(self.owners.get(*page), Some((number, 0)) if number != TreeNo(0));
        pages.iter().all(is_leaf)
    }

    /// The whole payload of a cell on a page of `source`, and the overflow pages that it goes on in.
    ///
    /// # Errors
    /// [`DiffError`] when the chain is broken.
    pub fn payload(
        &self,
        source: &dyn PageSource,
        page: PageNo,
        cell: &crate::format::Cell<'_>,
    ) -> Result<(Vec<u8>, Vec<PageNo>), DiffError> {
        let mut chain = Vec::new();
        let version = Version::with_header(source, &self.header);
        Ok((version.payload(page, cell, Some(&mut chain))?.into_owned(), chain))
    }

    /// Whether a page is a pointer map of an auto-vacuum database, or the one that holds the lock bytes.
    #[must_use]
    pub fn is_map_or_lock(&self, source: &dyn PageSource, page: PageNo) -> bool {
        Version::with_header(source, &self.header).is_map_or_lock(page, self.header.page_size.bytes())
    }

    /// Trees that could not be walked.
    #[must_use]
    pub fn damage(&self) -> &[DiffError] {
        &self.damage
    }

    /// From here on rows that cannot be read are passed over and noted, and so are tables of which more than a row cannot be read. For people
    /// who look into damaged files: who relies on the changes must have all of them.
    pub fn pass_over_damage(&mut self) {
        self.skipped.get_or_insert_default();
    }

    /// What was passed over since the last call.
    pub fn take_passed_over(&mut self) -> Vec<DiffError> {
        let skipped = self.skipped.as_mut().and_then(|skipped| skipped.get_mut().ok());
        skipped.map(std::mem::take).unwrap_or_default()
    }

    /// From here on a table whose rows were copied into one of another name, and which was dropped in the same transaction, is that one: what
    /// others write to it belongs there. Who only looks is shown what was done.
    pub fn follow_copies(&mut self) {
        self.follows_copies = true;
    }

    /// Bounds the rows that wait for their partner within a transaction, in bytes.
    pub fn set_map_bytes_max(&mut self, bytes: usize) {
        self.map_bytes_max = bytes;
    }

    /// Whether the owner map equals that of a fresh walk over `source`; the first difference as text otherwise. For tests.
    ///
    /// # Errors
    /// [`DiffError`] when the walk fails.
    pub fn check(&self, source: &dyn PageSource) -> Result<Option<String>, DiffError> {
        let fresh = Differ::open(source)?;
        let name = |differ: &Differ, entry: Option<(TreeNo, u8)>| {
            entry.and_then(|(tree, height)| {
                let tree = differ.trees.get(tree.0 as usize)?.as_ref()?;
                Some((Arc::clone(&tree.kind), Arc::clone(&tree.name), height))
            })
        };
        for no in 1..=source.page_count().max(self.owners.iter().map(|(page, ..)| page.get()).max().unwrap_or(0)) {
            let Some(page) = PageNo::new(no) else { continue };
            let (kept, walked) = (name(self, self.owners.get(page)), name(&fresh, fresh.owners.get(page)));
            if kept != walked {
                return Ok(Some(format!("page {page}: kept as {kept:?}, walked as {walked:?}")));
            }
        }
        Ok(None)
    }

    /// Counts the rows of all tables, reading their pages from `source`, which is the version that the differ stands at. Ends early once
    /// there are `enough`.
    ///
    /// # Errors
    /// [`DiffError`] when a page cannot be read.
    pub fn count_rows(&self, source: &dyn PageSource, enough: u64) -> Result<u64, DiffError> {
        let version = Version::with_header(source, &self.header);
        let mut rows = 0;
        for (page, tree, height) in self.owners.iter() {
            if rows >= enough {
                break;
            }
            if tree != TreeNo(0) && self.holds_rows(tree, height) && page.get() <= source.page_count() {
                let bytes = version.bytes(page)?;
                rows += version.parse(page, &bytes)?.cell_count() as u64;
            }
        }
        Ok(rows)
    }

    /// Compares two versions and gives the row changes to `sink`.
    ///
    /// `changed` are the pages that may differ, ascending: those of the transaction's frames, or of a comparison page by page. Returns the
    /// number of row and schema changes; when nothing changed the sink is not called.
    ///
    /// # Errors
    /// [`TransactionError`]; the differ then still stands at the version before.
    pub fn transaction<E>(
        &mut self,
        before: &dyn PageSource,
        after: &dyn PageSource,
        changed: &[PageNo],
        span: &TxSpan,
        sink: &mut dyn ChangeSink<E>,
    ) -> Result<u64, TransactionError<E>> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let compared = self.compare(before, after, changed, &mut Given { span, sink, count: 0 }, &mut buffers);
        self.buffers = buffers;
        let (plan, count) = compared?;
        if let Some(plan) = plan {
            self.adopt(plan)?;
        }
        Ok(count)
    }

    /// As [`Differ::transaction`], but the differ goes on standing at the version before.
    ///
    /// # Errors
    /// [`TransactionError`].
    pub fn preview<E>(
        &self,
        before: &dyn PageSource,
        after: &dyn PageSource,
        changed: &[PageNo],
        span: &TxSpan,
        sink: &mut dyn ChangeSink<E>,
    ) -> Result<u64, TransactionError<E>> {
        let mut given = Given { span, sink, count: 0 };
        self.compare(before, after, changed, &mut given, &mut Buffers::default()).map(|(_, count)| count)
    }

    /// Gives the changes to the sink. Returns what is to be adopted, if that is anything, and the number of changes.
    fn compare<'s, E>(
        &self,
        before: &'s dyn PageSource,
        after: &'s dyn PageSource,
        changed: &[PageNo],
        given: &mut Given<'_, E>,
        buffers: &mut Buffers,
    ) -> Result<(Option<Plan<'s>>, u64), TransactionError<E>> {
        if self.find_leaves(changed, &mut buffers.leaves) {
            self.compare_leaves(before, after, given, buffers)?;
            given.commit(0)?;
            return Ok((None, given.count));
        }
        let plan = self.plan(before, after, changed)?;
        if let Some(SchemaAfter { schema, catalogue, continued }) = &plan.schema {
            let is_shadow =
                |name: &str| catalogue.shadow_of(name).is_some() || self.catalogue.shadow_of(name).is_some();
            let renamed = plan.touched.iter().filter_map(Touched::renamed).collect();
            for change in schema_changes(&self.schema, schema, continued, &renamed, &is_shadow, catalogue) {
                given.begin()?;
                given.sink.schema(change).map_err(TransactionError::Sink)?;
            }
        }
        let schema_count = given.count;
        for touched in &plan.touched {
            let (old, new) = (touched.old.as_ref(), touched.new_table());
            let (Some(old), Some(new)) = (old.or(new), new.or(old)) else { continue };
            if touched.number == TreeNo(0) {
                continue;
            }
            let diff = TableDiff {
                before: plan.before,
                after: plan.after,
                before_pages: &row_pages(old, &touched.change.before),
                after_pages: &row_pages(new, &touched.change.after),
                reshape: reshape(old, new, touched.renamed.columns.as_deref()),
                doubts: if self.follows_copies { &touched.renamed.doubts } else { &[] },
                old,
                new,
                walk_chains: plan.walk_chains,
                map_bytes_max: self.map_bytes_max,
                skipped: self.skipped.as_ref(),
            };
            self.give_rows(&diff, given, &mut buffers.rows)?;
        }
        given.commit(schema_count)?;
        Ok((Some(plan), given.count))
    }

    /// Most transactions change leaves of trees that keep their shape, and nothing else: then there is nothing to find out about the structure,
    /// and nothing of it changes. Finds those leaves, in the order of their trees; false when there is more to the transaction.
    fn find_leaves(&self, changed: &[PageNo], leaves: &mut Vec<(TreeNo, PageNo, u8)>) -> bool {
        leaves.clear();
        if self.overflow.is_some() {
            return false;
        }
        for page in changed {
            let Some((number, 0)) = self.owners.get(*page) else { return false };
            // A root can become an interior page.
            if number == TreeNo(0) || self.tree(number).is_none_or(|tree| tree.root.height == 0) {
                return false;
            }
            leaves.push((number, *page, 0));
        }
        leaves.sort_unstable();
        true
    }

    fn compare_leaves<E>(
        &self,
        before: &dyn PageSource,
        after: &dyn PageSource,
        given: &mut Given<'_, E>,
        buffers: &mut Buffers,
    ) -> Result<(), TransactionError<E>> {
        let Buffers { leaves, pages, rows } = buffers;
        for of_tree in leaves.chunk_by(|(a, ..), (b, ..)| a == b) {
            let tree = of_tree.first().and_then(|(number, ..)| self.tree(*number));
            let Some(table) = tree.and_then(|tree| tree.table.as_ref()) else { continue };
            pages.clear();
            pages.extend(of_tree.iter().map(|(_, page, height)| (*page, *height)));
            let diff = TableDiff {
                before: Version::with_header(before, &self.header),
                after: Version::with_header(after, &self.header),
                before_pages: pages,
                after_pages: pages,
                reshape: None,
                doubts: &[],
                old: table,
                new: table,
                walk_chains: false,
                map_bytes_max: self.map_bytes_max,
                skipped: self.skipped.as_ref(),
            };
            self.give_rows(&diff, given, rows)?;
        }
        Ok(())
    }

    fn give_rows<E>(
        &self,
        diff: &TableDiff<'_>,
        given: &mut Given<'_, E>,
        buffers: &mut RowBuffers,
    ) -> Result<(), TransactionError<E>> {
        let done = diff.run(buffers, &mut |row| {
            given.begin()?;
            given.sink.row(row).map_err(TransactionError::Sink)
        });
        match (done, &self.skipped) {
            (Err(TransactionError::Diff(damage)), Some(skipped)) => {
                note(skipped, damage);
                Ok(())
            }
            (done, _) => done,
        }
    }

    /// Takes a transaction's pages into the structure without giving out its rows.
    ///
    /// # Errors
    /// [`DiffError`]; the differ then still stands at the version before.
    pub fn absorb(
        &mut self,
        before: &dyn PageSource,
        after: &dyn PageSource,
        changed: &[PageNo],
    ) -> Result<(), DiffError> {
        let plan = self.plan(before, after, changed)?;
        self.adopt(plan)
    }

    pub(super) fn tree(&self, number: TreeNo) -> Option<&Tree> {
        self.trees.get(number.0 as usize)?.as_ref()
    }

    /// Whether pages of this tree at this height carry rows.
    pub(super) fn holds_rows(&self, tree: TreeNo, height: u8) -> bool {
        self.tree(tree).and_then(|tree| tree.table.as_ref()).is_some_and(|table| height == 0 || table.without_rowid)
    }

    /// The plan's version becomes this differ's.
    fn adopt(&mut self, plan: Plan<'_>) -> Result<(), DiffError> {
        let mut overflow = plan.built.or(self.overflow.take());
        if let Some(map) = &mut overflow {
            for touched in &plan.touched {
                let Some(table) = touched.new_table() else { continue };
                let kept = if plan.walk_chains { HashMap::new() } else { heads(&plan.before, &touched.change.before)? };
                for (page, _) in row_pages(table, &touched.change.after) {
                    map.note_page(&plan.after, page, |head| !kept.contains_key(&head))?;
                }
            }
        }
        self.overflow = overflow;
        for touched in &plan.touched {
            for (page, _) in &touched.change.removed {
                self.owners.release(*page, touched.number);
            }
        }
        for touched in plan.touched {
            for (page, height) in &touched.change.owned {
                self.owners.set(*page, touched.number, *height);
            }
            let index = touched.number.0 as usize;
            if index >= self.trees.len() {
                self.trees.resize(index + 1, None);
            }
            match &touched.tree {
                Some(_) => self.free.retain(|free| *free != touched.number),
                None => self.free.push(touched.number),
            }
            if let Some(slot) = self.trees.get_mut(index) {
                *slot = touched.tree;
            }
        }
        if let Some(SchemaAfter { schema, catalogue, .. }) = plan.schema {
            self.schema = schema;
            self.catalogue = catalogue;
        }
        self.header = plan.header;
        Ok(())
    }
}

/// What has been given to a sink of one transaction.
struct Given<'g, E> {
    span: &'g TxSpan,
    sink: &'g mut dyn ChangeSink<E>,
    count: u64,
}

impl<E> Given<'_, E> {
    /// Another change is about to be given.
    #[inline]
    fn begin(&mut self) -> Result<(), TransactionError<E>> {
        self.count += 1;
        if self.count == 1 { self.sink.begin(self.span).map_err(TransactionError::Sink) } else { Ok(()) }
    }

    fn commit(&mut self, schema_count: u64) -> Result<(), TransactionError<E>> {
        match self.count {
            0 => Ok(()),
            count => self.sink.commit(self.span, count - schema_count).map_err(TransactionError::Sink),
        }
    }
}

/// The pages that carry rows of a table: leaves, and in index-shaped trees all. Ascending by height and number.
fn row_pages(table: &Table, pages: &[(PageNo, u8)]) -> Vec<(PageNo, u8)> {
    let with_rows = pages.iter().filter(|(_, height)| *height == 0 || table.without_rowid);
    let mut pages: Vec<(PageNo, u8)> = with_rows.copied().collect();
    pages.sort_unstable_by_key(|(page, height)| (*height, *page));
    pages
}
