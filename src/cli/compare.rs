//! `podium compare`: quality and cost of each way to answer.

use super::pool::open_given;
use super::server_fields::{ServerFields, client_limits};
use super::truncation::TruncationArgs;
use super::{Failure, Shown, folder_name};
use crate::backend::Precision;
use crate::compare::{
    CompareError, Inputs, Plan, Row, Server, TrecRun, compare, file_name, html, svg, table,
};
use crate::eval::{CacheError, CachedScorerError, Judged};
use crate::load::{Kind, Target};
use crate::model::BUNDLED;
use crate::wire::Dialect;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Compares ways to answer on judged sets: the primary on all candidates, the primary on the
/// fallback's best, the fallback alone, latency budgets, and each of these mixed with the first
/// stage.
///
/// Quality is measured on the sets. Device time, cost and latency come from a simulation of the
/// server's scheduler with the speed of both models on this machine. Scores are stored in --work,
/// so that no pair is scored twice and an interrupted run continues.
///
/// A set is a folder with corpus.jsonl, queries.jsonl and qrels.tsv in BEIR's format, and
/// bm25.run, the first stage's TREC run.
///
/// Servers, Podium or a peer, can be compared too. They are asked over HTTP; the report has the
/// quality of their order, the measured latency, and the cost in their receipts.
///
///     podium compare cranfield cisi --primary ./ce --html report.html
///     podium compare cranfield --primary ./ce \
///         --server url=http://localhost:8081,dialect=tei
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// Judged sets.
    #[arg(value_name = "SET_DIR", required = true)]
    sets: Vec<PathBuf>,
    /// The large model: a directory in Hugging Face layout, or a hub id.
    #[arg(long, env = "PODIUM_PRIMARY", value_name = "DIR_OR_HUB_ID")]
    primary: String,
    /// The small model.
    #[arg(long, value_name = "DIR_OR_HUB_ID", default_value = BUNDLED)]
    fallback: String,
    /// The precision of both models: auto (int8 if it is faster and keeps a sample's order, else float), float (f16 on a
    /// GPU; else bf16 if measured faster than f32), f32, bf16 or int8.
    #[arg(long, value_name = "PRECISION", default_value = "auto", value_parser = super::precision)]
    precision: Precision,
    /// The numbers of the fallback's best candidates that the primary scores.
    #[arg(long, value_name = "K", value_delimiter = ',', default_value = "5,10,20,50")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    top_k: Vec<u32>,
    /// Latency budgets in milliseconds.
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "50,200,1000")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    budgets_ms: Vec<u64>,
    /// Judged sets to tune the weight of the first stage; without any nothing is mixed.
    #[arg(long, value_name = "SET_DIR", num_args = 1..)]
    tune: Vec<PathBuf>,
    /// A server to ask; repeat the flag for several. Fields with commas between them: url=, dialect= (default podium;
    /// as in `podium load`), model=, name= in reports, and options of its requests: budget=MS,
    /// policy=auto|full|topk|fallback, top-k=N, priority=low|normal|high, key-env=VARIABLE (with an API key). A
    /// server's answers are not stored.
    #[arg(long, value_name = "FIELDS")]
    server: Vec<String>,
    /// The timeout of a request to a server.
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    timeout_ms: u64,
    /// Requests per second of the simulated load and to servers [default: half of what the primary can answer in full;
    /// to servers one after the other].
    #[arg(long, value_name = "RATE")]
    rate: Option<f64>,
    /// The price of the device in dollars per hour.
    #[arg(long, value_name = "DOLLARS", default_value_t = 0.05)]
    dollars_per_hour: f64,
    /// Requests per month.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    monthly_requests: u64,
    /// The share of the primary's quality that a recommended way must keep.
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    keep: f64,
    /// Threads of each model [default: all cores, one more than a server's lane].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    truncation: TruncationArgs,
    /// The folder where scores are stored.
    #[arg(long, value_name = "DIR", default_value = "compare.work")]
    work: PathBuf,
    /// Writes a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes the plot of quality against cost to this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Writes the figures as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a TREC run of each set and way to this folder, except for budgets, which have no order of their own.
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// The seed of all random choices.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
}

/// Most connections to a server.
const CONNECTIONS: u32 = 256;
/// Most bytes of a server's name, which is part of file names.
const NAME_MAX: usize = 100;

