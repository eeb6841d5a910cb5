//! What a transaction does to the structure of a database, understood before any row is given out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::columns::{Renamed, RenamedColumns, renamed_columns};
use super::differ::Differ;
use super::overflow::OverflowMap;
use super::owners::TreeNo;
use super::pages::{DiffError, PageSource, Version};
use super::rows::names_moved;
use super::structure::{Root, TreeChange, tree_change};
use super::trees::{Matched, Schema, Tree, match_trees, read_schema};
use crate::format::{DatabaseHeader, PageNo};
use crate::schema::{Catalogue, Table};

/// What a transaction does to one tree, before it is given out.
pub(super) struct Touched {
    pub(super) number: TreeNo,
    /// The tree after; `None` when it is gone.
    pub(super) tree: Option<Tree>,
    pub(super) old: Option<Arc<Table>>,
    pub(super) renamed: Renamed,
    pub(super) change: TreeChange,
}

impl Touched {
    /// A tree that stays as it is.
    pub(super) fn unchanged(number: TreeNo, tree: &Tree) -> Touched {
        let (old, change) = (tree.table.clone(), TreeChange::default());
        Touched { number, tree: Some(tree.clone()), old, renamed: Renamed::default(), change }
    }

    /// The schema row after, with the columns that have other names.
    pub(super) fn renamed(&self) -> Option<(i64, RenamedColumns)> {
        Some(self.tree.as_ref()?.schema_rowid).zip(self.renamed.columns.clone())
    }

    pub(super) fn new_table(&self) -> Option<&Arc<Table>> {
        self.tree.as_ref().and_then(|tree| tree.table.as_ref())
    }
}

/// The schema behind a transaction that may have changed it.
pub(super) struct SchemaAfter {
    pub(super) schema: Schema,
    pub(super) catalogue: Arc<Catalogue>,
    /// For schema rows that have a tree from before, the row that it had.
    pub(super) continued: HashMap<i64, i64>,
}

/// A transaction understood, before its rows are given out and the structure is replaced.
pub(super) struct Plan<'s> {
    pub(super) before: Version<'s>,
    pub(super) after: Version<'s>,
    pub(super) header: DatabaseHeader,
    pub(super) schema: Option<SchemaAfter>,
    pub(super) touched: Vec<Touched>,
    /// Rows may have changed in overflow pages only.
    pub(super) walk_chains: bool,
    /// The overflow map, if this transaction was the first to need it.
    pub(super) built: Option<OverflowMap>,
}

