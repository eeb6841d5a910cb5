//! `wait`: until what was committed here is applied elsewhere.

use std::io::Write;
use std::time::Duration;

use super::args::WaitArgs;
use super::exit::Failure;
use crate::node::{ControlAnswer, ControlQuestion, ask_node};

/// Returns when everything that was committed before is applied on the nodes asked for.
///
/// # Errors
/// [`Failure`] when it is not within the time, naming what is waited for; when no node runs.
pub(super) fn wait(args: &WaitArgs) -> Result<(), Failure> {
    let timeout_ms = u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX);
    let question = ControlQuestion::Wait { node: args.node, timeout_ms };
    match ask_node(&args.which.state_dir(), &question, args.timeout)? {
        ControlAnswer::Applied { nodes } => {
            let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
            let text = match nodes.as_slice() {
                [] => "on the log; no other node is connected\n".to_owned(),
                [one] => format!("applied on node {one}\n"),
                all => format!("applied on nodes {}\n", all.join(", ")),
            };
            std::io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::output(&error))
        }
        ControlAnswer::Late { what } => {
            Err(Failure::failed(format_args!("still waiting for {what} after {:?}", args.timeout))
                .hint("look at woodchuck status there, or give a longer --timeout"))
        }
        ControlAnswer::Failed { what } => Err(Failure::failed(what)),
        ControlAnswer::Verified(_) => Err(Failure::failed("the node answers another question")),
    }
}

/// A time as people write it: `5s`, `300ms`, `2m`, or seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "it must begin with a whole number".to_owned())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        other => Err(format!("{other:?} is no unit: use ms, s or m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("s").is_err() && duration("5h").is_err() && duration("-1s").is_err());
    }
}