pub(super) fn run(args: Args) -> Result<(), Failure> {
    check(&args)?;
    let inputs = Inputs {
        sets: read(&args.sets)?,
        tune: read(&args.tune)?,
        primary: open_given("--primary", &args.primary)?,
        fallback: open_given("--fallback", &args.fallback)?,
        servers: args
            .server
            .iter()
            .map(|fields| server(fields, args.timeout_ms))
            .collect::<Result<_, _>>()?,
    };
    // Names of ways become names of files.
    let mut names = BTreeSet::new();
    for server in &inputs.servers {
        if !names.insert(file_name(&server.name)) {
            return Err(Failure::usage(format!("--server: two servers have the name `{}`", server.name)));
        }
    }
    if inputs.primary.identity == inputs.fallback.identity {
        return Err(Failure::usage("--fallback: is the same model as --primary".to_owned()));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan {
        precision: args.precision,
        threads: args.threads.unwrap_or(cores),
        truncation: args.truncation.truncation(),
        top_k: args.top_k.into_iter().map(|k| k as usize).collect::<BTreeSet<_>>().into_iter().collect(),
        budgets_ms: args.budgets_ms.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
        rate: args.rate,
        dollars_per_hour: args.dollars_per_hour,
        monthly_requests: args.monthly_requests,
        keep: args.keep,
        seed: args.seed,
    };
    make(&args.work)?;
    let mut shown = Shown::default();
    let result = compare(&inputs, &plan, &args.work, &mut |at| shown.show(&at.stage, at.done, at.of, ""));
    shown.end();
    let (comparison, runs) = result.map_err(failure)?;
    super::print(&table(&comparison))?;
    if let Some(path) = &args.html {
        super::write(path, &html(&comparison))?;
    }
    if let Some(path) = &args.svg {
        super::write(path, &svg(&comparison))?;
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&comparison).expect("a comparison is plain data");
        super::write(path, &(json + "\n"))?;
    }
    if let Some(folder) = &args.runs {
        for TrecRun { set, way, lines } in runs {
            let folder = folder.join(set);
            make(&folder)?;
            super::write(&folder.join(format!("{way}.run")), &lines)?;
        }
    }
    // The report is written, but it is not valid.
    let broken = |row: &&Row| row.faults.keys().any(|kind| !kind.starts_with("status "));
    match comparison.rows.iter().find(broken) {
        Some(row) => Err(Failure::temporary(format!("{}: {:?}", row.name, row.faults))),
        None => Ok(()),
    }
}

fn make(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| Failure::output(format!("{}: {error}", folder.display())))
}

/// Checks the values that clap does not check.
fn check(args: &Args) -> Result<(), Failure> {
    let wrong = |message: String| Err(Failure::usage(message));
    if let Some(both) = args.sets.iter().find(|set| args.tune.contains(set)) {
        return wrong(format!("--tune: {} is reported on too", both.display()));
    }
    [&args.html, &args.svg, &args.json].into_iter().flatten().try_for_each(|path| super::writable(path))?;
    if let Some(rate) = args.rate.filter(|rate| !(1e-3..=1e6).contains(rate)) {
        return wrong(format!("--rate: {rate} is not between 0.001 and 1000000"));
    }
    if !(0.0..=1e6).contains(&args.dollars_per_hour) {
        return wrong(format!("--dollars-per-hour: {} is not between 0 and 1000000", args.dollars_per_hour));
    }
    if !(0.0..=1.0).contains(&args.keep) {
        return wrong(format!("--keep: {} is not between 0 and 1", args.keep));
    }
    if args.threads == Some(0) {
        return wrong("--threads: at least one is needed".to_owned());
    }
    args.runs.iter().try_for_each(|folder| make(folder))
}

/// A server from its fields. Without a name it is called by its address and options.
fn server(fields: &str, timeout_ms: u64) -> Result<Arc<Server>, Failure> {
    let wrong = |error: String| Failure::usage(format!("--server: {error}"));
    let (names, fields): (Vec<&str>, Vec<&str>) =
        fields.split(',').partition(|field| field.starts_with("name="));
    let target = Target { url: String::new(), dialect: Dialect::Podium, model: None };
    if fields.iter().any(|field| field.starts_with("weight=")) {
        return Err(wrong("weight: a server gets requests of one kind".to_owned()));
    }
    let side =
        ServerFields { target, kinds: vec![Kind::default()] }.with(&fields.join(",")).map_err(wrong)?;
    let client = side.client(client_limits(CONNECTIONS, timeout_ms)).map_err(wrong)?;
    let [kind] = <[Kind; 1]>::try_from(side.kinds).expect("a side keeps the number of its kinds");
    let host = side.target.url.trim_start_matches("http://").trim_end_matches('/');
    let usual = match kind.name().as_str() {
        "plain" => format!("{host} {}", side.target.dialect.name()),
        wishes => format!("{host} {} {wishes}", side.target.dialect.name()),
    };
    let name = names.last().map_or(usual, |field| field["name=".len()..].to_owned());
    if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
        return Err(wrong(format!("name: `{}` is not 1 to {NAME_MAX} printable bytes", name.escape_debug())));
    }
    Ok(Arc::new(Server { name, client, kind }))
}

/// Sets, named by their folders.
fn read(folders: &[PathBuf]) -> Result<Vec<(String, Judged)>, Failure> {
    let mut names = BTreeSet::new();
    let one = |folder: &PathBuf| {
        let name = folder_name(folder).unwrap_or_default();
        if !names.insert(name.clone()) {
            return Err(Failure::usage(format!("{}: two sets have the name `{name}`", folder.display())));
        }
        Ok((name, Judged::read(folder).map_err(|error| super::set_failure(&error))?))
    };
    folders.iter().map(one).collect()
}

fn failure(error: CompareError) -> Failure {
    let message = error.to_string();
    match error {
        CompareError::Model(CachedScorerError::Cache(error)) | CompareError::Scores(error)
            if matches!(error, CacheError::File { .. }) =>
        {
            Failure::output(message)
        }
        CompareError::Model(CachedScorerError::Precision(_) | CachedScorerError::Tokenizer(_)) => {
            Failure::usage(message)
        }
        CompareError::Server(_) => Failure::unavailable(message),
        CompareError::Model(CachedScorerError::Cache(_))
        | CompareError::Scores(_)
        | CompareError::Measure(_) => Failure::internal(message),
    }
}
