//! Floor 8: the commands, one file each.

mod compare;
mod config;
mod cores;
mod costs;
mod deployments;
mod distill;
mod files;
mod follow;
mod load;
mod memory;
mod models;
mod place;
mod pool;
mod rank;
mod repository;
mod route_specs;
mod routes;
mod serve;
mod server_fields;
mod shelf;
mod shown;
mod simulate;
mod specs;
mod tier;
mod truncation;
mod variables;

use crate::backend::Precision;
use crate::base::FileError;
use crate::engine::StartError;
use crate::eval::SetError;
use clap::builder::StyledStr;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use shown::Shown;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Podium: a reranking inference server.
///
/// It scores candidates with a cross-encoder within each request's latency budget, states which
/// model answered and why, and puts a price on every answer.
#[derive(Parser)]
#[command(name = "podium", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The commands; each file documents its arguments.
#[derive(Subcommand)]
enum Command {
    Serve(serve::Args),
    Rank(rank::Args),
    Compare(compare::Args),
    Costs(costs::Args),
    Distill(distill::Args),
    Load(load::Args),
    Models(models::Args),
    Simulate(simulate::Args),
}

/// Reads a precision from a command line.
fn precision(name: &str) -> Result<Precision, String> {
    let found = Precision::ALL.into_iter().find(|precision| precision.name() == name);
    found.ok_or_else(|| format!("one of {}", Precision::ALL.map(Precision::name).join(", ")))
}

/// Why a command failed, and the exit code that says so (BSD's `sysexits.h`).
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The command line or the configuration is wrong.
    fn usage(message: impl Into<String>) -> Self {
        Self { code: 64, message: message.into() }
    }

    /// The input's content is wrong.
    fn data(message: impl Into<String>) -> Self {
        Self { code: 65, message: message.into() }
    }

    /// A file cannot be read.
    fn input(message: impl Into<String>) -> Self {
        Self { code: 66, message: message.into() }
    }

    /// A port, a model or a device is not available.
    fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 69, message: message.into() }
    }

    /// The engine did not start: by a fault of a model's files, or of the machine.
    fn not_ready(error: StartError) -> Self {
        let message = error.to_string();
        match error {
            StartError::Unfit { .. } => Self::usage(message),
            _ => Self::unavailable(message),
        }
    }

    /// A bug of ours.
    fn internal(message: impl Into<String>) -> Self {
        Self { code: 70, message: message.into() }
    }

    /// A measurement is not valid; a repetition may be.
    fn temporary(message: impl Into<String>) -> Self {
        Self { code: 75, message: message.into() }
    }

    /// Output cannot be written.
    fn output(message: impl Into<String>) -> Self {
        Self { code: 74, message: message.into() }
    }
}

/// Writes to standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    printed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// The result of writing to standard output. A closed pipe (`| head`) is not a failure.
fn printed(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| Failure::output(format!("standard output: {error}"))),
    }
}

/// Checks, before the work, that a report can be written to a path.
fn writable(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
        true => Err(Failure::output(format!(
            "{}: its folder does not exist, or it is a directory",
            path.display()
        ))),
        false => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::output(format!("{}: {error}", path.display())))
}

fn file_failure(error: &FileError) -> Failure {
    match error {
        FileError::Unreadable { .. } => Failure::input(error.to_string()),
        FileError::Line { .. } => Failure::data(error.to_string()),
    }
}

fn set_failure(error: &SetError) -> Failure {
    match error {
        SetError::File(error) => file_failure(error),
        SetError::Unknown { .. } | SetError::Empty { .. } => Failure::data(error.to_string()),
    }
}

/// The real name of a folder, also for paths like `.`.
fn folder_name(folder: &Path) -> Option<String> {
    let whole = folder.canonicalize().ok();
    let name = folder.file_name().or_else(|| whole.as_deref()?.file_name())?;
    Some(name.to_string_lossy().into_owned())
}

/// The commands, with help that breaks its lines where the terminal ends.
fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        let text = |text: Option<&StyledStr>| reflowed(&text.map(ToString::to_string).unwrap_or_default());
        let about = text(command.get_about());
        let long = text(command.get_long_about().or(command.get_about()));
        command.about(about).long_about(long)
    })
}

/// Joins the lines of each paragraph; indented ones, which are examples, stay.
fn reflowed(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let goes_on = !line.is_empty() && !line.starts_with("    ");
        match lines.last_mut().filter(|last| goes_on && !last.is_empty() && !last.starts_with("    ")) {
            Some(last) => *last = format!("{last} {line}"),
            None => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let command = command();
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    if let Err(Failure { code, message }) = variables::check(&command, names) {
        eprintln!("podium: {message}");
        return ExitCode::from(code);
    }
    let parsed = command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Rank(args) => rank::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Costs(args) => costs::run(args),
        Command::Distill(args) => distill::run(args),
        Command::Load(args) => load::run(args),
        Command::Models(args) => models::run(args),
        Command::Simulate(args) => simulate::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            eprintln!("podium: {message}");
            ExitCode::from(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_breaks_no_line_within_a_sentence() {
        let command = command();
        for sub in command.get_subcommands() {
            let name = sub.get_name();
            let about = sub.get_about().unwrap().to_string();
            assert_eq!(about.lines().count(), 1, "{name}: {about}");
            let long = sub.get_long_about().map(|text| text.to_string()).unwrap_or_default();
            let lines: Vec<&str> = long.lines().collect();
            for pair in lines.windows(2) {
                let is_text = |line: &str| !line.is_empty() && !line.starts_with("    ");
                assert!(!(is_text(pair[0]) && is_text(pair[1])), "{name}: {pair:?}");
            }
            // An example that is wider than a terminal would be broken.
            let widest =
                lines.iter().filter(|line| line.starts_with("    ")).map(|line| line.chars().count());
            assert!(widest.max().unwrap_or(0) <= 80, "{name}: {long}");
        }
    }

    #[test]
    fn paragraphs_are_joined_and_examples_are_not() {
        let text = "One\ntwo.\n\nThree\nfour.\n\n    podium a\n    podium b\n\nFive.";
        assert_eq!(reflowed(text), "One two.\n\nThree four.\n\n    podium a\n    podium b\n\nFive.");
    }
}
