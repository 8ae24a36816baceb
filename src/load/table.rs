//! A report as text for a terminal.

use super::figures::{Figures, PERCENTILES, RunReport};
use super::report::{Finding, Report};
use super::sweep::SweepReport;
use super::versus::VersusReport;
use std::collections::BTreeMap;

/// The report as text.
pub fn table(report: &Report) -> String {
    let mut text = match &report.other {
        None => format!("server    {}\n", report.side.words()),
        Some(other) => format!("A         {}\nB         {}\n", report.side.words(), other.words()),
    };
    text += &format!("requests  {}\npace      {}, seed {}\n\n", report.requests, report.pace, report.seed);
    match &report.finding {
        Finding::Run(found) => text += &run(found),
        Finding::Sweep(found) => text += &sweep(found),
        Finding::Versus(found) => text += &versus(found),
    }
    if let Some(invalid) = report.invalid() {
        text += &format!("\nINVALID: {invalid}\n");
    }
    text
}

fn run(run: &RunReport) -> String {
    let rows = || std::iter::once(&run.all).chain(&run.kinds);
    let wide = rows().map(|row| row.name.len()).max().unwrap_or(0).max(12);
    let names = PERCENTILES.map(|percentile| match percentile {
        100.0 => format!("{:>9}", "max"),
        _ => format!("{:>9}", format!("p{percentile}")),
    });
    let mut text = format!(
        "{:<wide$} {:>8} {:>8} {:>8} {:>9} {:>9}{}\n",
        "latency, ms",
        "sent",
        "answered",
        "failed",
        "docs/s",
        "mean",
        names.concat()
    );
    for row in rows() {
        let times = PERCENTILES.map(|percentile| format!("{:>9.1}", row.percentile(percentile)));
        text += &format!(
            "{:<wide$} {:>8} {:>8} {:>8} {:>9.1} {:>9.1}{}\n",
            row.name,
            row.sent,
            row.answered,
            row.failures(),
            row.documents_per_s,
            row.mean_ms,
            times.concat()
        );
    }
    text += &format!(
        "\noffered   {:.2} requests a second, {:.2} answered; p99 of the client's lag {:.1} ms\n",
        run.all.offered_per_s, run.all.answered_per_s, run.all.lag_p99_ms
    );
    text + &rest(&run.all)
}

/// Tiers, degradation, failures and cost of answers; lines without content are left out.
fn rest(figures: &Figures) -> String {
    let mut text = String::new();
    for (name, words) in [
        ("tiers", shares(&figures.tiers, figures.answered)),
        ("degraded", shares(&figures.degraded, figures.answered)),
        ("cost", cost(figures)),
        ("failed", shares(&figures.failed, figures.sent)),
    ] {
        if !words.is_empty() {
            text += &format!("{name:<9} {words}\n");
        }
    }
    if let Some(first) = &figures.failed_first {
        text += &format!("          e.g. {first}\n");
    }
    text
}

fn cost(figures: &Figures) -> String {
    let dollars = figures.dollars_per_thousand.map(|dollars| format!("{dollars:.5} $ for 1000 answers"));
    let device = figures.device_ms.map(|ms| format!("{ms:.2} ms of device time an answer"));
    dollars.into_iter().chain(device).collect::<Vec<_>>().join(", ")
}

/// Each count as a share of the total, the largest first.
pub(super) fn shares(counts: &BTreeMap<String, u64>, of: u64) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by(|a, b| b.1.cmp(a.1));
    let share = |(name, &count): (&String, &u64)| {
        format!("{name} {:.1}% ({count})", 100.0 * count as f64 / of.max(1) as f64)
    };
    counts.into_iter().map(share).collect::<Vec<_>>().join(", ")
}

fn sweep(sweep: &SweepReport) -> String {
    let mut text = format!(
        "{:>9} {:>9} {:>8} {:>8} {:>9} {:>9} {:>7} {:>7} {:>9}  {}\n",
        "rate",
        "answered",
        "judged",
        "over",
        "p50 ms",
        format!("p{} ms", sweep.percentile),
        "full",
        "failed",
        "docs/s",
        "verdict"
    );
    for step in &sweep.steps {
        let figures = &step.run.all;
        text += &format!(
            "{:>9.2} {:>9.2} {:>8} {:>8} {:>9.1} {:>9.1} {:>6.0}% {:>7} {:>9.1}  {}{}\n",
            step.rate,
            figures.answered_per_s,
            step.answers,
            step.over,
            figures.percentile(50.0),
            step.percentile_ms,
            100.0 * figures.full(),
            figures.failures(),
            figures.documents_per_s,
            step.verdict,
            match (step.verdict, step.good) {
                ("met", false) if step.run.invalid.is_some() => ", but the client fell behind",
                ("met", false) => ", but too few in full",
                _ => "",
            }
        );
    }
    text + &format!("\n{}\n", sweep.summary())
}

fn versus(versus: &VersusReport) -> String {
    let mut text = format!("{:<18} {:>10} {:>10} {:>8}  95 in 100 times\n", "", "A", "B", "B / A");
    for row in &versus.ratios {
        text += &format!(
            "{:<18} {:>10.4} {:>10.4} {:>8.3}  {:.3} to {:.3}\n",
            row.name, row.a, row.b, row.ratio, row.low, row.high
        );
    }
    for (name, side) in [("A", &versus.a), ("B", &versus.b)] {
        text +=
            &format!("\n{name}: {} sent, {} answered\n{}", side.all.sent, side.all.answered, rest(&side.all));
    }
    text
}