impl Differ {
    pub(super) fn plan<'s>(
        &self,
        before: &'s dyn PageSource,
        after: &'s dyn PageSource,
        changed: &[PageNo],
    ) -> Result<Plan<'s>, DiffError> {
        let header = match changed.first() {
            Some(&PageNo::ONE) => DatabaseHeader::parse(&after.page(PageNo::ONE)?)?,
            _ => self.header.clone(),
        };
        let old = Version::with_header(before, &self.header);
        let new = Version::with_header(after, &header);

        let mut groups: BTreeMap<TreeNo, Vec<(PageNo, u8)>> = BTreeMap::new();
        let mut loose = Vec::new();
        for page in changed {
            match self.owners.get(*page) {
                Some((tree, height)) => groups.entry(tree).or_default().push((*page, height)),
                None => loose.push(*page),
            }
        }

        let schema = self.schema_after(&old, &new, &header, groups.get(&TreeNo(0)))?;
        let (mut touched, schema) = match schema {
            None => (self.touched_trees(&old, &new, &groups)?, None),
            Some((schema, catalogue)) => {
                let matched =
                    match_trees((&old, &self.trees, &self.schema), (&new, &schema, &catalogue), self.follows_copies);
                let continued = matched.continued(&self.trees);
                let touched = self.rebuilt_trees(&old, &new, &groups, (&schema, &catalogue), matched)?;
                (touched, Some(SchemaAfter { schema, catalogue, continued }))
            }
        };
        touched.sort_by_key(|touched| touched.number);
        let mut plan = Plan { before: old, after: new, header, schema, touched, walk_chains: false, built: None };
        self.explain_loose(&mut plan, loose)?;
        Ok(plan)
    }

    /// The schema after, if it may have changed: its tree has changed pages, or the cookie in page 1 says so.
    fn schema_after(
        &self,
        old: &Version<'_>,
        new: &Version<'_>,
        header: &DatabaseHeader,
        pages: Option<&Vec<(PageNo, u8)>>,
    ) -> Result<Option<(Schema, Arc<Catalogue>)>, DiffError> {
        let Some(pages) = pages else { return Ok(None) };
        let only_page_one = pages.len() == 1;
        if only_page_one && header.schema_cookie == self.header.schema_cookie {
            let body = crate::format::DATABASE_HEADER_BYTES..;
            let (before, after) = (old.bytes(PageNo::ONE)?, new.bytes(PageNo::ONE)?);
            if before.get(body.clone()) == after.get(body) {
                return Ok(None);
            }
        }
        let schema = read_schema(new)?;
        let catalogue = match schema == self.schema {
            true => Arc::clone(&self.catalogue),
            false => Arc::new(self.catalogue.build_next(schema.values().cloned().collect(), header.sqlite_version)?),
        };
        Ok(Some((schema, catalogue)))
    }

    /// The schema is as it was: the trees that own changed pages.
    fn touched_trees(
        &self,
        old: &Version<'_>,
        new: &Version<'_>,
        groups: &BTreeMap<TreeNo, Vec<(PageNo, u8)>>,
    ) -> Result<Vec<Touched>, DiffError> {
        let mut touched = Vec::with_capacity(groups.len());
        for (number, pages) in groups {
            let Some(tree) = self.tree(*number) else { continue };
            touched.push(touch(old, new, *number, Some(tree), Some(tree.clone()), pages)?);
        }
        Ok(touched)
    }

    /// The schema changed: all trees were matched anew.
    fn rebuilt_trees(
        &self,
        old: &Version<'_>,
        new: &Version<'_>,
        groups: &BTreeMap<TreeNo, Vec<(PageNo, u8)>>,
        (schema, catalogue): (&Schema, &Catalogue),
        Matched { kept, gone, new: fresh }: Matched,
    ) -> Result<Vec<Touched>, DiffError> {
        let none = Vec::new();
        let pages_of = |number: &TreeNo| groups.get(number).unwrap_or(&none);
        let described = |rowid: i64| {
            let row = schema.get(&rowid)?;
            let table = catalogue.table(&row.name).filter(|_| row.kind == "table").cloned();
            let (kind, name) = (row.kind.as_str().into(), row.name.as_str().into());
            Some(Tree { kind, name, schema_rowid: rowid, root: Root { page: row.root?, height: 0 }, table })
        };
        let mut touched = Vec::new();
        let root = self.tree(TreeNo(0)).cloned();
        touched.push(touch(old, new, TreeNo(0), root.as_ref(), root.clone(), pages_of(&TreeNo(0)))?);
        for (number, rowid) in kept {
            touched.push(touch(old, new, number, self.tree(number), described(rowid), pages_of(&number))?);
        }
        for number in gone {
            touched.push(touch(old, new, number, self.tree(number), None, pages_of(&number))?);
        }
        let numbers = self.free.iter().rev().copied().chain((self.trees.len() as u32..).map(TreeNo));
        for (rowid, number) in fresh.into_iter().zip(numbers) {
            touched.push(touch(old, new, number, None, described(rowid), &none)?);
        }
        Ok(touched)
    }
}

/// What happened to one tree; `tree` is how the schema describes it after.
fn touch(
    old: &Version<'_>,
    new: &Version<'_>,
    number: TreeNo,
    was: Option<&Tree>,
    mut tree: Option<Tree>,
    pages: &[(PageNo, u8)],
) -> Result<Touched, DiffError> {
    if let Some(tree) = &mut tree {
        let stays = was.filter(|was| was.root.page == tree.root.page);
        let root_changed = pages.iter().any(|(page, _)| *page == tree.root.page);
        tree.root.height = match stays {
            Some(was) if !root_changed => was.root.height,
            _ => new.height(tree.root.page)?,
        };
    }
    let roots = (was.map(|was| was.root), tree.as_ref().map(|tree| tree.root));
    let mut change = tree_change(old, new, roots.0, roots.1, pages)?;
    let tables = (was.and_then(|was| was.table.clone()), tree.as_ref().and_then(|tree| tree.table.clone()));
    let mut renamed = Renamed::default();
    if let ((Some(was), Some(is)), (Some(before), Some(after))) = (roots, &tables) {
        renamed = renamed_columns((old, was.page, before), (new, is.page, after));
    }
    if let (Some(before), Some(after)) = &tables
        && names_moved(before, after, renamed.columns.as_deref())
    {
        // Every row is compared, also where no page changed.
        change.before = tree_change(old, new, roots.0, None, &[])?.before;
        change.after = tree_change(old, new, None, roots.1, &[])?.after;
    }
    Ok(Touched { number, tree, old: tables.0, renamed, change })
}
