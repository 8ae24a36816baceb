//! The environment's `PODIUM_*` variables: one that no command reads is a typing error.

use super::Failure;
use clap::Command;
use std::collections::BTreeSet;

/// What the variables of this program begin with.
const PREFIX: &str = "PODIUM_";
/// Read by tests and benches, which run this program.
const OURS: &[&str] = &["PODIUM_DATA", "PODIUM_QWEN3_TOKENIZER"];

/// Refuses variables that no command reads, with the name that is nearest.
pub(super) fn check(command: &Command, names: impl Iterator<Item = String>) -> Result<(), Failure> {
    let known = known(command);
    let unknown = names
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name.as_str()))
        .find(|name| !OURS.contains(&name.as_str()) && !is_service_link(name));
    let Some(unknown) = unknown else { return Ok(()) };
    let nearest = known.iter().min_by_key(|name| distance(name, &unknown));
    let nearest = nearest.map_or_else(String::new, |name| format!("; the nearest name is {name}"));
    Err(Failure::usage(format!("{unknown}: no command reads this variable{nearest}")))
}

/// Every variable that a command's arguments read.
fn known(command: &Command) -> BTreeSet<String> {
    let commands = command.get_subcommands().flat_map(Command::get_arguments);
    let names = commands.chain(command.get_arguments()).filter_map(|argument| argument.get_env());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// Whether Kubernetes or Docker may have set it, for a service that is called `podium` or begins so.
fn is_service_link(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Letters to insert, delete or replace to make one name of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(name: &str) -> String {
        let result = check(&crate::cli::command(), std::iter::once(name.to_owned()));
        result.map_or_else(|failure| failure.message, |()| String::new())
    }

    #[test]
    fn a_variable_with_a_typing_error_is_an_error_that_names_the_nearest() {
        for (name, nearest) in [
            ("PODIUM_LISTN", "PODIUM_LISTEN"),
            ("PODIUM_PRIMRY", "PODIUM_PRIMARY"),
            ("PODIUM_LATENCY_BUDGET", "PODIUM_LATENCY_BUDGET_MS"),
            ("PODIUM_ADMINKEY", "PODIUM_ADMIN_KEY"),
        ] {
            let expected = format!("{name}: no command reads this variable; the nearest name is {nearest}");
            assert_eq!(complaint(name), expected);
        }
    }

    #[test]
    fn what_is_read_and_what_a_cluster_sets_is_none() {
        for name in [
            "PODIUM_LISTEN",
            "PODIUM_LEDGER",
            "PODIUM_DATA",
            "PODIUM_QWEN3_TOKENIZER",
            "PATH",
            "PODIUM_SERVICE_HOST",
            "PODIUM_SERVICE_PORT",
            "PODIUM_SERVICE_PORT_HTTP",
            "PODIUM_PORT",
            "PODIUM_PORT_8080_TCP",
            "PODIUM_PORT_8080_TCP_ADDR",
            "PODIUM_CANARY_SERVICE_HOST",
        ] {
            assert_eq!(complaint(name), "", "{name}");
        }
    }

    #[test]
    fn a_distance_counts_edits() {
        for (one, other, edits) in [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0)] {
            assert_eq!((distance(one, other), distance(other, one)), (edits, edits));
        }
    }
}
