//! How a command ends: exit codes, and errors as people read them.
//!
//! An error is two lines on stderr: what failed and where, then what to do about it.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use super::output::printable;

/// The exit codes. They are part of the interface: scripts tell by them whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed.
    Failed,
    /// 2: wrong usage: an option, a configuration key or a variable.
    Usage,
    /// 3: refused, because going on could have lost somebody's data.
    Refused,
}

impl Exit {
    /// The number that the process ends with.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Why a command did not do what it was asked, for the person who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the process ends with.
    pub exit: Exit,
    /// What failed and where, in one line. Empty: nothing is printed.
    pub message: String,
    /// What to do about it, in one line.
    pub hint: Option<String>,
}

impl Failure {
    /// Makes a failure of the work itself (exit code 1).
    pub fn failed(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Failed, message: message.to_string(), hint: None }
    }

    /// Makes a failure of usage (exit code 2).
    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Usage, message: message.to_string(), hint: None }
    }

    /// Makes a refusal that protects data (exit code 3).
    pub fn refused(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Refused, message: message.to_string(), hint: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.hint = Some(hint.to_string());
        self
    }

    /// Makes a failure of an error and its causes, joined by colons.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Failure {
        /// A chain longer than this is a cycle.
        const CAUSES_MAX: usize = 16;
        let mut message = error.to_string();
        let causes = std::iter::successors(error.source(), |cause| cause.source()).take(CAUSES_MAX);
        for cause in causes {
            let cause = cause.to_string();
            // Many errors already repeat their cause.
            if !message.contains(&cause) {
                message.push_str(": ");
                message.push_str(&cause);
            }
        }
        Failure::failed(message)
    }

    /// Makes the failure of a write to standard output. A reader that has seen enough (`woodchuck tail … | head`) ends the command
    /// quietly and as done. What the system did not say is of the writer itself: it has no form for something.
    #[must_use]
    pub fn output(error: &io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure { exit: Exit::Done, message: String::new(), hint: None };
        }
        if error.get_ref().is_some() {
            let failure = Failure::failed(error);
            return match error.kind() {
                io::ErrorKind::Unsupported => failure.hint(
                    "--exclude-tables leaves a table out; --format json and pretty show what a script cannot say",
                ),
                _ => failure,
            };
        }
        Failure::failed(format_args!("cannot write to standard output: {error}"))
            .hint("look at where the output goes: a full disk, a closed terminal")
    }

    /// Prints the failure on stderr and returns the code to end with.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            // With stderr gone there is nobody left to tell.
            let _ = io::stderr().write_all(format!("{self}\n").as_bytes());
        }
        self.exit.into()
    }
}

/// `error: …`, and on a second line `hint: …` when there is one.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", one_line(&self.message))?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", one_line(hint)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// Other programs' messages may hold line breaks; ours stay one line, so that logs can be searched. Names in them can be anybody's.
fn one_line(text: &str) -> String {
    printable(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_two_lines() {
        let failure = Failure::refused("app.db has rows\nof its own").hint("use --replace");
        assert_eq!(failure.to_string(), "error: app.db has rows of its own\nhint: use --replace");
        assert_eq!(failure.exit.code(), 3);
    }

    #[test]
    fn a_closed_pipe_is_done_and_says_nothing() {
        let failure = Failure::output(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Done, ""));
    }

    /// A table that a script cannot be made of was called a failure of the output, with the advice to look for a full disk.
    #[test]
    fn only_what_the_system_says_is_a_failure_of_the_output() {
        let full = Failure::output(&io::Error::from_raw_os_error(28)).to_string();
        assert!(full.contains("cannot write to standard output") && full.contains("a full disk"), "{full}");
        let ours =
            Failure::output(&io::Error::new(io::ErrorKind::Unsupported, "no script can make table t")).to_string();
        assert!(ours.starts_with("error: no script can make table t\nhint: --exclude-tables"), "{ours}");
    }
}
