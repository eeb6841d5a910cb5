//! Definitions of one table that several nodes have changed side by side.
//!
//! As with rows, what one of them changed and the other did not stays: column by column and constraint by constraint. What both have changed is
//! as the later on the log has it. The text around it stays as it is here, so nodes that make the same changes in another order have the
//! same text in the end.

use std::collections::{BTreeMap, BTreeSet};

use crate::schema::{Tokens, unquote};

/// A CREATE TABLE statement, taken apart at the commas between its columns and constraints.
struct Parts<'s> {
    head: &'s str,
    parts: Vec<&'s str>,
    tail: &'s str,
}

/// What a part is about: a column, by its name, or a constraint, by its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Column(String),
    Constraint(String),
    /// The order of the columns.
    Order,
}

impl<'s> Parts<'s> {
    fn of(sql: &'s str) -> Option<Parts<'s>> {
        let (mut depth, mut begin, mut head) = (0_usize, 0, "");
        let mut parts = Vec::new();
        for (offset, token) in Tokens::new(sql) {
            match token {
                "(" => {
                    depth += 1;
                    if depth == 1 {
                        begin = offset + 1;
                        head = sql.get(..begin)?;
                    }
                }
                "," if depth == 1 => {
                    parts.push(sql.get(begin..offset)?);
                    begin = offset + 1;
                }
                ")" => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        parts.push(sql.get(begin..offset)?);
                        return Some(Parts { head, parts, tail: sql.get(offset..)? });
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn text(&self, subject: &Subject) -> Option<&'s str> {
        self.parts.iter().copied().find(|part| subject_of(part).as_ref() == Some(subject)).map(str::trim)
    }

    fn subjects(&self) -> impl Iterator<Item = Subject> {
        self.parts.iter().filter_map(|part| subject_of(part))
    }

    fn columns(&self) -> Vec<Subject> {
        self.subjects().filter(|subject| matches!(subject, Subject::Column(_))).collect()
    }
}

fn subject_of(part: &str) -> Option<Subject> {
    const CONSTRAINTS: [&str; 5] = ["constraint", "primary", "unique", "check", "foreign"];
    let (_, first) = Tokens::new(part).next()?;
    let is_constraint = CONSTRAINTS.iter().any(|word| first.eq_ignore_ascii_case(word));
    Some(match is_constraint {
        true => Subject::Constraint(part.trim().to_owned()),
        false => Subject::Column(unquote(first).to_ascii_lowercase()),
    })
}

/// What a change of a definition changed.
fn changed(before: &Parts<'_>, after: &Parts<'_>) -> BTreeSet<Subject> {
    let all = before.subjects().chain(after.subjects());
    let mut changed: BTreeSet<Subject> = all.filter(|subject| before.text(subject) != after.text(subject)).collect();
    let (old, new) = (before.columns(), after.columns());
    let (stay, stayed) = (old.iter().filter(|name| new.contains(name)), new.iter().filter(|name| old.contains(name)));
    if !stay.eq(stayed) {
        changed.insert(Subject::Order);
    }
    changed
}

/// The definition here with what a change made of another one, but for what `later` ones, which come behind it, have changed. `None` where the
/// change adds or takes columns, or one of the texts is not understood.
pub(super) fn merged(here: &str, (before, after): (&str, &str), later: &[(String, String)]) -> Option<String> {
    let (ours, old, new) = (Parts::of(here)?, Parts::of(before)?, Parts::of(after)?);
    let mut changed_later = BTreeSet::new();
    for (before, after) in later {
        changed_later.extend(changed(&Parts::of(before)?, &Parts::of(after)?));
    }
    let mut change = changed(&old, &new);
    let is_column = |subject: &Subject| matches!(subject, Subject::Column(_));
    if change.iter().any(|subject| is_column(subject) && (old.text(subject).is_none() || new.text(subject).is_none())) {
        return None;
    }
    change.retain(|subject| !changed_later.contains(subject));
    let mut parts: Vec<String> = Vec::with_capacity(ours.parts.len());
    for part in &ours.parts {
        let subject = subject_of(part)?;
        match (change.contains(&subject), new.text(&subject)) {
            (false, _) => parts.push((*part).to_owned()),
            (true, Some(text)) => parts.push(part.replacen(part.trim(), text, 1)),
            (true, None) => {}
        }
    }
    for subject in new.subjects().filter(|subject| !is_column(subject) && change.contains(subject)) {
        let part = new.parts.iter().find(|part| subject_of(part).as_ref() == Some(&subject))?;
        if ours.text(&subject).is_none() {
            parts.push((*part).to_owned());
        }
    }
    if change.contains(&Subject::Order) {
        put_in_order(&mut parts, &new);
    }
    let tail = if old.tail.trim() == new.tail.trim() { ours.tail } else { new.tail };
    Some(format!("{}{}{tail}", ours.head, parts.join(",")))
}

/// Puts the columns that a definition has, too, into its order. The others stay where they are.
fn put_in_order(parts: &mut [String], order: &Parts<'_>) {
    let wanted = order.columns();
    let texts: BTreeMap<Subject, String> =
        parts.iter().filter_map(|part| Some((subject_of(part)?, part.trim().to_owned()))).collect();
    let mut ordered = wanted.iter().filter_map(|column| texts.get(column));
    for part in parts.iter_mut().filter(|part| subject_of(part).is_some_and(|subject| wanted.contains(&subject))) {
        if let Some(text) = ordered.next() {
            *part = part.replacen(part.trim(), text, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "CREATE TABLE \"u\" (id integer PRIMARY KEY, \"a\" varchar(30), b decimal(5, 2) DEFAULT (1, 2), CHECK (a <> ','))";

    #[test]
    fn what_one_changed_and_the_other_did_not_stays() {
        let ours = BEFORE.replace("decimal(5, 2)", "decimal(9, 2)");
        let theirs = BEFORE.replace("varchar(30)", "varchar(150)");
        let both = ours.replace("varchar(30)", "varchar(150)");
        assert_eq!(merged(&ours, (BEFORE, &theirs), &[]).unwrap(), both);
        assert_eq!(merged(&theirs, (BEFORE, &ours), &[]).unwrap(), both);
        // Back again, from a definition that was never here.
        assert_eq!(merged(&both, (&theirs, BEFORE), &[]).unwrap(), ours);
    }

    #[test]
    fn the_later_of_two_changes_of_one_column_counts() {
        let (ours, theirs) = (BEFORE.replace("30", "100"), BEFORE.replace("30", "200"));
        assert_eq!(merged(&ours, (BEFORE, &theirs), &[]).unwrap(), theirs);
        assert_eq!(merged(&ours, (BEFORE, &theirs), &[(BEFORE.to_owned(), ours.clone())]).unwrap(), ours);
    }

    #[test]
    fn columns_move_as_the_later_has_them() {
        let theirs = "CREATE TABLE \"u\" (id integer PRIMARY KEY, b decimal(5, 2) DEFAULT (1, 2), \"a\" varchar(150), CHECK (a <> ','))";
        let ours = BEFORE.replace("decimal(5, 2)", "decimal(9, 2)").replace("CHECK", "c text, CHECK");
        let both = theirs.replace("decimal(5, 2)", "decimal(9, 2)").replace("CHECK", "c text, CHECK");
        assert_eq!(merged(&ours, (BEFORE, theirs), &[]).unwrap(), both);
        // One that comes behind it has moved them, too.
        let later = [(theirs.to_owned(), BEFORE.to_owned())];
        assert_eq!(merged(BEFORE, (BEFORE, theirs), &later).unwrap(), BEFORE);
    }

    #[test]
    fn constraints_and_what_stands_behind_come_and_go() {
        let theirs = BEFORE.replace("CHECK (a <> ',')", "UNIQUE (b)");
        let ours = BEFORE.replace("id integer PRIMARY KEY", "id integer PRIMARY KEY NOT NULL");
        assert_eq!(merged(&ours, (BEFORE, &theirs), &[]).unwrap(), ours.replace("CHECK (a <> ',')", "UNIQUE (b)"));
        let strict = format!("{BEFORE} STRICT");
        assert_eq!(merged(&ours, (BEFORE, &strict), &[]).unwrap(), format!("{ours} STRICT"));
        assert_eq!(merged(&ours, (BEFORE, &BEFORE.replace("CHECK", "c text, CHECK")), &[]), None);
    }
}
