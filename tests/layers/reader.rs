//! Reads Rust sources as far as the layer rule needs it: tokens without comments and literals, and the paths in them.

/// A word or a sign of the source; comments and literals are gone. `::` is one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) line: usize,
}

/// Splits a source into tokens.
pub(super) fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut index, mut line) = (Vec::new(), 0, 1);
    while index < chars.len() {
        let start = index;
        let c = at(index);
        if c == '/' && at(index + 1) == '/' {
            while index < chars.len() && at(index) != '\n' {
                index += 1;
            }
        } else if c == '/' && at(index + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(index), at(index + 1)) {
                    ('/', '*') => (depth, index) = (depth + 1, index + 2),
                    ('*', '/') => (depth, index) = (depth - 1, index + 2),
                    _ => index += 1,
                }
                if depth == 0 || index >= chars.len() {
                    break;
                }
            }
        } else if let Some(end) = raw_string_end(&chars, index) {
            index = end;
        } else if c == '"' {
            index += 1;
            while index < chars.len() && at(index) != '"' {
                index += if at(index) == '\\' { 2 } else { 1 };
            }
            index += 1;
        } else if c == '\'' && (at(index + 1) == '\\' || at(index + 2) == '\'') {
            // A character, not a lifetime. What follows a backslash may itself be a quote.
            index += if at(index + 1) == '\\' { 3 } else { 2 };
            while index < chars.len() && at(index) != '\'' {
                index += 1;
            }
            index += 1;
        } else if is_word(c) {
            while is_word(at(index)) {
                index += 1;
            }
            found.push(Token { text: chars.iter().skip(start).take(index - start).collect(), line });
        } else if c == ':' && at(index + 1) == ':' {
            index += 2;
            found.push(Token { text: "::".to_owned(), line });
        } else {
            index += 1;
            if !c.is_whitespace() {
                found.push(Token { text: c.to_string(), line });
            }
        }
        line += chars.iter().skip(start).take(index - start).filter(|c| **c == '\n').count();
    }
    found
}

/// Where the raw string that begins here ends, if one does.
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let continues_a_word = start > 0 && (at(start - 1).is_alphanumeric() || at(start - 1) == '_');
    let mut index = if at(start) == 'b' || at(start) == 'c' { start + 1 } else { start };
    if continues_a_word || at(index) != 'r' {
        return None;
    }
    index += 1;
    let hashes = chars.iter().skip(index).take_while(|c| **c == '#').count();
    index += hashes;
    if at(index) != '"' {
        return None;
    }
    index += 1;
    while index < chars.len() {
        if at(index) == '"' && (0..hashes).all(|hash| at(index + 1 + hash) == '#') {
            return Some(index + 1 + hashes);
        }
        index += 1;
    }
    Some(chars.len())
}

/// A path as written (`crate`, `log`, `Batch`), and the inline modules around it.
pub(super) struct Import {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
    pub(super) inline_modules: usize,
}

/// Reads the sources as a list of tokens.
pub(super) struct Reader {
    pub(super) tokens: Vec<Token>,
}

impl Reader {
    pub(super) fn text(&self, index: usize) -> &str {
        self.tokens.get(index).map_or("", |token| token.text.as_str())
    }

    pub(super) fn line(&self, index: usize) -> usize {
        self.tokens.get(index).map_or(0, |token| token.line)
    }

    fn is_word(&self, index: usize) -> bool {
        self.text(index).starts_with(|c: char| c.is_alphabetic() || c == '_')
    }

    /// The index after the bracket that closes the one at `open`.
    fn after_closing(&self, open: usize) -> usize {
        let mut depth = 0_usize;
        for index in open..self.tokens.len() {
            match self.text(index) {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                return index + 1;
            }
        }
        self.tokens.len()
    }

    /// The index after the item that begins at `index`: its block, or its semicolon.
    fn after_item(&self, mut index: usize) -> usize {
        while index < self.tokens.len() {
            match self.text(index) {
                "{" => return self.after_closing(index),
                ";" => return index + 1,
                "(" | "[" => index = self.after_closing(index),
                _ => index += 1,
            }
        }
        index
    }

    /// All paths outside of `#[cfg(test)]` items that may lead out of the module: those with `::`, and single names after `use`.
    pub(super) fn imports(&self) -> Vec<Import> {
        let (mut found, mut index) = (Vec::new(), 0);
        let mut blocks: Vec<bool> = Vec::new();
        while index < self.tokens.len() {
            if (0..7).map(|offset| self.text(index + offset)).eq(["#", "[", "cfg", "(", "test", ")", "]"]) {
                index = self.after_item(index + 7);
                continue;
            }
            match self.text(index) {
                "{" => blocks.push(index >= 2 && self.text(index - 2) == "mod"),
                "}" => drop(blocks.pop()),
                _ => {}
            }
            let begins_here = self.is_word(index) && (index == 0 || !matches!(self.text(index - 1), "::" | "."));
            let after_use = index > 0 && matches!(self.text(index - 1), "use" | "crate") && self.text(index) != "crate";
            // A leading `::` names a crate outright.
            let named_outright =
                self.text(index) == "::" && self.is_word(index + 1) && (index == 0 || !self.closes_a_path(index - 1));
            let start = if named_outright { index + 1 } else { index };
            if (begins_here && (self.text(index + 1) == "::" || after_use)) || named_outright {
                let inline_modules = blocks.iter().filter(|is_module| **is_module).count();
                index = self.path(start, &[], inline_modules, &mut found);
            } else {
                index += 1;
            }
        }
        found
    }

    /// Whether the token can stand before `::` inside of a path.
    fn closes_a_path(&self, index: usize) -> bool {
        matches!(self.text(index), ">" | "]" | ")")
            || (self.is_word(index)
                && !matches!(self.text(index), "use" | "in" | "return" | "as" | "dyn" | "impl" | "mut" | "pub"))
    }

    /// Reads the path, or the tree of paths, at `index` into `found`; returns the index after it.
    fn path(&self, mut index: usize, prefix: &[String], inline_modules: usize, found: &mut Vec<Import>) -> usize {
        let mut segments = prefix.to_vec();
        let line = self.line(index);
        loop {
            if self.text(index) == "{" {
                let end = self.after_closing(index);
                index += 1;
                while index + 1 < end {
                    index = if self.text(index) == "," {
                        index + 1
                    } else {
                        self.path(index, &segments, inline_modules, found)
                    };
                }
                return end;
            }
            if !self.is_word(index) {
                break;
            }
            segments.push(self.text(index).to_owned());
            index += 1;
            if self.text(index) != "::" || !(self.is_word(index + 1) || matches!(self.text(index + 1), "{" | "*")) {
                break;
            }
            index += 1;
        }
        if self.text(index) == "*" {
            segments.push("*".to_owned());
            index += 1;
        }
        if self.text(index) == "as" {
            index += 2;
        }
        found.push(Import { segments, line, inline_modules });
        // Whatever stands here, the caller must move on.
        if found.last().is_some_and(|import| import.segments.len() == prefix.len()) { index + 1 } else { index }
    }
}
