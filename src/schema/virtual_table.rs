//! What the statement of a virtual table says: its module, and where the rows are that it shows.
//!
//! Virtual tables are never opened to find out: that would run code, and modules and tokenizers may be the application's.

use super::tokens::{Tokens, unquote};

/// The modules whose shadow tables are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// FTS5.
    Fts5,
    /// FTS3 and FTS4.
    Fts34,
    /// R-Tree, its integer form, and Geopoly.
    Rtree,
    /// Any other.
    Other,
}

/// Where the rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In a shadow table of its own, as they were written.
    Own,
    /// In another table or view: this one is an index of it.
    External {
        /// The table or view.
        table: String,
        /// The column that is the rowid here, if it is named.
        rowid: Option<String>,
    },
    /// Nowhere: an index alone.
    None,
    /// In a form that only the module reads.
    Packed,
}

/// A virtual table, from its CREATE statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualTable {
    /// The name as declared.
    pub name: String,
    /// The module's name as declared.
    pub module_name: String,
    /// The module.
    pub module: Module,
    /// Where its rows are.
    pub content: Content,
    /// The columns, in order, where the module is full-text search.
    pub columns: Vec<String>,
}

impl VirtualTable {
    /// Reads a CREATE VIRTUAL TABLE statement as SQLite stores it; `None` if it is none.
    #[must_use]
    pub fn parse(name: &str, sql: &str) -> Option<VirtualTable> {
        let mut tokens = Tokens::new(sql);
        let is_using = |token: &str| token.eq_ignore_ascii_case("using");
        for word in ["create", "virtual", "table"] {
            tokens.next().filter(|(_, token)| token.eq_ignore_ascii_case(word))?;
        }
        // The name may itself be the word.
        tokens.next()?;
        tokens.find(|(_, token)| is_using(token))?;
        let module_name = unquote(tokens.next()?.1);
        let module = match module_name.to_ascii_lowercase().as_str() {
            "fts5" => Module::Fts5,
            "fts3" | "fts4" => Module::Fts34,
            "rtree" | "rtree_i32" | "geopoly" => Module::Rtree,
            _ => Module::Other,
        };
        let arguments = arguments(sql, tokens);
        let (content, columns) = match module {
            Module::Fts5 | Module::Fts34 => full_text(module, &arguments),
            Module::Rtree | Module::Other => (Content::Packed, Vec::new()),
        };
        Some(VirtualTable { name: name.to_owned(), module_name, module, content, columns })
    }

    /// What follows the table's name and `_` in the names of its shadow tables.
    #[must_use]
    pub fn shadow_suffixes(&self) -> &'static [&'static str] {
        match self.module {
            Module::Fts5 => &["data", "idx", "content", "docsize", "config"],
            Module::Fts34 => &["content", "segments", "segdir", "docsize", "stat"],
            Module::Rtree => &["node", "rowid", "parent"],
            Module::Other => &[],
        }
    }

    /// The names of its shadow tables, in lower case, whether it has them or not.
    pub fn shadows(&self) -> impl Iterator<Item = String> {
        let name = self.name.to_ascii_lowercase();
        self.shadow_suffixes().iter().map(move |suffix| format!("{name}_{suffix}"))
    }

    /// Whether it is an index that only follows other tables: it can be kept in step with them on every node.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self.content, Content::External { .. } | Content::None) || self.module == Module::Rtree
    }
}

/// The text between the brackets behind the module's name, cut at its commas.
fn arguments<'a>(sql: &'a str, mut tokens: Tokens<'a>) -> Vec<&'a str> {
    let mut found = Vec::new();
    if tokens.next().is_none_or(|(_, token)| token != "(") {
        return found;
    }
    let (mut depth, mut start) = (0_usize, tokens.offset());
    for (offset, token) in tokens {
        match token {
            "(" => depth += 1,
            ")" if depth > 0 => depth -= 1,
            "," | ")" if depth == 0 => {
                found.extend(sql.get(start..offset).map(str::trim));
                start = offset + 1;
                if token == ")" {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// Columns and options of full-text search. Source: <https://sqlite.org/fts5.html>, section 4, and <https://sqlite.org/fts3.html>, section 6.
fn full_text(module: Module, arguments: &[&str]) -> (Content, Vec<String>) {
    let (mut content, mut columns, mut rowid) = (Content::Own, Vec::new(), None);
    for argument in arguments.iter().filter(|argument| !argument.is_empty()) {
        let mut tokens = Tokens::new(argument);
        let first = tokens.next().map_or("", |(_, token)| token);
        let second = tokens.next();
        if second.is_some_and(|(_, token)| token == "=") {
            let value = unquote(argument.get(tokens.offset()..).unwrap_or_default().trim());
            match first.to_ascii_lowercase().as_str() {
                "content" if value.is_empty() => content = Content::None,
                "content" => content = Content::External { table: value, rowid: None },
                "content_rowid" => rowid = Some(value),
                // The content then has more than the columns, or other bytes than were written.
                "locale" if value != "0" => content = Content::Packed,
                "languageid" | "compress" | "uncompress" => content = Content::Packed,
                _ => {}
            }
            continue;
        }
        let is_tokenizer = module == Module::Fts34 && first.eq_ignore_ascii_case("tokenize") && second.is_some();
        if !is_tokenizer {
            columns.push(unquote(first));
        }
    }
    if let Content::External { rowid: of, .. } = &mut content {
        *of = rowid;
    }
    // Without a column FTS3 makes one.
    if columns.is_empty() && module == Module::Fts34 {
        columns.push("content".to_owned());
    }
    (content, columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(sql: &str) -> VirtualTable {
        VirtualTable::parse("f", sql).unwrap()
    }

    #[test]
    fn columns_and_options_are_told_apart() {
        let table = parse(
            "CREATE VIRTUAL TABLE f USING fts5(title, \"the body\" UNINDEXED, [x], tokenize = 'porter ascii', prefix='2 3')",
        );
        assert_eq!(table.module, Module::Fts5);
        assert_eq!(table.columns, ["title", "the body", "x"]);
        assert_eq!(table.content, Content::Own);
        let table = parse("CREATE VIRTUAL TABLE \"using\" USING fts5 (a,b,content='notes',content_rowid=\"note id\")");
        let content = Content::External { table: "notes".into(), rowid: Some("note id".into()) };
        assert_eq!((table.content, table.columns.len()), (content, 2));
        assert_eq!(parse("CREATE VIRTUAL TABLE f USING fts5(a, content='')").content, Content::None);
        assert_eq!(
            parse("CREATE VIRTUAL TABLE f USING fts5(a, content=\"\", contentless_delete=1)").content,
            Content::None
        );
        assert_eq!(parse("CREATE VIRTUAL TABLE f USING fts5(a, locale=1)").content, Content::Packed);
        let table = parse(
            "CREATE VIRTUAL TABLE f USING FTS4(subject TEXT, body VARCHAR(20), tokenize=porter \"x,y\", matchinfo=fts3)",
        );
        assert_eq!((table.module, table.columns), (Module::Fts34, vec!["subject".to_owned(), "body".to_owned()]));
        assert_eq!(parse("CREATE VIRTUAL TABLE f USING fts3(a, tokenize simple)").columns, ["a"]);
        assert_eq!(parse("CREATE VIRTUAL TABLE f USING fts3").columns, ["content"]);
        assert_eq!(parse("CREATE VIRTUAL TABLE r USING rtree(id, x0, x1)").content, Content::Packed);
        assert!(VirtualTable::parse("t", "CREATE TABLE t(a)").is_none());
    }
}
