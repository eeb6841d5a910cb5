//! SQL text as tokens, as far as reading names out of statements that SQLite has accepted needs it.

/// The name or text that a token stands for: without quotes, if it has any.
#[must_use]
pub fn unquote(token: &str) -> String {
    for (open, close) in [('"', '"'), ('`', '`'), ('\'', '\''), ('[', ']')] {
        if let Some(inner) = token.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)) {
            return if open == '[' {
                inner.to_owned()
            } else {
                inner.replace(&format!("{close}{close}"), &close.to_string())
            };
        }
    }
    token.to_owned()
}

/// SQL as tokens with their offsets; spaces and comments are skipped.
#[derive(Debug, Clone)]
pub struct Tokens<'a> {
    text: &'a str,
    offset: usize,
    open_comment: Option<&'static str>,
}

impl<'a> Tokens<'a> {
    /// Begins at the first byte.
    #[must_use]
    pub fn new(text: &'a str) -> Tokens<'a> {
        Tokens { text, offset: 0, open_comment: None }
    }

    /// The offset of the byte behind the last token, or behind what was skipped after it.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// How the comment began that reaches to the end of the text; known when the tokens have ended.
    #[must_use]
    pub fn open_comment(&self) -> Option<&'static str> {
        self.open_comment
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.offset..).unwrap_or("")
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.offset += rest.len() - trimmed.len();
            if trimmed.starts_with("--") {
                self.offset += self.comment_length(trimmed.find('\n'), trimmed, "--");
            } else if trimmed.starts_with("/*") {
                let end = trimmed.get(2..).and_then(|body| body.find("*/")).map(|end| end + 4);
                self.offset += self.comment_length(end, trimmed, "/*");
            } else {
                return;
            }
        }
    }
}

impl Tokens<'_> {
    fn comment_length(&mut self, end: Option<usize>, rest: &str, opening: &'static str) -> usize {
        if end.is_none() {
            self.open_comment = Some(opening);
        }
        end.unwrap_or(rest.len())
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<(usize, &'a str)> {
        self.skip_blank();
        let rest = self.rest();
        let first = rest.chars().next()?;
        let length = match first {
            '"' | '`' | '\'' => quoted_length(rest, first),
            '[' => rest.find(']').map_or(rest.len(), |end| end + 1),
            c if in_word(c) => rest.find(|c| !in_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let start = self.offset;
        self.offset += length;
        Some((start, rest.get(..length)?))
    }
}

fn in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// Length of a quoted token with both quotes; a doubled quote stands for itself.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((index, c)) = chars.next() {
        if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return index + 1;
        }
    }
    text.len()
}
