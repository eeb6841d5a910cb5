//! What must hold after every step, and when all is at rest.

use std::hash::Hash;

use woodchuck::change::{RowKey, canonical_key};
use woodchuck::format::Row;
use woodchuck::schema::Table;

use super::cluster::Cluster;
use super::fold::Db;

impl Cluster {
    /// The invariants of every node that is up.
    pub(super) fn check(&mut self) {
        for no in 0..self.nodes.len() {
            let rows = self.rows(no);
            format!("{rows:?}").hash(&mut self.trace);
            if self.nodes[no].node.is_some() {
                self.check_node(no, &rows);
            }
        }
    }

    fn check_node(&mut self, no: usize, rows: &Db) {
        let positions = self.positions(no);
        positions.hash(&mut self.trace);
        if std::mem::replace(&mut self.nodes[no].applied, positions.clone()) != positions {
            self.met("applications");
        }
        if !self.is_torn {
            assert_eq!(self.spec.torn(&positions), None, "node {no} at {positions:?} has whole rounds");
        }
        if self.nodes[no].is_dirty || self.nodes[no].is_open {
            return;
        }
        let is_filtered = !self.nodes[no].filters().is_empty();
        let node = &mut self.nodes[no];
        let rules = &self.spec.rules;
        let replica = node.node.as_mut().unwrap().replica();
        assert!(!replica.is_recovering(), "an intent is settled at the start");
        let mut base = Vec::new();
        let each = |table: &Table, key: &RowKey, row: Option<&Row>| {
            base.push(((table.name.clone(), canonical_key(table, key)), row.cloned()));
            Ok(())
        };
        let find = |name: &str| rules.catalogue.table(name).cloned();
        replica.each_base_row(&find, each).unwrap();
        // Outside of the filter and not in base they are the application's alone.
        let mut db = self.within(no, rows.clone());
        base.iter().for_each(|(key, _)| drop(db.remove(key)));
        db.extend(base.into_iter().filter_map(|(key, row)| Some((key, row?))));
        let node = &self.nodes[no];
        let is_ahead = self.nodes[no].applied.iter().zip(&node.ahead_until).any(|(position, until)| position < until);
        let fold = self.spec.rows(positions.clone());
        let is_fold = self.within(no, db.clone()) == self.within(no, fold.clone());
        assert!(is_fold, "I1: the database of node {no} with base in place is the fold: {db:#?} and {fold:#?}");
        assert!(is_filtered || db == fold, "I1: the database of node {no} with base in place is the fold");
        if is_ahead {
            // What the database shows is whole as long as it is folded again as a whole.
            let state = self.nodes[no].node.as_mut().unwrap().replica().state();
            if !state.ahead_to().unwrap().is_empty() {
                assert_eq!(positions, self.nodes[no].started_at, "node {no} takes apart what it shows");
            }
            return;
        }
        let Cluster { nodes, spec, .. } = self;
        let (replica, rules) = (nodes[no].node.as_mut().unwrap().replica(), &spec.rules);
        let folded = replica.state().each_pending(|_, unit| {
            rules.fold(&mut db, unit);
            Ok(())
        });
        folded.unwrap();
        let (db, rows) = (self.within(no, db), self.within(no, rows.clone()));
        assert_eq!(db, rows, "I2: the database of node {no} is pending over the fold");
    }

    /// What must hold when nothing is under way.
    pub(super) fn check_rest(&mut self) {
        let ends: Vec<u64> = self.positions(0);
        let fold = self.spec.rows(ends);
        for no in 0..self.nodes.len() {
            let rows = self.within(no, self.rows(no));
            assert_eq!(rows, self.within(no, fold.clone()), "node {no} is the fold at rest");
            let rules = &self.spec.rules;
            let node = &mut self.nodes[no];
            let find = |name: &str| rules.catalogue.table(name).cloned();
            let is_filtered = !node.filters().is_empty();
            let replica = node.node.as_mut().unwrap().replica();
            replica
                .each_base_row(
                    &find,
                    |table, key, _| if is_filtered { Ok(()) } else { panic!("left in base: {} {key:?}", table.name) },
                )
                .unwrap();
            let transactions = self.spec.transactions(node.origin);
            if node.may_merge {
                assert!(transactions <= node.commits, "node {no} published {transactions} of {}", node.commits);
            } else {
                assert_eq!(transactions, node.commits, "node {no} published what its application committed");
            }
        }
    }
}
