//! `podium load`: sends load to a server and reports latency, answers and the highest rate.

use super::server_fields::{ServerFields, client_limits, dialect, environment};
use super::{Failure, Shown};
use crate::base::Ns;
use crate::eval::Judged;
use crate::load::{
    Arrivals, Case, CasesError, Client, Finding, Kind, Length, Load, Pace, Progress, REQUESTS_MAX, Report,
    RunPlan, RunReport, Side, Slo, SweepPlan, Target, Trace, VersusPlan, drawn_cases, html, judged_cases,
    read_cases, run as run_load, sweep, table, versus,
};
use crate::wire::Dialect;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// Random requests that are made; they repeat after that.
const DRAWN: usize = 1_000;

/// Sends requests to a server, Podium or a peer, and reports answers and latencies.
///
/// An open loop (--rate) sends at scheduled times, independent of earlier requests, and counts
/// latency from the scheduled time. A closed loop (--clients) sends the next request when one is
/// answered, which hides the tail latency of a stalled server. --slo searches for the highest
/// rate that meets a service level. --versus compares with a second server or setting, in turns.
///
/// A line of --requests is {"query": "...", "documents": ["...", ...]}, which may have an
/// "instruction". Without --requests or --set, requests are random. Failures are counted separately. If the
/// client falls behind its own schedule, the command ends with code 75: the latencies are not the
/// server's.
///
///     podium load --rate 20 --mix budget=100,weight=3 --mix policy=full
///     podium load --slo p99=200 --requests log.jsonl
///     podium load --rate 5 --versus url=http://localhost:8081,dialect=tei
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// The server's address.
    #[arg(long, value_name = "URL", default_value = "http://localhost:8080")]
    url: String,
    /// The server's dialect: podium, cohere, cohere_v2, jina, voyage, vllm, vllm_score, tei, tei_predict, infinity,
    /// nim or oip.
    #[arg(long, value_name = "DIALECT", default_value = "podium", value_parser = dialect)]
    dialect: Dialect,
    /// The model name in requests; cohere_v2, voyage and oip need one.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// A file of requests: JSON lines {"query": "...", "documents": ["...", ...]}.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["set", "documents", "words"])]
    requests: Option<PathBuf>,
    /// A judged set: its queries, with the candidates of its first stage.
    #[arg(long, value_name = "SET_DIR", conflicts_with_all = ["documents", "words"])]
    set: Option<PathBuf>,
    /// Most candidates of a query from --set.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    candidates: u32,
    /// Documents of a random request, lognormal: the median, and the sigma of the logarithm.
    #[arg(long, value_name = "MEDIAN[:SIGMA]", default_value = "20:0.5", value_parser = Length::parse)]
    documents: Length,
    /// Words of a random document, about one token each.
    #[arg(long, value_name = "MEDIAN[:SIGMA]", default_value = "60:0.5", value_parser = Length::parse)]
    words: Length,
    /// A kind of request: fields with commas between them. budget=MS, policy=auto|full|topk|fallback,
    /// priority=low|normal|high, top-k=N, key-env=VARIABLE (with a tenant's API key), weight=W. Repeat the flag to mix
    /// kinds by weight.
    #[arg(long, value_name = "FIELDS")]
    mix: Vec<String>,
    /// Open loop: requests per second [default: 10, or the rate of the trace].
    #[arg(long, value_name = "RATE", conflicts_with = "clients")]
    rate: Option<f64>,
    /// The arrival process of an open loop: poisson, constant, bursts (bursts=PERIOD_S:SHARE is bursts=10:0.2, all
    /// requests in the first fifth of each 10 s), or trace=FILE, one time in seconds per line. With --rate a trace is
    /// scaled to that rate.
    #[arg(long, value_name = "ARRIVALS", default_value = "poisson", conflicts_with = "clients")]
    arrivals: String,
    /// Closed loop: the number of clients. Each sends its next request when the last one is answered.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Option<u32>,
    /// Seconds to send, per turn with --versus [default: 30, 5 with --versus, or the length of the trace].
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Seconds of warm-up, in which requests are not counted.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup_seconds: f64,
    /// Searches for the highest rate that meets a service level: a percentile and its limit in milliseconds, for
    /// example p99=200. Failed requests count as over the limit. The search begins at --rate.
    #[arg(long, value_name = "pP=MS", value_parser = slo, conflicts_with_all = ["clients", "seconds", "versus"])]
    slo: Option<(f64, Ns)>,
    /// The share of answers that must be full for --slo.
    #[arg(long, value_name = "SHARE", requires = "slo")]
    slo_full: Option<f64>,
    /// The highest rate that --slo tries.
    #[arg(long, value_name = "RATE", default_value_t = 10_000.0)]
    rate_max: f64,
    /// The lowest rate that --slo tries.
    #[arg(long, value_name = "RATE", default_value_t = 0.1)]
    rate_min: f64,
    /// The precision of --slo: the bad rate is at most this share above the good one.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    precision: f64,
    /// Minimum seconds at each rate of --slo, because a queue can grow slowly.
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    step_seconds: f64,
    /// A second side, B, measured in turns with the first: as A, except for these fields. url=, dialect=, model=, and
    /// the fields of --mix, which change all kinds.
    #[arg(long, value_name = "FIELDS")]
    versus: Option<String>,
    /// Rounds of --versus; each is one turn of A and one of B.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1_000))]
    rounds: u32,
    /// The timeout of a request.
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    timeout_ms: u64,
    /// Most connections.
    #[arg(long, value_name = "N", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// The run is not valid if the p99 of the delay between scheduled and actual send is more.
    #[arg(long, value_name = "MS", default_value_t = 10.0)]
    lag_ms_max: f64,
    /// The seed of all random choices.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Writes a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes the figures as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn slo(text: &str) -> Result<(f64, Ns), String> {
    let number = |text: &str, low: f64, high: f64| {
        text.parse().ok().filter(|number: &f64| (low..=high).contains(number))
    };
    let read = || {
        let (percentile, limit) = text.strip_prefix('p')?.split_once('=')?;
        let limit = number(limit, 0.1, 3_600_000.0)?;
        Some((number(percentile, 1.0, 99.99)?, Ns((limit * 1e6) as u64)))
    };
    read().ok_or_else(|| {
        "a percentile from 1 to 99.99 and milliseconds from 0.1 to 3600000, as p99=200".to_owned()
    })
}

