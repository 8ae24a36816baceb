//! A report as a self-contained page: plots in SVG, tables, and the command line.

use super::figures::{Figures, Moment, PERCENTILES, RunReport};
use super::report::{Finding, Report};
use super::sweep::SweepReport;
use super::table::shares;
use super::versus::VersusReport;
use crate::page::{Axis, COLOURS, Plot, escape, page};

/// The page.
pub fn html(report: &Report) -> String {
    let mut body = String::new();
    let sides = std::iter::once(&report.side).chain(&report.other);
    for (side, name) in sides.zip([if report.other.is_some() { "A: " } else { "" }, "B: "]) {
        body += &format!("<p class=\"note\">{name}{}</p>\n", escape(&side.words()));
    }
    if let Some(invalid) = report.invalid() {
        body += &format!("<p class=\"lead wrong\">Not valid: {}</p>\n", escape(invalid));
    }
    let title = match &report.finding {
        Finding::Run(run) => {
            body += &format!("<p class=\"lead\">{}</p>\n", escape(&sentence(&run.all)));
            "Latency under load"
        }
        Finding::Sweep(sweep) => {
            body += &format!("<p class=\"lead\">{}</p>\n", escape(&sweep.summary()));
            body += &format!("<div class=\"plots\">\n{}{}</div>\n", rates(sweep), rate_costs(sweep));
            body += &steps(sweep);
            "Latency against offered rate"
        }
        Finding::Versus(versus) => {
            if let Some(median) = versus.ratios.iter().find(|ratio| ratio.name == "p50 ms") {
                body += &format!(
                    "<p class=\"lead\">B's median latency is {:.3} of A's ({:.3} to {:.3}).</p>\n",
                    median.ratio, median.low, median.high
                );
            }
            body += &ratios(versus);
            "Two sides in turns"
        }
    };
    let runs = report.runs();
    body += &format!("<div class=\"plots\">\n{}", curves(&runs));
    for (name, run) in &runs {
        body += &tiers(name, run);
        body += &degradations(name, run);
        body += &costs(name, run);
    }
    body += "</div>\n";
    for (name, run) in &runs {
        body += &figures(name, run);
    }
    body += &method(report);
    page(title, &body)
}

fn sentence(figures: &Figures) -> String {
    format!(
        "{} of {} requests were answered, {:.1} documents a second; p50 {:.1} ms, p99 {:.1} ms.",
        figures.answered,
        figures.sent,
        figures.documents_per_s,
        figures.percentile(50.0),
        figures.percentile(99.0)
    )
}

/// Latency by percentile, one line per run.
fn curves(runs: &[(&str, &RunReport)]) -> String {
    // The axis cannot show the maximum. It is drawn where the percentile of one more answer would be.
    let points = |run: &RunReport| -> Vec<(f64, f64)> {
        let left =
            |percentile: f64| 1.0 / (1.0 - percentile / 100.0).max(1.0 / run.all.answered.max(1) as f64);
        let upper = run.all.latency_ms.iter().filter(|(percentile, _)| *percentile >= 50.0);
        upper.map(|&(percentile, ms)| (left(percentile), ms)).collect()
    };
    let all: Vec<(f64, f64)> = runs.iter().flat_map(|(_, run)| points(run)).collect();
    let greatest = all.iter().map(|(x, _)| *x).fold(10.0, f64::max);
    let up = Axis::from_zero("latency in ms", all.iter().map(|(_, ms)| *ms));
    let mut plot =
        Plot::new("Latency by percentile", Axis::percentiles("percentile of answers", greatest), up);
    for ((name, run), colour) in runs.iter().zip(COLOURS) {
        plot.line(&points(run), colour);
        if !name.is_empty() {
            plot.name(colour, name);
        }
    }
    plot.finish()
}

