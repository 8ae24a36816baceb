//! A comparison for a terminal, and its orders as TREC runs.

use super::query::Query;
use super::run::{Comparison, Row, TrecRun};
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
    line(format!(
        "{:<32} {:>7} {:>17} {:>6} {:>5} {:>9} {:>9} {:>9} {:>9} {:>5} {:>5}{}",
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
            "{:<32} {:>7.4} {:>17} {:>6.3} {:>5} {:>9.2} {:>9.5} {:>9.1} {:>9.1} {:>4.0}% {:>4.0}%{sets}",
            row.name(),
            row.ndcg,
            format!("{difference:+.3} ({:.3})", (high - low) / 2.0),
            row.p,
            row.tau.map_or_else(String::new, |tau| format!("{tau:.2}")),
            row.device_ms,
            row.dollars_per_thousand,
            row.p50_ms,
            row.p99_ms,
            100.0 * row.degraded,
            100.0 * row.refused,
        ));
    }
    if comparison.rate > comparison.capacity {
        line("\nThe load is more than the primary can answer: without a budget its queue grows, and so do its times.".to_owned());
    }
    line(format!("\n{}", advice(comparison)));
    text
}

/// The sentence that most readers want.
pub(super) fn advice(comparison: &Comparison) -> String {
    let keep = (1000.0 * comparison.keep).round() / 10.0;
    let full = comparison.rows.iter().find(|row| row.way == Way::Full && row.fused.is_none());
    let (Some(cheapest), Some(full)) = (comparison.cheapest.map(|place| &comparison.rows[place]), full)
    else {
        return format!("No way keeps {keep}% of the primary's nDCG@10.");
    };
    format!(
        "The cheapest way that keeps {keep}% of the primary's nDCG@10 is {}: {:.4} of {:.4}, for {:.1}% of its \
         device time; {} requests a month cost {:.2} $ in place of {:.2} $.",
        cheapest.name(),
        cheapest.ndcg,
        full.ndcg,
        100.0 * cheapest.device_ms / full.device_ms,
        comparison.monthly_requests,
        cheapest.dollars_per_month,
        full.dollars_per_month,
    )
}

/// Each way's order of each set; a budget has no order of its own.
pub(super) fn trec_runs(queries: &[Query], sets: &[(String, Judged)], rows: &[Row]) -> Vec<TrecRun> {
    let mut runs = Vec::new();
    for row in rows.iter().filter(|row| !matches!(row.way, Way::Budget(_))) {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = row.name().replace(" + first stage, ", "+fused-").chars().map(plain).collect();
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
