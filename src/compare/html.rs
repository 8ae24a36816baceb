//! A comparison as one page that needs nothing else: plots in SVG, tables, and how it was made.

use super::run::{Comparison, Row};
use super::table::advice;
use super::way::Way;
use std::fmt::Write;

const STYLE: &str = "
:root { --ink: #1c2430; --soft: #5d6b7e; --line: #d8dee6; --page: #ffffff; --a: #0b62c4; --b: #c2410c; --c: #0f7b53; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf2; --soft: #9aa7b8; --line: #313b48; --page: #12171e; --a: #6cb0ff; --b: #ff9d66; --c: #5fd3a3; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.lead { font-size: 1.1rem; border-left: 4px solid var(--a); padding-left: .8rem }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem } svg { flex: 1 1 30rem; max-width: 38rem; height: auto }
svg text { fill: var(--ink); font-size: 12px } svg .soft { fill: var(--soft) } svg .grid { stroke: var(--line) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 600 } th:first-child, td:first-child { text-align: left }
tr.best td { font-weight: 700 } p.note { color: var(--soft) }
";

/// The page.
pub fn html(comparison: &Comparison) -> String {
    let mut page = String::new();
    let mut put = |part: String| page.push_str(&part);
    put(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Quality, latency and cost</title>\
         <style>{STYLE}</style></head><body>\n<h1>Quality, latency and cost</h1>\n\
         <p class=\"note\">primary {}; fallback {}</p>\n<p class=\"lead\">{}</p>\n",
        escape(&comparison.primary),
        escape(&comparison.fallback),
        escape(&advice(comparison))
    ));
    put("<div class=\"plots\">\n".to_owned());
    put(match comparison.dollars_per_hour > 0.0 {
        true => plot(comparison, "Quality against cost", "dollars for 1000 requests", |row| {
            row.dollars_per_thousand
        }),
        false => plot(comparison, "Quality against cost", "device ms of a request", |row| row.device_ms),
    });
    put(plot(comparison, "Quality against tail latency", "p99 in ms", |row| row.p99_ms));
    put("</div>\n<h2>Every way</h2>\n".to_owned());
    put(ways(comparison));
    put("<h2>nDCG@10 by set</h2>\n".to_owned());
    put(sets(comparison));
    put(method(comparison));
    put("</body></html>\n".to_owned());
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A drawing's size and its plot's edges.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 55.0;
const RIGHT: f64 = 580.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 345.0;

/// nDCG@10 over a logarithmic axis; the first stage, which costs nothing, is a line across.
fn plot(comparison: &Comparison, title: &str, label: &str, x: impl Fn(&Row) -> f64) -> String {
    // A weight of 1 leaves the way as it is.
    let drawn = |row: &&Row| row.way != Way::FirstStage && x(row) > 0.0 && row.fused != Some(1.0);
    let shown: Vec<&Row> = comparison.rows.iter().filter(drawn).collect();
    let first_stage = comparison.rows.iter().find(|row| row.way == Way::FirstStage).map(|row| row.ndcg);
    let (low, high) = range(shown.iter().map(|row| x(row).log10()), 0.08);
    let (floor, ceiling) = range(shown.iter().map(|row| row.ndcg).chain(first_stage), 0.08);
    let across = |value: f64| LEFT + (value.log10() - low) / (high - low) * (RIGHT - LEFT);
    let up = |value: f64| BOTTOM - (value - floor) / (ceiling - floor) * (BOTTOM - TOP);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\
         <text x=\"{LEFT}\" y=\"20\" style=\"font-size:15px;font-weight:600\">{title}</text>\n"
    );
    let mut put = |part: String| writeln!(svg, "{part}").expect("a string takes all that is written");
    for tick in ticks(floor, ceiling) {
        let y = up(tick);
        put(format!("<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"));
        put(format!(
            "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick:.2}</text>",
            LEFT - 6.0,
            y + 4.0
        ));
    }
    for tick in decades(low, high) {
        let at = across(tick);
        put(format!("<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>"));
        put(format!(
            "<text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
            BOTTOM + 18.0
        ));
    }
    let middle = (LEFT + RIGHT) / 2.0;
    put(format!("<text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>", BOTTOM + 40.0));
    put(format!("<text x=\"{LEFT}\" y=\"{:.1}\" class=\"soft\">nDCG@10</text>", TOP - 6.0));
    if let Some(y) = first_stage.map(up) {
        put(format!(
            "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"var(--soft)\" stroke-dasharray=\"5 4\"/>"
        ));
        put(format!(
            "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">first stage</text>",
            RIGHT - 4.0,
            y - 5.0
        ));
    }
    let edge: Vec<String> = frontier(&shown, &x)
        .into_iter()
        .map(|row| format!("{:.1},{:.1}", across(x(row)), up(row.ndcg)))
        .collect();
    put(format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"var(--a)\" stroke-width=\"1.5\" opacity=\".6\"/>",
        edge.join(" ")
    ));
    let mut labels = Vec::new();
    for row in &shown {
        let (cx, cy) = (across(x(row)), up(row.ndcg));
        let colour = match (row.fused, row.way) {
            (Some(_), _) => "var(--c)",
            (None, Way::Budget(_)) => "var(--b)",
            _ => "var(--a)",
        };
        put(format!(
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4.5\" fill=\"{colour}\"><title>{}: {:.4}</title></circle>",
            escape(&row.name()),
            row.ndcg
        ));
        labels.extend(row.fused.is_none().then(|| (cx, cy, row.way.name())));
    }
    let mut taken: Vec<[f64; 4]> =
        labels.iter().map(|&(x, y, _)| [x - 5.0, y - 5.0, x + 5.0, y + 5.0]).collect();
    for (cx, cy, name) in labels {
        let wide = 6.6 * name.len() as f64;
        let boxed = |(x, y): (f64, f64)| [x, y - 10.0, x + wide, y + 3.0];
        let places = [
            (cx + 9.0, cy + 4.0),
            (cx - 9.0 - wide, cy + 4.0),
            (cx - wide / 2.0, cy + 19.0),
            (cx - wide / 2.0, cy - 10.0),
            (cx + 9.0, cy + 19.0),
            (cx - 9.0 - wide, cy - 10.0),
        ];
        let free = |place: &&(f64, f64)| {
            let [left, top, right, bottom] = boxed(**place);
            let apart =
                |other: &[f64; 4]| right < other[0] || left > other[2] || bottom < other[1] || top > other[3];
            left > LEFT && right < WIDTH && taken.iter().all(apart)
        };
        let (x, y) = *places.iter().find(free).unwrap_or(&places[0]);
        taken.push(boxed((x, y)));
        put(format!("<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(&name)));
    }
    for (place, (colour, what)) in
        [("--a", "alone"), ("--b", "by budget"), ("--c", "with the first stage")].into_iter().enumerate()
    {
        let at = RIGHT - 330.0 + 110.0 * place as f64;
        let (dot, text, y) = (TOP - 10.0, at + 9.0, TOP - 6.0);
        put(format!("<circle cx=\"{at}\" cy=\"{dot}\" r=\"4.5\" fill=\"var({colour})\"/>"));
        put(format!("<text class=\"soft\" x=\"{text}\" y=\"{y}\">{what}</text>"));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Rows that no cheaper one is as good as, by rising cost.
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

/// Least and greatest, with a margin on both sides.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> (f64, f64) {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return (0.0, 1.0);
    }
    let margin = margin * (high - low).max(0.01);
    (low - margin, high + margin)
}

/// About six round values.
fn ticks(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let step =
        [0.01, 0.02, 0.05, 0.1, 0.2].into_iter().find(|step| (high - low) / step <= 7.0).unwrap_or(0.5);
    ((low / step).ceil() as i64..=(high / step).floor() as i64).map(move |place| place as f64 * step)
}

/// 1, 2 and 5 times powers of ten between powers of ten.
fn decades(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let powers = low.floor() as i32..=high.ceil() as i32;
    let all = powers.flat_map(|power| {
        [1.0, 2.0, 5.0].map(|factor: f64| format!("{factor}e{power}").parse().unwrap_or(factor))
    });
    let wide = high - low > 2.0;
    all.filter(move |value: &f64| {
        (low..=high).contains(&value.log10()) && (!wide || (value.log10() % 1.0).abs() < 1e-9)
    })
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
             <td>{rr:.3}</td><td>{ap:.3}</td><td>{recall:.3}</td><td>{tau}</td><td>{:.2}</td><td>{:.5}</td><td>{:.2}</td>\
             <td>{:.1}</td><td>{:.1}</td><td>{:.0}%</td><td>{:.0}%</td></tr>",
            escape(&row.name()),
            row.ndcg,
            row.p,
            row.device_ms,
            row.dollars_per_thousand,
            row.dollars_per_month,
            row.p50_ms,
            row.p99_ms,
            100.0 * row.degraded,
            100.0 * row.refused
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
        writeln!(text, "<tr><td>{}</td>{values}<td>{:.4}</td></tr>", escape(&row.name()), row.ndcg)
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
         on other sets. A budget's quality is that of the ways it was answered by.</p>\n",
        comparison.rate, comparison.capacity, comparison.dollars_per_hour
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(way: Way, ndcg: f64, dollars_per_thousand: f64) -> Row {
        Row {
            way,
            fused: None,
            ndcg,
            by_set: vec![ndcg],
            others: [0.0; 3],
            tau: None,
            delta: (0.0, 0.0, 0.0),
            p: 1.0,
            device_ms: dollars_per_thousand,
            dollars_per_thousand,
            dollars_per_month: 0.0,
            p50_ms: 1.0,
            p99_ms: 2.0,
            degraded: 0.0,
            refused: 0.0,
        }
    }

    #[test]
    fn the_frontier_leaves_out_what_is_dearer_and_no_better() {
        let rows = [row(Way::Fallback, 0.4, 1.0), row(Way::TopK(5), 0.3, 2.0), row(Way::Full, 0.5, 9.0)];
        let found = frontier(&rows.iter().collect::<Vec<_>>(), |row| row.dollars_per_thousand);
        assert_eq!(found.iter().map(|row| row.way).collect::<Vec<_>>(), [Way::Fallback, Way::Full]);
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(decades(0.5, 1.5).collect::<Vec<_>>(), [5.0, 10.0, 20.0]);
        assert_eq!(decades(-2.0, 2.5).collect::<Vec<_>>(), [0.01, 0.1, 1.0, 10.0, 100.0]);
        assert_eq!(ticks(0.396, 0.443).count(), 5);
    }

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escape("<script>&\""), "&lt;script&gt;&amp;&quot;");
    }
}