/// What to do with the sides.
enum Task {
    Run(RunPlan),
    Sweep(SweepPlan),
    Versus(VersusPlan),
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    check(&args)?;
    let (task, pace) = task(&args)?;
    let clients = clients(&args)?;
    let (cases, requests) = cases(&args)?;
    if cases.iter().any(|case| case.instruction.is_some()) {
        let dialects = clients.iter().map(|(client, _)| client.target().dialect);
        if let Some(dialect) = dialects.into_iter().find(|dialect| !dialect.takes_instruction()) {
            let message = format!(
                "a request has an `instruction`, and the dialect {} no field for one",
                dialect.name()
            );
            return Err(Failure::usage(format!("--requests: {message}")));
        }
    }
    let load = |(client, kinds)| Arc::new(Load::new(client, &cases, kinds));
    let sides: Vec<Arc<Load>> = clients.into_iter().map(load).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::unavailable(format!("threads: {error}")))?;
    let lag_max = millis(args.lag_ms_max);
    let finding = runtime.block_on(async {
        for side in &sides {
            let url = &side.client().target().url;
            let probe = side.client().probe(&cases[0], &side.kinds()[0]).await;
            probe.map_err(|fault| Failure::unavailable(format!("{url}: {fault}")))?;
        }
        let mut shown = Shown::default();
        let finding = perform(&sides, &task, lag_max, &mut shown).await;
        shown.end();
        Ok(finding)
    })?;
    let other = sides.get(1).map(|side| Side::of(side));
    let report = Report { side: Side::of(&sides[0]), other, requests, pace, seed: args.seed, finding };
    super::print(&table(&report))?;
    if let Some(path) = &args.html {
        super::write(path, &html(&report))?;
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).expect("a report is plain data");
        super::write(path, &(json + "\n"))?;
    }
    let runs = report.runs();
    if let Some((_, run)) = runs.iter().find(|(_, run)| run.all.answered == 0) {
        let first = run.all.failed_first.as_deref().unwrap_or("nothing was sent");
        return Err(Failure::unavailable(format!("no request was answered: {first}")));
    }
    report.invalid().map_or(Ok(()), |invalid| Err(Failure::temporary(invalid)))
}

