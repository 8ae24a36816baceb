//! `podium simulate`: compares the scheduler with others in simulated time, or replays a journal.

use super::Failure;
use crate::base::{Ns, Tier, line_text};
use crate::engine::JournalEntry;
use crate::sched::{Config, Scheduler, digest};
use crate::sim::{self, Hardships, Report, Scenario, Window};
use std::fs::File;
use std::io::{BufRead, BufReader, Write, stdout};
use std::path::{Path, PathBuf};

/// The fixed windows to compare with, in milliseconds.
const WINDOWS_MS: [u64; 5] = [1, 2, 5, 10, 20];

/// Runs the scheduler on simulated devices and clients, and compares it with batchers that ignore
/// deadlines.
///
/// A GPU and a CPU get Poisson traffic with latency budgets of 50, 150 and 500 ms. The other
/// batchers have only the GPU: FIFO, and fixed windows of some milliseconds; `drop` discards
/// requests whose budget has passed when their turn comes. Invariants are checked after every
/// step. The same seed gives the same run.
///
/// With --replay it runs a journal of `podium serve --journal` again, and compares each decision.
///
///     podium simulate --load 0.7,1.5
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// Requests per run.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    requests: u64,
    /// Arrival rates, as multiples of what the GPU can score.
    #[arg(long, value_name = "LOADS", value_delimiter = ',', default_value = "0.7,1.5")]
    load: Vec<f64>,
    /// The seed of all random choices.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Runs only the scheduler, with slow, hanging and failing lanes, clients that disconnect, and a clock that jumps.
    #[arg(long)]
    hardships: bool,
    /// A journal to replay.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["requests", "load", "seed", "hardships"])]
    replay: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    if let Some(journal) = &args.replay {
        return replay(journal);
    }
    if let Some(load) = args.load.iter().find(|load| !(0.01..=100.0).contains(*load)) {
        return Err(Failure::usage(format!("--load: {load} is not between 0.01 and 100")));
    }
    for &load in &args.load {
        let mut scenario = Scenario::mixed(args.seed, args.requests, load);
        if args.hardships {
            scenario.hardships = Hardships::ALL;
        }
        print(&format!(
            "load {load}, seed {}: {} requests, {:.0} a second",
            args.seed,
            args.requests,
            load * scenario.capacity()
        ))?;
        print(HEADINGS)?;
        podium("podium", &scenario)?;
        if !args.hardships {
            let mut alone = scenario.clone();
            alone.devices.retain(|device| device.tier == Tier::Primary);
            podium("podium, GPU only", &alone)?;
            opponents(&alone)?;
        }
        print("")?;
    }
    Ok(())
}

const HEADINGS: &str = "                    good/s  in budget   full   topk  fallb.  refused    late   p50 ms   p99 ms  GPU busy  discarded";

fn podium(name: &str, scenario: &Scenario) -> Result<(), Failure> {
    row(name, &sim::run(scenario, &mut Scheduler::new(&scenario.config())))
}

fn opponents(scenario: &Scenario) -> Result<(), Failure> {
    for drop in [false, true] {
        let dropping = if drop { ", drop" } else { "" };
        let against = |name: String, window: u64| {
            let mut machine = Window::new(scenario, Ns::from_millis(window), drop);
            row(&name, &sim::run(scenario, &mut machine))
        };
        against(format!("FIFO{dropping}"), 0)?;
        for window in WINDOWS_MS {
            against(format!("window {window} ms{dropping}"), window)?;
        }
    }
    Ok(())
}

fn row(name: &str, report: &Report) -> Result<(), Failure> {
    let share = |count: u64| 100.0 * count as f64 / report.requests.max(1) as f64;
    let in_budget = report.tenants.iter().map(|tenant| tenant.in_budget).sum();
    let busy = report.busy.primary.0 as f64 / report.elapsed.0.max(1) as f64;
    print(&format!(
        "{name:<18} {:>7.0} {:>9.2}% {:>5.1}% {:>5.1}% {:>6.1}% {:>7.2}% {:>6.2}% {:>8.1} {:>8.1} {:>8.1}% {:>9.2}%",
        report.goodput(),
        share(in_budget),
        share(report.full),
        share(report.top_k),
        share(report.fallback),
        share(report.refused),
        share(report.late),
        report.quantile(0.5).as_millis_f64(),
        report.quantile(0.99).as_millis_f64(),
        100.0 * busy,
        100.0 * report.waste(),
    ))
}

fn print(line: &str) -> Result<(), Failure> {
    writeln!(stdout(), "{line}").map_err(|error| Failure::output(format!("standard output: {error}")))
}

/// Replays a journal. Every decision must equal the recorded one.
fn replay(path: &Path) -> Result<(), Failure> {
    let at = |line: u64| format!("{}:{line}", path.display());
    let file = File::open(path).map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
    let (mut lines, mut line) = (BufReader::new(file), Vec::new());
    let mut read = |line: &mut Vec<u8>| {
        line.clear();
        let found = lines.read_until(b'\n', line);
        found.map_err(|error| Failure::input(format!("{}: {error}", path.display())))
    };
    read(&mut line)?;
    let config = line_text(&line).and_then(|text| serde_json::from_str(text).map_err(|e| e.to_string()));
    let config: Config = config
        .map_err(|reason| Failure::data(format!("{}: not a journal's configuration: {reason}", at(1))))?;
    let mut scheduler = Scheduler::new(&config);
    let (mut steps, mut actions, mut cut) = (0, Vec::new(), "");
    for number in 2.. {
        if read(&mut line)? == 0 {
            break;
        }
        let entry = line_text(&line).and_then(|text| serde_json::from_str(text).map_err(|e| e.to_string()));
        let JournalEntry { now, event, digest: decided } = match entry {
            Ok(entry) => entry,
            // A killed server leaves an incomplete last line.
            Err(_) if !line.ends_with(b"\n") => {
                cut = "; the last line is cut short";
                break;
            }
            Err(reason) => return Err(Failure::data(format!("{}: {reason}", at(number)))),
        };
        actions.clear();
        scheduler.step(now, event, &mut actions);
        scheduler.check();
        if digest(&actions) != decided {
            let message = format!("{}: another decision than the server's: {actions:?}", at(number));
            return Err(Failure::data(message));
        }
        steps += 1;
    }
    let stats = scheduler.stats();
    print(&format!(
        "{steps} steps, every decision equal: {} jobs arrived, {} answered, {} refused, {} left, {} inside{cut}",
        stats.arrived,
        stats.answered,
        stats.refused,
        stats.cancelled,
        scheduler.len()
    ))
}
