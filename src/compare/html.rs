//! A comparison as a self-contained page: plots in SVG, tables, and the command line.

use super::run::{Comparison, Row};
use super::table::{advice, asked, cost_cell, share_cell};
use super::way::Way;
use crate::page::{Axis, COLOURS, Plot, escape, page, picture};
use std::fmt::Write;

/// The page.
pub fn html(comparison: &Comparison) -> String {
    let body = format!(
        "<p class=\"note\">primary {}; fallback {}</p>\n<p class=\"lead\">{}</p>\n\
         <div class=\"plots\">\n{}{}</div>\n<h2>Every way</h2>\n{}<h2>nDCG@10 by set</h2>\n{}{}",
        escape(&comparison.primary),
        escape(&comparison.fallback),
        escape(&advice(comparison)),
        cost(comparison),
        plot(comparison, "Quality against tail latency", "p99 in ms", |row| row.p99_ms),
        ways(comparison),
        sets(comparison),
        method(comparison)
    );
    page("Quality, latency and cost", &body)
}

/// The plot of quality against cost, as a file.
pub fn svg(comparison: &Comparison) -> String {
    picture(&cost(comparison))
}

fn cost(comparison: &Comparison) -> String {
    let title = "Quality against cost";
    match comparison.dollars_per_hour > 0.0 {
        true => plot(comparison, title, "dollars for 1000 requests", |row| {
            row.cost.map_or(0.0, |cost| cost.dollars_per_thousand)
        }),
        false => plot(comparison, title, "device ms of a request", |row| {
            row.cost.map_or(0.0, |cost| cost.device_ms)
        }),
    }
}

/// nDCG@10 over a logarithmic axis. The first stage, which costs nothing, is a horizontal line.
fn plot(comparison: &Comparison, title: &str, label: &str, x: impl Fn(&Row) -> f64) -> String {
    // With weight 1 fusion equals the way itself.
    let drawn = |row: &&Row| row.way != Way::FirstStage && x(row) > 0.0 && row.fused != Some(1.0);
    let shown: Vec<&Row> = comparison.rows.iter().filter(drawn).collect();
    let first_stage = comparison.rows.iter().find(|row| row.way == Way::FirstStage).map(|row| row.ndcg);
    let across = Axis::log(label, shown.iter().map(|row| x(row)));
    let up = Axis::linear("nDCG@10", shown.iter().map(|row| row.ndcg).chain(first_stage));
    let mut plot = Plot::new(title, across, up);
    if let Some(ndcg) = first_stage {
        plot.level(ndcg, "first stage");
    }
    let edge: Vec<_> = frontier(&shown, &x).into_iter().map(|row| (x(row), row.ndcg)).collect();
    plot.line(&edge, COLOURS[0]);
    let mut labels = Vec::new();
    for row in &shown {
        let colour = match (row.fused, row.way) {
            (Some(_), _) => COLOURS[2],
            (None, Way::Budget(_)) => COLOURS[1],
            (None, Way::Server(_)) => COLOURS[3],
            _ => COLOURS[0],
        };
        plot.dot((x(row), row.ndcg), colour, &format!("{}: {:.4}", row.name, row.ndcg));
        labels.extend(row.fused.is_none().then(|| (x(row), row.ndcg, row.name.clone())));
    }
    plot.names(&labels);
    let over_http = shown.iter().any(|row| matches!(row.way, Way::Server(_)));
    let servers = over_http.then_some((COLOURS[3], "over HTTP"));
    let ours = [(COLOURS[2], "with the first stage"), (COLOURS[1], "by budget"), (COLOURS[0], "alone")];
    for (colour, what) in servers.into_iter().chain(ours) {
        plot.name(colour, what);
    }
    plot.finish()
}

/// The Pareto frontier: rows for which no cheaper row is at least as good, by rising cost.
fn frontier<'a>(rows: &[&'a Row], x: impl Fn(&Row) -> f64) -> Vec<&'a Row> {
    let mut rows: Vec<&Row> = rows.iter().copied().filter(|row| row.fused.is_none()).collect();
    rows.sort_by(|a, b| x(a).total_cmp(&x(b)).then(b.ndcg.total_cmp(&a.ndcg)));
    let mut best = f64::NEG_INFINITY;
    rows.retain(|row| {
        let better = row.ndcg > best;
        best = best.max(row.ndcg);
        better
    });
    rows
}

