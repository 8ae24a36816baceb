//! A comparison as text for a terminal, and its rankings as TREC runs.

use super::query::Query;
use super::run::{Comparison, Cost, Row, TrecRun};
use super::way::Way;
use crate::eval::Judged;
use std::fmt::Write;

/// The comparison as text.
pub fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    let mut line =
        |part: String| writeln!(text, "{}", part.trim_end()).expect("a string takes all that is written");
    line(format!("primary   {}\nfallback  {}", comparison.primary, comparison.fallback));
    line(format!(
        "load      {:.2} requests a second, simulated; the primary can answer {:.2} in full\n",
        comparison.rate, comparison.capacity
    ));
    let sets =
        comparison.sets.iter().map(|set| format!(" {:>11}", set.name.chars().take(11).collect::<String>()));
    let names = comparison.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    line(format!(
        "{:<names$} {:>7} {:>17} {:>6} {:>5} {:>9} {:>9} {:>9} {:>9} {:>5} {:>5}{}",
        "way",
        "nDCG@10",
        "to full",
        "p",
        "tau",
        "device ms",
        "$/1000",
        "p50 ms",
        "p99 ms",
        "less",
        "none",
        sets.collect::<String>()
    ));
    for row in &comparison.rows {
        let (difference, low, high) = row.delta;
        let sets: String = row.by_set.iter().map(|value| format!(" {value:>11.4}")).collect();
        line(format!(
            "{:<names$} {:>7.4} {:>17} {:>6.3} {:>5} {:>9} {:>9} {:>9.1} {:>9.1} {:>5} {:>5}{sets}",
            row.name,
            row.ndcg,
            format!("{difference:+.3} ({:.3})", (high - low) / 2.0),
            row.p,
            row.tau.map_or_else(String::new, |tau| format!("{tau:.2}")),
            cost_cell(row, |cost| format!("{:.2}", cost.device_ms)),
            cost_cell(row, |cost| format!("{:.5}", cost.dollars_per_thousand)),
            row.p50_ms,
            row.p99_ms,
            share_cell(row.degraded),
            share_cell(Some(row.refused)),
        ));
    }
    if comparison.rate > comparison.capacity {
        line("\nThe load is more than the primary can answer: without a budget its queue grows, and so do its times.".to_owned());
    }
    if let Some(asked) = asked(comparison) {
        line(format!("\n{asked}"));
    }
    line(format!("\n{}", advice(comparison)));
    text
}

/// A value of a row's cost, or a dash.
pub(super) fn cost_cell(row: &Row, cell: impl Fn(Cost) -> String) -> String {
    row.cost.map_or_else(|| "–".to_owned(), cell)
}

/// A share in percent, or a dash.
pub(super) fn share_cell(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.0}%", 100.0 * share))
}

/// How servers were asked, if there are any.
pub(super) fn asked(comparison: &Comparison) -> Option<String> {
    let one = comparison.rows.iter().find(|row| matches!(row.way, Way::Server(_)));
    let how = match comparison.rate_asked {
        Some(rate) => format!("{rate:.2} a second"),
        None => "one after the other".to_owned(),
    };
    one?;
    let mut text = format!(
        "Servers were asked every query over HTTP, {how}; cost is what their receipts say, at our price where they have none."
    );
    for row in comparison.rows.iter().filter(|row| !row.faults.is_empty()) {
        let faults: Vec<String> = row.faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        text += &format!(
            " {} did not answer {}: there the first stage's order stands.",
            row.name,
            faults.join(", ")
        );
    }
    Some(text)
}

/// The result in one sentence.
pub(super) fn advice(comparison: &Comparison) -> String {
    let keep = (1000.0 * comparison.keep).round() / 10.0;
    let full = comparison.rows.iter().find(|row| row.way == Way::Full && row.fused.is_none());
    let cheapest = comparison.cheapest.map(|place| &comparison.rows[place]);
    let costs = cheapest.and_then(|row| row.cost).zip(full.and_then(|row| row.cost));
    let (Some(cheapest), Some(full), Some((cost, cost_full))) = (cheapest, full, costs) else {
        return format!("No way keeps {keep}% of the primary's nDCG@10.");
    };
    format!(
        "The cheapest way that keeps {keep}% of the primary's nDCG@10 is {}: {:.4} of {:.4}, for {:.1}% of its \
         device time; {} requests a month cost {:.2} $ in place of {:.2} $.",
        cheapest.name,
        cheapest.ndcg,
        full.ndcg,
        100.0 * cost.device_ms / cost_full.device_ms,
        comparison.monthly_requests,
        cost.dollars_per_month,
        cost_full.dollars_per_month,
    )
}

/// The file name of a run: letters and digits only.
pub fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// Each way's ranking of each set. A budget has no ranking of its own.
pub(super) fn trec_runs(queries: &[Query], sets: &[(String, Judged)], rows: &[Row]) -> Vec<TrecRun> {
    let mut runs = Vec::new();
    for row in rows.iter().filter(|row| !matches!(row.way, Way::Budget(_))) {
        // A server may have the name of a way.
        let prefix = if matches!(row.way, Way::Server(_)) { "server-" } else { "" };
        let name = file_name(&format!("{prefix}{}", row.name).replace(" + first stage, ", "+fused-"));
        for (place, (set, _)) in sets.iter().enumerate() {
            let mut lines = String::new();
            for query in queries.iter().filter(|query| query.set == place) {
                for ((document, score), rank) in query.ranked(row.way, row.fused).into_iter().zip(1..) {
                    writeln!(lines, "{} Q0 {document} {rank} {score} {name}", query.id)
                        .expect("a string takes all that is written");
                }
            }
            runs.push(TrecRun { set: set.clone(), way: name.clone(), lines });
        }
    }
    runs
}