/// Stacked counts over time; empty if nothing is counted.
fn stacked(title: &str, run: &RunReport, counts: impl Fn(&Moment) -> Vec<(&str, u64)>) -> String {
    let moments: Vec<(f64, Vec<(&str, u64)>)> =
        run.moments.iter().map(|moment| (moment.seconds, counts(moment))).collect();
    let mut names: Vec<&str> =
        moments.iter().flat_map(|(_, all)| all.iter().map(|(name, _)| *name)).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return String::new();
    }
    // A tier has the same colour in every plot.
    const ORDER: [&str; 5] = ["full", "fallback", "topk", "answered", "failed"];
    let colour = |name: &str| {
        let place = ORDER.iter().chain(&names).position(|other| *other == name);
        COLOURS[place.unwrap_or(0) % COLOURS.len()]
    };
    let width = run.moment_seconds;
    let end = moments.last().map_or(width, |(seconds, _)| seconds + width);
    let tops = moments.iter().map(|(_, all)| all.iter().map(|(_, count)| *count).sum::<u64>() as f64);
    let up = Axis::from_zero(&format!("requests in each {width:.2} s"), tops);
    let mut plot = Plot::new(title, Axis::until("scheduled send, in seconds", end), up);
    for (seconds, all) in &moments {
        let mut low = 0.0;
        for name in &names {
            let count =
                all.iter().filter(|(other, _)| other == name).map(|(_, count)| *count as f64).sum::<f64>();
            plot.bar((*seconds, seconds + width), (low, low + count), colour(name));
            low += count;
        }
    }
    names.iter().for_each(|name| plot.name(colour(name), name));
    plot.finish()
}

fn titled(title: &str, name: &str) -> String {
    if name.is_empty() { title.to_owned() } else { format!("{title}, {name}") }
}

fn tiers(name: &str, run: &RunReport) -> String {
    stacked(&titled("Answers by tier", name), run, |moment| {
        let failed = (moment.failed > 0).then_some(("failed", moment.failed));
        moment.tiers.iter().map(|(name, count)| (name.as_str(), *count)).chain(failed).collect()
    })
}

fn degradations(name: &str, run: &RunReport) -> String {
    stacked(&titled("Degraded answers by reason", name), run, |moment| {
        moment.degraded.iter().map(|(name, count)| (name.as_str(), *count)).collect()
    })
}

/// The cost of an answer over time: in dollars if the server has prices, else device time.
fn costs(name: &str, run: &RunReport) -> String {
    let points = |value: &dyn Fn(&Moment) -> Option<f64>| -> Vec<(f64, f64)> {
        run.moments.iter().filter_map(|moment| Some((moment.seconds, value(moment)?))).collect()
    };
    let dollars = points(&|moment| moment.dollars_per_thousand);
    let (label, points) = match dollars.is_empty() {
        false => ("dollars for 1000 answers", dollars),
        true => ("device ms of an answer", points(&|moment| moment.device_ms)),
    };
    let Some(&(last, _)) = points.last() else { return String::new() };
    let end = last + run.moment_seconds;
    let up = Axis::from_zero(label, points.iter().map(|(_, value)| *value));
    let across = Axis::until("scheduled send, in seconds", end);
    let mut plot = Plot::new(&titled("Cost over time", name), across, up);
    for (seconds, value) in points {
        plot.bar((seconds, seconds + run.moment_seconds), (0.0, value), COLOURS[0]);
    }
    plot.finish()
}