fn ways(comparison: &Comparison) -> String {
    let mut text = "<div class=\"wide\"><table><tr><th>way</th><th>nDCG@10</th><th>to full</th><th>p</th><th>RR@10</th><th>AP</th>\
                    <th>R@10</th><th>tau</th><th>device ms</th><th>$ / 1000</th><th>$ / month</th><th>p50 ms</th><th>p99 ms</th>\
                    <th>less than full</th><th>refused</th></tr>\n"
        .to_owned();
    for (place, row) in comparison.rows.iter().enumerate() {
        let class = if comparison.cheapest == Some(place) { " class=\"best\"" } else { "" };
        let (difference, low, high) = row.delta;
        let [rr, ap, recall] = row.others;
        let tau = row.tau.map_or_else(String::new, |tau| format!("{tau:.2}"));
        writeln!(
            text,
            "<tr{class}><td>{}</td><td>{:.4}</td><td>{difference:+.3} ({low:+.3} to {high:+.3})</td><td>{:.3}</td>\
             <td>{rr:.3}</td><td>{ap:.3}</td><td>{recall:.3}</td><td>{tau}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{:.1}</td><td>{:.1}</td><td>{}</td><td>{}</td></tr>",
            escape(&row.name),
            row.ndcg,
            row.p,
            cost_cell(row, |cost| format!("{:.2}", cost.device_ms)),
            cost_cell(row, |cost| format!("{:.5}", cost.dollars_per_thousand)),
            cost_cell(row, |cost| format!("{:.2}", cost.dollars_per_month)),
            row.p50_ms,
            row.p99_ms,
            share_cell(row.degraded),
            share_cell(Some(row.refused))
        )
        .expect("a string takes all that is written");
    }
    text + "</table></div>\n"
}

fn sets(comparison: &Comparison) -> String {
    let heads: String = comparison
        .sets
        .iter()
        .map(|set| format!("<th>{}<br>{} queries</th>", escape(&set.name), set.queries))
        .collect();
    let mut text = format!("<div class=\"wide\"><table><tr><th>way</th>{heads}<th>mean</th></tr>\n");
    for row in &comparison.rows {
        let values: String = row.by_set.iter().map(|value| format!("<td>{value:.4}</td>")).collect();
        writeln!(text, "<tr><td>{}</td>{values}<td>{:.4}</td></tr>", escape(&row.name), row.ndcg)
            .expect("a string takes all that is written");
    }
    text + "</table></div>\n"
}

fn method(comparison: &Comparison) -> String {
    format!(
        "<h2>How it was made</h2>\n<p class=\"note\">Each way orders the first stage's candidates of every judged query. \
         nDCG@10 is the mean of the sets' means; the difference to the primary is over all queries, with the interval of \
         10,000 bootstrap samples and the p-value of a randomisation test. Both models' devices were measured here; \
         latency, device time and degradation come from a simulation of the server's own scheduler on those devices at \
         {:.2} requests a second, drawn from these queries (the primary can answer {:.2} a second in full), at {} $ an \
         hour. Ways with the first stage mix both scores, brought to 0 to 1 within a query, by a weight that was tuned \
         on other sets. A budget's quality is that of the ways it was answered by. {}</p>\n",
        comparison.rate,
        comparison.capacity,
        comparison.dollars_per_hour,
        asked(comparison).unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::super::run::Cost;
    use super::*;

    fn row(way: Way, ndcg: f64, dollars_per_thousand: f64) -> Row {
        Row {
            name: way.name(),
            way,
            fused: None,
            ndcg,
            by_set: vec![ndcg],
            others: [0.0; 3],
            tau: None,
            delta: (0.0, 0.0, 0.0),
            p: 1.0,
            cost: Some(Cost {
                device_ms: dollars_per_thousand,
                dollars_per_thousand,
                dollars_per_month: 0.0,
            }),
            p50_ms: 1.0,
            p99_ms: 2.0,
            degraded: Some(0.0),
            refused: 0.0,
            faults: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn the_frontier_leaves_out_what_is_dearer_and_no_better() {
        let rows = [row(Way::Fallback, 0.4, 1.0), row(Way::TopK(5), 0.3, 2.0), row(Way::Full, 0.5, 9.0)];
        let found = frontier(&rows.iter().collect::<Vec<_>>(), |row| row.cost.unwrap().dollars_per_thousand);
        assert_eq!(found.iter().map(|row| row.way).collect::<Vec<_>>(), [Way::Fallback, Way::Full]);
    }
}