async fn perform(sides: &[Arc<Load>], task: &Task, lag_max: Ns, shown: &mut Shown) -> Finding {
    let mut last = (String::new(), usize::MAX);
    let mut show = |stage: &str, Progress { passed, of, sent, done, failed }: Progress| {
        let [passed, of] = [passed, of].map(|ns| (ns.0 / 1_000_000_000) as usize);
        if (last.0.as_str(), last.1) != (stage, passed) {
            last = (stage.to_owned(), passed);
            shown.show(stage, passed, of, &format!("{sent} sent, {done} done, {failed} failed"));
        }
    };
    match task {
        Task::Run(plan) => {
            let found = run_load(&sides[0], plan, &mut |progress| show("seconds", progress)).await;
            Finding::Run(Box::new(RunReport::of(&sides[0], plan, &found, lag_max)))
        }
        Task::Sweep(plan) => {
            let mut watch = |rate: f64, progress| show(&format!("{rate:.2}/s"), progress);
            Finding::Sweep(sweep(&sides[0], plan, &mut watch).await)
        }
        Task::Versus(plan) => {
            let mut watch = |side, round: u32, progress| show(&format!("{side} {}", round + 1), progress);
            let sides = [sides[0].clone(), sides[1].clone()];
            Finding::Versus(Box::new(versus(&sides, plan, &mut watch).await))
        }
    }
}

/// Checks the values that clap does not check.
fn check(args: &Args) -> Result<(), Failure> {
    for (flag, value, low, high) in [
        ("--rate", args.rate, 1e-3, 1e6),
        ("--rate-min", Some(args.rate_min), 1e-3, 1e6),
        ("--rate-max", Some(args.rate_max), args.rate_min, 1e6),
        ("--seconds", args.seconds, 0.1, 1e6),
        ("--warmup-seconds", Some(args.warmup_seconds), 0.0, 1e6),
        ("--slo-full", args.slo_full, 0.0, 1.0),
        ("--step-seconds", Some(args.step_seconds), 0.0, 1e5),
        ("--precision", Some(args.precision), 1e-3, 1.0),
        ("--lag-ms-max", Some(args.lag_ms_max), 0.1, 1e6),
    ] {
        if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
            return Err(Failure::usage(format!("{flag}: {value} is not between {low} and {high}")));
        }
    }
    [&args.html, &args.json].into_iter().flatten().try_for_each(|path| super::writable(path))
}

/// The task, and the arrival process in words.
fn task(args: &Args) -> Result<(Task, String), Failure> {
    let arrivals = arrivals(&args.arrivals)?;
    let own = match &arrivals {
        Arrivals::Trace(trace) => Some(trace),
        Arrivals::Poisson | Arrivals::Constant | Arrivals::Bursts { .. } => None,
    };
    let rate = args.rate.or(own.map(Trace::rate)).unwrap_or(10.0);
    let (warmup, lag_max) = (millis(1e3 * args.warmup_seconds), millis(args.lag_ms_max));
    if let Some((percentile, limit)) = args.slo {
        let limits = (args.rate_min, args.rate_max);
        let slo = Slo { percentile, limit, full: args.slo_full };
        let words = format!("open loop, {arrivals} arrivals, searching for the highest rate");
        let plan = SweepPlan {
            arrivals,
            slo,
            first: rate.clamp(args.rate_min, args.rate_max),
            limits,
            ratio: 1.0 + args.precision,
            step_min: millis(1e3 * args.step_seconds),
            warmup,
            lag_max,
            seed: args.seed,
        };
        return Ok((Task::Sweep(plan), words));
    }
    let as_it_was = own.filter(|_| args.rate.is_none()).map(Trace::duration);
    let usual = || if args.versus.is_some() { Ns::from_millis(5_000) } else { Ns::from_millis(30_000) };
    let duration = args.seconds.map(|seconds| millis(1e3 * seconds)).or(as_it_was).unwrap_or_else(usual);
    let requests = rate * (warmup + duration).as_secs_f64();
    if args.clients.is_none() && requests > REQUESTS_MAX {
        let message = format!("--rate: {requests:.0} requests are more than {REQUESTS_MAX}");
        return Err(Failure::usage(message));
    }
    let pace = match args.clients {
        Some(clients) => Pace::Closed { clients: clients as usize },
        None => Pace::Open { arrivals, rate },
    };
    let seconds = duration.as_secs_f64();
    let plan = RunPlan { pace, duration, warmup, seed: args.seed, slo: None, answers_min: 0 };
    let words = format!("{}, for {seconds} s", plan.pace);
    Ok(match args.versus {
        None => (Task::Run(plan), words),
        Some(_) => {
            let words = format!("{words} a turn, {} rounds of A and B", args.rounds);
            (Task::Versus(VersusPlan { turn: plan, rounds: args.rounds, lag_max }), words)
        }
    })
}

