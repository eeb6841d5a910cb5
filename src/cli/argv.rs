//! From the process's arguments to a command, with Marmot's way of writing options accepted.

use std::ffi::OsString;
use std::io::Write;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use super::args::Cli;
use super::exit::{Exit, Failure};

/// Reads the arguments, the program's name first. `Ok(None)`: help or the version was asked for and has been printed.
///
/// # Errors
/// A [`Failure`] with [`Exit::Usage`] that names the argument; output failures when help cannot be printed.
pub fn parse<I, A>(argv: I) -> Result<Option<Cli>, Failure>
where
    I: IntoIterator<Item = A>,
    A: Into<OsString>,
{
    let error = match Cli::try_parse_from(normalise(argv)) {
        Ok(cli) => return Ok(Some(cli)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = error.render().to_string();
            std::io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::output(&error))?;
            Ok(None)
        }
        _ => Err(usage(&error)),
    }
}

/// Turns `-db-path x` and `-db-path=x` (Marmot's style) into `--db-path`. Only known long names are touched, and nothing after `--`.
fn normalise<I, A>(argv: I) -> Vec<OsString>
where
    I: IntoIterator<Item = A>,
    A: Into<OsString>,
{
    let root = Cli::command();
    let known: Vec<&str> = std::iter::once(&root)
        .chain(root.get_subcommands())
        .flat_map(clap::Command::get_arguments)
        .filter_map(clap::Arg::get_long)
        .chain(["help", "version"])
        .collect();
    let mut options_ended = false;
    argv.into_iter()
        .map(|arg| {
            let arg: OsString = arg.into();
            options_ended |= arg == "--";
            let long = arg.to_str().and_then(|text| text.strip_prefix('-')).is_some_and(|text| {
                let name = text.split_once('=').map_or(text, |(name, _)| name);
                name.len() > 1 && known.contains(&name)
            });
            if !long || options_ended {
                return arg;
            }
            let mut double = OsString::from("-");
            double.push(&arg);
            double
        })
        .collect()
}

/// clap explains itself in a paragraph with usage; ours is what and where in one line, what to do in another.
fn usage(error: &clap::Error) -> Failure {
    let command = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => command_in_usage(&usage.to_string()),
        _ => "woodchuck".to_owned(),
    };
    let text = error.render().to_string();
    let message = if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        || error.kind() == ErrorKind::MissingSubcommand
    {
        "no command given".to_owned()
    } else {
        let paragraph = text.split("\n\n").next().unwrap_or(&text);
        let paragraph = paragraph.strip_prefix("error: ").unwrap_or(paragraph);
        paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: ").map(str::to_owned));
    let hint = match tip {
        Some(tip) => format!("{tip}; `{command} --help` lists all"),
        None => format!("`{command} --help` lists all commands and options"),
    };
    Failure { exit: Exit::Usage, message, hint: Some(hint) }
}

/// `Usage: woodchuck run --x` → `woodchuck run`: which help to point at.
fn command_in_usage(usage: &str) -> String {
    let root = Cli::command();
    let named = root
        .get_subcommands()
        .map(clap::Command::get_name)
        .find(|name| usage.split_whitespace().skip_while(|word| *word != "woodchuck").nth(1) == Some(name));
    match named {
        Some(name) => format!("woodchuck {name}"),
        None => "woodchuck".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn single_dash_long_options_become_double_dash() {
        let argv = ["woodchuck", "run", "-db-path", "a.db", "-shards=4", "-h", "-x", "--", "-db-path"];
        let want = ["woodchuck", "run", "--db-path", "a.db", "--shards=4", "-h", "-x", "--", "-db-path"];
        assert_eq!(normalise(argv), want.map(OsString::from));
    }

    #[test]
    fn a_usage_error_is_one_line_and_a_hint() {
        let failure = parse(["woodchuck", "run", "--shard", "4"]).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("--shard"), "{failure}");
        assert!(failure.hint.as_deref().unwrap().contains("--shards"), "{failure}");
        let failure = parse(["woodchuck"]).unwrap_err();
        assert_eq!(failure.message, "no command given");
    }
}
