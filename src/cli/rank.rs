//! `podium rank`: orders lines by a query, without a server.

use super::config::Config;
use super::tier::TierConfig;
use super::truncation::TruncationArgs;
use super::{Failure, pool};
use crate::backend::Precision;
use crate::base::{TenantId, line_text};
use crate::engine::{BooksSetup, Caller, Clock, Engine, Handle};
use crate::model::BUNDLED;
use crate::rerank::{Policy, Ranked, Refusal, Request, ScoreForm, Truncated, rank};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, IsTerminal, Write, stdin, stdout};
use std::path::PathBuf;
use std::sync::Arc;

/// Documents that are scored together; the progress bar moves after each group.
const GROUP: usize = 64;

/// Orders lines by a query, without a server.
///
/// Candidates are lines of the files or of standard input. Empty lines are skipped, and the
/// printed index counts from 0 without them. With --jsonl each line is a whole request, {"query":
/// "...", "documents": ["...", ...]}, which may have an "instruction" of its own.
///
///     printf 'Berlin has 3.5 million inhabitants.\nBerlin has museums.\n' |
///         podium rank --query 'how many people live in berlin?'
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// The model that scores: a directory in Hugging Face layout, a hub id (owner/name or owner/name@revision), or
    /// `bundled`, the small model that is part of the program. No configuration file is read.
    #[arg(long, visible_alias = "model", env = "PODIUM_PRIMARY")]
    #[arg(value_name = "DIR_OR_HUB_ID", default_value = BUNDLED)]
    primary: String,
    /// The query.
    #[arg(long, short, required_unless_present = "jsonl", conflicts_with = "jsonl")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    query: Option<String>,
    /// The task in words, for a model that reads one in its prompt. Without it the model's own applies.
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
    /// Reads whole requests, one JSON object per line.
    #[arg(long)]
    jsonl: bool,
    /// The precision of the model: auto (int8 if it is faster and keeps a sample's order, else float), float (f16 on a GPU;
    /// else bf16 if measured faster than f32), f32, f16, bf16 or int8.
    #[arg(long, value_name = "PRECISION", default_value = "auto", value_parser = super::precision)]
    precision: Precision,
    /// Prints only the best N.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top_n: Option<u32>,
    /// Prints logits instead of probabilities.
    #[arg(long)]
    logits: bool,
    /// Prints one JSON object per request.
    #[arg(long)]
    json: bool,
    /// Uses a model without scoring its golden pairs (`golden.json`) first; the file is not read.
    #[arg(long)]
    no_self_check: bool,
    #[command(flatten)]
    truncation: TruncationArgs,
    /// The input files; `-` is standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// One line of --jsonl.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    query: String,
    documents: Vec<String>,
    instruction: Option<String>,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let model = TierConfig { precision: args.precision, ..TierConfig::new(args.primary.clone()) };
    let config = Config { primary: Some(model), self_check: !args.no_self_check, ..Config::default() };
    let setup = pool::setup(&config, Clock::start(), BooksSetup::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime needs nothing");
    runtime.block_on(async {
        let mut engine = Engine::start(setup).map_err(|error| Failure::usage(error.to_string()))?;
        engine.ready().await.map_err(Failure::not_ready)?;
        let handle = engine.handle();
        let own = args.instruction.as_deref();
        if own.is_some() {
            tell_ignored(&handle, "--instruction");
        }
        if args.jsonl {
            let mut is_told = own.is_some();
            for line in lines(&args.files)? {
                let (place, text) = line?;
                let Line { query, documents, instruction } = serde_json::from_str(&text)
                    .map_err(|error| Failure::data(format!("{place}: {error}")))?;
                if instruction.is_some() && !is_told {
                    tell_ignored(&handle, &format!("{place}: `instruction`"));
                    is_told = true;
                }
                one(&args, &handle, (instruction.as_deref().or(own), &query), &documents).await?;
            }
            return Ok(());
        }
        let query = args.query.clone().expect("clap asks for a query where there is no --jsonl");
        let documents =
            lines(&args.files)?.map(|line| line.map(|(_, text)| text)).collect::<Result<Vec<_>, _>>()?;
        one(&args, &handle, (own, &query), &documents).await
    })
}

/// Says that an instruction has no effect, if so.
fn tell_ignored(handle: &Handle, what: &str) {
    let models = handle.models();
    if let Some(model) = models.first().filter(|model| !model.takes_instruction) {
        eprintln!("podium: {what} was ignored: the prompt of `{}` has no place for one", model.name);
    }
}

/// One line of --json.
#[derive(Serialize)]
struct Order<'a> {
    query: &'a str,
    results: Vec<RankedLine<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<Truncated>,
}

