//! The highest rate that meets a service level.

use super::arrivals::Arrivals;
use super::early::{CONFIDENCE, CONFIDENCE_OVERALL, Verdict, answers_needed};
use super::figures::RunReport;
use super::run::{Load, Pace, Progress, RunPlan, Slo, run};
use super::search::Search;
use crate::base::Ns;
use serde::Serialize;
use std::sync::Arc;

/// A step ends undecided when as many answers have come as it takes with so many over the limit, and its least
/// time has passed.
const OVER_MAX: u64 = 10;

/// What to search for, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepPlan {
    /// How requests arrive.
    pub arrivals: Arrivals,
    /// The service level.
    pub slo: Slo,
    /// The rate to begin with, a second.
    pub first: f64,
    /// The least and the greatest rate to try.
    pub limits: (f64, f64),
    /// How far apart the highest good and the lowest bad rate may be in the end: a ratio, more than 1.
    pub ratio: f64,
    /// How long a rate must hold at least: a queue that grows slowly is not seen at once.
    pub step_min: Ns,
    /// How long requests of a step are sent before they are counted.
    pub warmup: Ns,
    /// The most that the 99th percentile of the client's lag may be.
    pub lag_max: Ns,
    /// Everything random comes from it.
    pub seed: u64,
}

/// A rate that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Requests a second.
    pub rate: f64,
    /// `met`, `missed` or `undecided`; only a rate that met the service level is good.
    pub verdict: &'static str,
    /// Whether it counts as good: met, and as many answers full as are wanted.
    pub good: bool,
    /// Answers that it was judged by: the first so many that were sent.
    pub answers: u64,
    /// How many of them failed or were over the limit.
    pub over: u64,
    /// The service level's percentile of all answers, in milliseconds.
    pub percentile_ms: f64,
    /// The run.
    pub run: RunReport,
}

/// What a sweep found.
#[derive(Clone, Debug, Serialize)]
pub struct SweepReport {
    /// The service level in words.
    pub slo: String,
    /// Its percentile.
    pub percentile: f64,
    /// Its limit in milliseconds.
    pub limit_ms: f64,
    /// The confidence with which a good rate meets it, at one look.
    pub confidence: f64,
    /// The same over all looks at a rate.
    pub confidence_overall: f64,
    /// The highest rate that is good.
    pub good: Option<f64>,
    /// The lowest rate that is not.
    pub bad: Option<f64>,
    /// Every rate that was tried, in that order.
    pub steps: Vec<Step>,
    /// Why the lowest rate that is not good says nothing of the server: the client could not keep its schedule.
    pub invalid: Option<String>,
}

impl SweepReport {
    /// The sentence that most readers want.
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

/// Searches. `watch` is told the step's rate and how far it is.
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
            // A Poisson process may be three standard deviations behind its mean.
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
