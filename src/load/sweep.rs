//! The highest rate that meets a service level.

use super::arrivals::Arrivals;
use super::early::{CONFIDENCE, CONFIDENCE_OVERALL, Verdict, answers_needed};
use super::figures::RunReport;
use super::run::{Load, Pace, Progress, RunPlan, Slo, run};
use super::search::Search;
use crate::base::Ns;
use serde::Serialize;
use std::sync::Arc;

/// A step ends undecided after its minimum time, once the answers that would suffice with this many over the limit have
/// arrived.
const OVER_MAX: u64 = 10;

/// The plan of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepPlan {
    /// The arrival process.
    pub arrivals: Arrivals,
    /// The service level.
    pub slo: Slo,
    /// The first rate to try, per second.
    pub first: f64,
    /// The least and the greatest rate to try.
    pub limits: (f64, f64),
    /// The search ends when the ratio of the lowest bad rate to the highest good rate is at most this; more than 1.
    pub ratio: f64,
    /// The minimum time at a rate, because a queue can grow slowly.
    pub step_min: Ns,
    /// The warm-up of each step.
    pub warmup: Ns,
    /// The allowed 99th percentile of the client's lag.
    pub lag_max: Ns,
    /// The seed of all random choices.
    pub seed: u64,
}

/// A step of a sweep.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Requests per second.
    pub rate: f64,
    /// `met`, `missed` or `undecided`.
    pub verdict: &'static str,
    /// Whether it counts as good: the service level is met, with the wanted share of full answers.
    pub good: bool,
    /// Answers that the verdict is based on, in the order of sending.
    pub answers: u64,
    /// How many of those failed or were over the limit.
    pub over: u64,
    /// The service level's percentile over all answers, in milliseconds.
    pub percentile_ms: f64,
    /// The run.
    pub run: RunReport,
}

/// The result of a sweep.
#[derive(Clone, Debug, Serialize)]
pub struct SweepReport {
    /// The service level, in words.
    pub slo: String,
    /// Its percentile.
    pub percentile: f64,
    /// Its limit in milliseconds.
    pub limit_ms: f64,
    /// The confidence of one look at a rate.
    pub confidence: f64,
    /// The confidence over all looks at a rate.
    pub confidence_overall: f64,
    /// The highest good rate.
    pub good: Option<f64>,
    /// The lowest bad rate.
    pub bad: Option<f64>,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// A warning if the lowest bad rate is due to the client, which fell behind its schedule.
    pub invalid: Option<String>,
}

impl SweepReport {
    /// The result in one sentence.
    pub fn summary(&self) -> String {
        let confidence = format!(
            "with {}% confidence at a look and {}% over all",
            100.0 * self.confidence,
            100.0 * self.confidence_overall
        );
        match (self.good, self.bad) {
            (Some(good), Some(bad)) => format!(
                "The highest rate that meets {} is {good:.2} requests a second, {confidence}; {bad:.2} was not \
                 shown to meet it.",
                self.slo
            ),
            (Some(good), None) => format!(
                "{} is met at {good:.2} requests a second, {confidence}; no higher rate was tried.",
                self.slo
            ),
            (None, Some(bad)) => {
                format!(
                    "{} was not shown to be met at any rate down to {bad:.2} requests a second.",
                    self.slo
                )
            }
            (None, None) => format!("no rate was tried for {}.", self.slo),
        }
    }
}

/// Runs the search. `watch` gets the rate of the step and its progress.
pub async fn sweep(
    load: &Arc<Load>,
    plan: &SweepPlan,
    watch: &mut (dyn FnMut(f64, Progress) + Send),
) -> SweepReport {
    let slo = plan.slo;
    let mut search = Search::new(plan.first, plan.limits, plan.ratio);
    let mut steps: Vec<Step> = Vec::new();
    while let Some(rate) = search.next() {
        let answers_min = (rate * plan.step_min.as_secs_f64()) as u64;
        let answers = answers_needed(OVER_MAX, slo.share()).max(answers_min);
        let step = RunPlan {
            pace: Pace::Open { arrivals: plan.arrivals.clone(), rate },
            // Three standard deviations of a Poisson process below its mean.
            duration: Ns(((answers as f64 + 3.0 * (answers as f64).sqrt()) / rate * 1e9) as u64),
            warmup: plan.warmup,
            seed: plan.seed.wrapping_add(steps.len() as u64),
            slo: Some(slo),
            answers_min,
        };
        let found = run(load, &step, &mut |progress| watch(rate, progress)).await;
        let report = RunReport::of(load, &step, &found, plan.lag_max);
        let (verdict, answers, over) = found.verdict.expect("a run with a service level is judged");
        let full = slo.full.is_none_or(|wanted| report.all.full() >= wanted);
        let good = verdict == Verdict::Met && full && report.invalid.is_none();
        search.tell(rate, good);
        let percentile_ms = found.all().latency.percentile_ms(slo.percentile);
        steps.push(Step { rate, verdict: verdict.name(), good, answers, over, percentile_ms, run: report });
    }
    let limit = steps.iter().find(|step| Some(step.rate) == search.bad());
    let invalid =
        limit.and_then(|step| Some(format!("at {:.2} a second {}", step.rate, step.run.invalid.as_ref()?)));
    SweepReport {
        slo: slo.to_string(),
        percentile: slo.percentile,
        limit_ms: slo.limit.as_millis_f64(),
        confidence: CONFIDENCE,
        confidence_overall: CONFIDENCE_OVERALL,
        good: search.good(),
        bad: search.bad(),
        steps,
        invalid,
    }
}
