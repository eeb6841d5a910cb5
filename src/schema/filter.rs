//! Which tables an option means: patterns as SQLite's GLOB understands them, without regard to ASCII case, as table names are.
//!
//! `*` stands for any run of characters, `?` for one, `[abc]`, `[a-z]` for one of them, `[^abc]` for one that is not among them.

/// A set of tables: those that a `--tables` pattern names (all, when there is none) less those that an `--exclude-tables` pattern names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableFilter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl TableFilter {
    /// Makes the set.
    #[must_use]
    pub fn new<S: AsRef<str>>(include: &[S], exclude: &[S]) -> TableFilter {
        let patterns = |globs: &[S]| globs.iter().map(|glob| Pattern::new(glob.as_ref())).collect();
        TableFilter { include: patterns(include), exclude: patterns(exclude) }
    }

    /// Whether the table of this name belongs to the set.
    #[must_use]
    pub fn matches(&self, table: &str) -> bool {
        let name: Vec<char> = table.chars().map(|c| c.to_ascii_lowercase()).collect();
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(&name));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }
}

/// One character's worth of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Any,
    One,
    Literal(char),
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    /// A `[` that is never closed matches nothing, as in SQLite.
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern(Vec<Part>);

impl Pattern {
    fn new(glob: &str) -> Pattern {
        let mut chars = glob.chars().map(|c| c.to_ascii_lowercase()).peekable();
        let mut parts = Vec::new();
        while let Some(c) = chars.next() {
            parts.push(match c {
                '*' => Part::Any,
                '?' => Part::One,
                '[' => class(&mut chars),
                c => Part::Literal(c),
            });
        }
        Pattern(parts)
    }

    /// Matches with one place to come back to (the last `*`), so in at most pattern × name steps.
    fn matches(&self, name: &[char]) -> bool {
        let (mut part_index, mut char_index) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;
        loop {
            let matched = match (self.0.get(part_index), name.get(char_index)) {
                (None, None) => return true,
                (Some(Part::Any), _) => {
                    retry = Some((part_index, char_index));
                    part_index += 1;
                    continue;
                }
                (Some(part), Some(c)) => part.takes(*c),
                (None, Some(_)) | (Some(_), None) => false,
            };
            if matched {
                part_index += 1;
                char_index += 1;
                continue;
            }
            match retry {
                Some((star, from)) if from < name.len() => {
                    retry = Some((star, from + 1));
                    part_index = star + 1;
                    char_index = from + 1;
                }
                _ => return false,
            }
        }
    }
}

impl Part {
    fn takes(&self, c: char) -> bool {
        match self {
            Part::Any | Part::One => true,
            Part::Literal(literal) => *literal == c,
            Part::Class { negated, ranges } => ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *negated,
            Part::Nothing => false,
        }
    }
}

/// Reads a class after its `[`. A `]` that comes first stands for itself.
fn class(chars: &mut std::iter::Peekable<impl Iterator<Item = char>>) -> Part {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges: Vec<(char, char)> = Vec::new();
    let mut range_from: Option<char> = None;
    let mut first = true;
    while let Some(c) = chars.next() {
        match (c, range_from) {
            (']', _) if !first => return Part::Class { negated, ranges },
            ('-', Some(from)) if chars.peek().is_some_and(|next| *next != ']') => {
                if let Some(to) = chars.next() {
                    ranges.push((from, to));
                }
                range_from = None;
            }
            (c, _) => {
                ranges.push((c, c));
                // In SQLite a `]` that comes first begins no range.
                range_from = (c != ']' || !first).then_some(c);
            }
        }
        first = false;
    }
    Part::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_sqlites_glob_does() {
        let sqlite = rusqlite::Connection::open_in_memory().unwrap();
        let patterns = [
            "*", "", "a*", "*a", "a?c", "[abc]", "[^abc]", "[a-c]x", "[]]", "[^]]", "[a", "a[b-]c", "*b*b*", "[-a]",
            "??", "a*?c", "é?", "[à-ü]*", "**a", "a[*]", "[]-a]", "[a-",
        ];
        let names = [
            "", "a", "b", "abc", "ab", "ax", "cx", "]", "-", "[a", "a-c", "abb", "abab", "a*", "é1", "ü", "xaxbxbx",
            "^", "a[b",
        ];
        for pattern in patterns {
            for name in names {
                let want: bool = sqlite.query_row("SELECT ?1 GLOB ?2", [name, pattern], |row| row.get(0)).unwrap();
                assert_eq!(TableFilter::new(&[pattern], &[]).matches(name), want, "{name:?} GLOB {pattern:?}");
            }
        }
    }

    #[test]
    fn names_have_no_case_and_exclusion_wins() {
        let filter = TableFilter::new(&["Order*", "users"], &["*_LOG"]);
        assert!(filter.matches("orders") && filter.matches("USERS"));
        assert!(!filter.matches("order_log") && !filter.matches("items"));
        assert!(TableFilter::default().matches("anything"));
    }
}