/// Latency against the offered rate.
fn rates(sweep: &SweepReport) -> String {
    let mut steps: Vec<_> = sweep.steps.iter().collect();
    steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let tail: Vec<(f64, f64)> = steps.iter().map(|step| (step.rate, step.percentile_ms)).collect();
    let median: Vec<(f64, f64)> =
        steps.iter().map(|step| (step.rate, step.run.all.percentile(50.0))).collect();
    let shown = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points.iter().copied().filter(|(_, ms)| *ms > 0.0).collect()
    };
    let (tail, median) = (shown(&tail), shown(&median));
    let across = Axis::log("requests a second, offered", steps.iter().map(|step| step.rate));
    let up = Axis::log("ms", tail.iter().chain(&median).map(|(_, ms)| *ms).chain([sweep.limit_ms]));
    let mut plot = Plot::new("Latency against offered rate", across, up);
    plot.level(sweep.limit_ms, &format!("limit, {} ms", sweep.limit_ms));
    plot.line(&median, COLOURS[2]);
    plot.line(&tail, "var(--soft)");
    for step in steps.iter().filter(|step| step.percentile_ms > 0.0) {
        let colour = if step.good { COLOURS[0] } else { COLOURS[1] };
        let title = format!("{:.2} a second: {:.1} ms, {}", step.rate, step.percentile_ms, step.verdict);
        plot.dot((step.rate, step.percentile_ms), colour, &title);
    }
    plot.name(COLOURS[2], "p50");
    plot.name(COLOURS[1], &format!("p{}, not met", sweep.percentile));
    plot.name(COLOURS[0], &format!("p{}, met", sweep.percentile));
    plot.finish()
}

/// Cost against the offered rate, if the server reports it.
fn rate_costs(sweep: &SweepReport) -> String {
    let mut steps: Vec<_> = sweep.steps.iter().collect();
    steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let points = |value: &dyn Fn(&Figures) -> Option<f64>| -> Vec<(f64, f64)> {
        steps.iter().filter_map(|step| Some((step.rate, value(&step.run.all)?))).collect()
    };
    let dollars = points(&|figures| figures.dollars_per_thousand);
    let (label, points) = match dollars.is_empty() {
        false => ("dollars for 1000 answers", dollars),
        true => ("device ms of an answer", points(&|figures| figures.device_ms)),
    };
    if points.is_empty() {
        return String::new();
    }
    let across = Axis::log("requests a second, offered", points.iter().map(|(rate, _)| *rate));
    let up = Axis::from_zero(label, points.iter().map(|(_, value)| *value));
    let mut plot = Plot::new("Cost against offered rate", across, up);
    plot.line(&points, COLOURS[0]);
    points
        .iter()
        .for_each(|&point| plot.dot(point, COLOURS[0], &format!("{:.2} a second: {:.5}", point.0, point.1)));
    plot.finish()
}

fn steps(sweep: &SweepReport) -> String {
    let mut text = format!(
        "<h2>Every step</h2>\n<div class=\"wide\"><table><tr><th>rate</th><th>verdict</th><th>judged by</th>\
         <th>over</th><th>answered / s</th><th>p50 ms</th><th>p{} ms</th><th>full</th><th>failed</th>\
         <th>documents / s</th></tr>\n",
        sweep.percentile
    );
    for step in &sweep.steps {
        let figures = &step.run.all;
        let class = if sweep.good == Some(step.rate) { " class=\"best\"" } else { "" };
        text += &format!(
            "<tr{class}><td>{:.2}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2}</td><td>{:.1}</td><td>{:.1}</td>\
             <td>{:.0}%</td><td>{}</td><td>{:.1}</td></tr>\n",
            step.rate,
            step.verdict,
            step.answers,
            step.over,
            figures.answered_per_s,
            figures.percentile(50.0),
            step.percentile_ms,
            100.0 * figures.full(),
            figures.failures(),
            figures.documents_per_s
        );
    }
    let shown = if sweep.good.is_some() { "best" } else { "last" };
    text + &format!("</table></div>\n<h2>At the {shown} rate</h2>\n")
}

fn ratios(versus: &VersusReport) -> String {
    let mut text =
        "<h2>B against A</h2>\n<div class=\"wide\"><table><tr><th></th><th>A</th><th>B</th><th>B / A</th>\
                    <th>95 in 100 times</th></tr>\n"
            .to_owned();
    for row in &versus.ratios {
        text += &format!(
            "<tr><td>{}</td><td>{:.4}</td><td>{:.4}</td><td>{:.3}</td><td>{:.3} to {:.3}</td></tr>\n",
            escape(&row.name),
            row.a,
            row.b,
            row.ratio,
            row.low,
            row.high
        );
    }
    text + "</table></div>\n<h2>Both</h2>\n"
}