#[derive(Serialize)]
struct RankedLine<'a> {
    index: usize,
    score: f32,
    document: &'a str,
}

impl<'a> RankedLine<'a> {
    fn of(Ranked { index, score }: Ranked, documents: &'a [String]) -> Self {
        Self { index, score, document: &documents[index] }
    }
}

/// Scores one request in groups and prints the ranking.
async fn one(
    args: &Args,
    handle: &Handle,
    (instruction, query): (Option<&str>, &str),
    documents: &[String],
) -> Result<(), Failure> {
    let bar = match documents.len() > GROUP && std::io::stderr().is_terminal() {
        true => ProgressBar::new(documents.len() as u64),
        false => ProgressBar::hidden(),
    };
    let mut logits = Vec::with_capacity(documents.len());
    let mut truncated = Truncated::default();
    for group in documents.chunks(GROUP) {
        let caller = Caller { tenant: TenantId(0), arrived: handle.now(), policy: Policy::Full };
        let request = Request {
            instruction: instruction.map(str::to_owned),
            truncation: args.truncation.truncation(),
            ..Request::new(query, group)
        };
        let outcome = handle.rank(Arc::new(request), caller).await;
        let outcome = outcome.map_err(|refusal| refused(refusal, logits.len()))?;
        logits.extend(outcome.scores);
        let Truncated { documents, query_tokens } = outcome.receipt.truncated;
        truncated.documents += documents;
        truncated.query_tokens = truncated.query_tokens.max(query_tokens);
        bar.inc(group.len() as u64);
    }
    bar.finish_and_clear();
    if truncated != Truncated::default() {
        let Truncated { documents, query_tokens } = truncated;
        eprintln!(
            "podium: not all was read: {documents} documents lost tokens, and the query lost {query_tokens} \
             (see --truncation)"
        );
    }
    let form = if args.logits { ScoreForm::Logit } else { ScoreForm::Probability };
    let ranked = rank(&logits, form, args.top_n.map(|top_n| top_n as usize))
        .map_err(|error| Failure::internal(error.to_string()))?;
    let order = Order {
        query,
        results: ranked.iter().map(|&one| RankedLine::of(one, documents)).collect(),
        truncated: Some(truncated).filter(|truncated| *truncated != Truncated::default()),
    };
    super::printed(print(args.json, &order))
}

/// A refusal names a document by its place in its group; here by its place among all.
fn refused(refusal: Refusal, before: usize) -> Failure {
    let (Refusal::Invalid { field, message } | Refusal::TooLong { field, message }) = refusal else {
        return Failure::data(refusal.to_string());
    };
    let place =
        field.strip_prefix("documents[").and_then(|rest| rest.strip_suffix(']')?.parse::<usize>().ok());
    let field = place.map_or(field, |place| format!("documents[{}]", before + place));
    Failure::data(format!("{field}: {message}"))
}

fn print(as_json: bool, order: &Order) -> std::io::Result<()> {
    let mut out = stdout().lock();
    if as_json {
        serde_json::to_writer(&mut out, order)?;
        writeln!(out)?;
    } else {
        for RankedLine { index, score, document } in &order.results {
            writeln!(out, "{score:>9.6}\t{index}\t{document}")?;
        }
    }
    out.flush()
}

type NumberedLine = Result<(String, String), Failure>;

/// The lines that are not empty, with their positions.
fn lines(files: &[PathBuf]) -> Result<impl Iterator<Item = NumberedLine>, Failure> {
    let standard = [PathBuf::from("-")];
    let files = if files.is_empty() { &standard } else { files };
    let mut sources: Vec<(String, Box<dyn BufRead>)> = Vec::new();
    for file in files {
        if file.as_os_str() == "-" {
            sources.push(("standard input".to_owned(), Box::new(BufReader::new(stdin()))));
        } else {
            if file.is_dir() {
                return Err(Failure::input(format!("{}: is a directory", file.display())));
            }
            let opened = std::fs::File::open(file)
                .map_err(|error| Failure::input(format!("{}: {error}", file.display())))?;
            sources.push((file.display().to_string(), Box::new(BufReader::new(opened))));
        }
    }
    let numbered = sources.into_iter().flat_map(|(name, source)| {
        source.split(b'\n').zip(1..).map(move |(line, number): (_, u64)| {
            let place = format!("{name}:{number}");
            let text = match &line {
                Ok(line) => line_text(line).map(str::to_owned),
                Err(error) => Err(error.to_string()),
            };
            match text {
                Ok(text) => Ok((place, text)),
                Err(reason) => Err(Failure::data(format!("{place}: {reason}"))),
            }
        })
    });
    Ok(numbered.filter(|line| !matches!(line, Ok((_, text)) if text.trim().is_empty())))
}