fn arrivals(text: &str) -> Result<Arrivals, Failure> {
    let wrong = |reason: &str| Failure::usage(format!("--arrivals: `{text}` {reason}"));
    match text.split_once('=').unwrap_or((text, "")) {
        ("poisson", "") => Ok(Arrivals::Poisson),
        ("constant", "") => Ok(Arrivals::Constant),
        ("bursts", numbers) => {
            let (period, on) = if numbers.is_empty() { "10:0.2" } else { numbers }
                .split_once(':')
                .ok_or_else(|| wrong("is not bursts=PERIOD_S:SHARE"))?;
            let number = |text: &str, low: f64, high: f64| {
                text.parse().ok().filter(|number: &f64| (low..=high).contains(number))
            };
            let period =
                number(period, 1e-3, 1e6).ok_or_else(|| wrong("has no period from 0.001 to 1000000 s"))?;
            let on = number(on, 1e-3, 1.0).ok_or_else(|| wrong("has no share from 0.001 to 1"))?;
            Ok(Arrivals::Bursts { period: millis(1e3 * period), on })
        }
        ("trace", path) if !path.is_empty() => {
            let text =
                fs::read_to_string(path).map_err(|error| Failure::input(format!("{path}: {error}")))?;
            let trace = Trace::parse(&text).map_err(|error| Failure::data(format!("{path}:{error}")))?;
            Ok(Arrivals::Trace(trace))
        }
        _ => Err(wrong("is not poisson, constant, bursts[=PERIOD_S:SHARE] or trace=FILE")),
    }
}

/// The clients and kinds of requests of each side.
fn clients(args: &Args) -> Result<Vec<(Client, Vec<Kind>)>, Failure> {
    let wrong = |flag: &'static str| move |error: String| Failure::usage(format!("{flag}: {error}"));
    let kind = |text: &String| Kind::default().with(text, &environment).map_err(wrong("--mix"));
    let mut kinds = args.mix.iter().map(kind).collect::<Result<Vec<_>, _>>()?;
    if kinds.is_empty() {
        kinds.push(Kind::default());
    }
    let target = Target { url: args.url.clone(), dialect: args.dialect, model: args.model.clone() };
    let first = ServerFields { target, kinds };
    let mut sides = vec![("--url", first.clone())];
    if let Some(fields) = &args.versus {
        sides.push(("--versus", first.with(fields).map_err(wrong("--versus"))?));
    }
    let limits = client_limits(args.connections, args.timeout_ms);
    let open = |(flag, side): (_, ServerFields)| Ok((side.client(limits).map_err(wrong(flag))?, side.kinds));
    sides.into_iter().map(open).collect()
}

/// The requests, and their source in words.
fn cases(args: &Args) -> Result<(Vec<Case>, String), Failure> {
    let documents = |cases: &[Case]| cases.iter().map(|case| case.documents.len()).sum::<usize>();
    let (cases, source) = match (&args.requests, &args.set) {
        (Some(path), _) => (read_cases(path).map_err(cases_failure)?, path.display().to_string()),
        (None, Some(folder)) => {
            let set = Judged::read(folder).map_err(|error| super::set_failure(&error))?;
            (judged_cases(&set, args.candidates as usize), folder.display().to_string())
        }
        (None, None) => {
            let Args { documents, words, seed, .. } = args;
            let source = format!("random, {documents} documents of {words} words");
            (drawn_cases(DRAWN, *documents, *words, *seed), source)
        }
    };
    let words = format!("{source}: {} with {} documents, in turn", cases.len(), documents(&cases));
    Ok((cases, words))
}

fn cases_failure(error: CasesError) -> Failure {
    match error {
        CasesError::File(error) => super::file_failure(&error),
        CasesError::Empty { .. } => Failure::data(error.to_string()),
    }
}

fn millis(millis: f64) -> Ns {
    Ns((millis * 1e6) as u64)
}