fn figures(name: &str, run: &RunReport) -> String {
    let heads = PERCENTILES.map(|percentile| match percentile {
        100.0 => "<th>max</th>".to_owned(),
        _ => format!("<th>p{percentile}</th>"),
    });
    let (mut times, mut answers) = (String::new(), String::new());
    for row in std::iter::once(&run.all).chain(&run.kinds) {
        let kind = escape(&row.name);
        let percentiles = PERCENTILES.map(|percentile| format!("<td>{:.1}</td>", row.percentile(percentile)));
        times += &format!("<tr><td>{kind}</td><td>{:.1}</td>{}</tr>\n", row.mean_ms, percentiles.concat());
        let share =
            |count: u64| format!("<td>{:.0}%</td>", 100.0 * count as f64 / row.answered.max(1) as f64);
        let tier = |name| row.tiers.get(name).map_or_else(|| "<td></td>".to_owned(), |count| share(*count));
        answers += &format!(
            "<tr><td>{kind}</td><td>{}</td><td>{}</td><td>{:.1}</td>{}{}<td>{}</td><td>{}</td></tr>\n",
            row.sent,
            row.answered,
            row.documents_per_s,
            ["full", "topk", "fallback"].map(tier).concat(),
            share(row.degraded.values().sum()),
            row.device_ms.map_or_else(String::new, |ms| format!("{ms:.2}")),
            row.dollars_per_thousand.map_or_else(String::new, |dollars| format!("{dollars:.5}"))
        );
    }
    let mut text = format!(
        "<h2>{}</h2>\n<div class=\"wide\"><table><tr><th>latency in ms</th><th>mean</th>{}</tr>\n{times}\
         </table></div>\n<h2>{}</h2>\n<div class=\"wide\"><table><tr><th>requests</th><th>sent</th>\
         <th>answered</th><th>documents / s</th><th>full</th><th>topk</th><th>fallback</th><th>degraded</th>\
         <th>device ms</th><th>$ / 1000</th></tr>\n{answers}</table></div>\n",
        escape(&titled("Latency", name)),
        heads.concat(),
        escape(&titled("Answers", name))
    );
    for (what, words) in [
        ("Failed", shares(&run.all.failed, run.all.sent)),
        ("Degraded", shares(&run.all.degraded, run.all.answered)),
    ] {
        if !words.is_empty() {
            text += &format!("<p class=\"note\">{what}: {}.</p>\n", escape(&words));
        }
    }
    text
}

fn method(report: &Report) -> String {
    let mut text = format!(
        "<h2>How it was made</h2>\n<p class=\"note\">Requests: {}. Pace: {}; seed {}. ",
        escape(&report.requests),
        escape(&report.pace),
        report.seed
    );
    let closed = report.runs().iter().any(|(_, run)| run.closed);
    text += match closed {
        true => "Latency counts from the send, and a client sends when its last request was answered. ",
        false => {
            "Latency counts from the time at which a request was to be sent, whenever it was, so that a \
             server that stalls cannot hide it. "
        }
    };
    text += "Percentiles are of answered requests, to three digits; failures stand beside them. Tiers, degradation \
             and cost are what the answers declare. ";
    match &report.finding {
        Finding::Run(_) => {}
        Finding::Sweep(sweep) => {
            text += &format!(
                "Each rate was tried until it was clear whether it meets the service level, by MLPerf's early \
                 stopping, with {}% confidence at a look and {}% over all; or until as many answers had come as it \
                 takes with 10 over the limit (2,010 of a p99), or as its least time brings. \
                 The next rate is the geometric mean of the highest that met it and the lowest that did not.",
                100.0 * sweep.confidence,
                100.0 * sweep.confidence_overall
            );
        }
        Finding::Versus(versus) => {
            text += &format!(
                "In each of {} rounds A and B had the same requests at the same times, A first. A ratio is the \
                 geometric mean of the rounds', its interval that of 10,000 bootstrap samples of rounds.",
                versus.rounds
            );
        }
    }
    text + "</p>\n"
}
