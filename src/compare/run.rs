//! From models and judged sets to a comparison.

use super::ask::{Asked, Server, ServerError, ask};
use super::fuse::tune;
use super::query::{Query, Scoring, read_queries};
use super::serve::{Served, ServedCost, Service, measure};
use super::way::Way;
use crate::backend::{Precision, ScoreError};
use crate::base::Tier;
use crate::engine::Clock;
use crate::eval::{CacheError, Interval, Judged, KeeperError, Measure, kendall_tau, mean, randomisation_p};
use crate::load::judged_cases;
use crate::model::Model;
use crate::rerank::Truncation;
use crate::sim::Device;
use crate::token::Packed;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;

/// What is compared.
pub struct Inputs {
    /// The large model.
    pub primary: Model,
    /// The small one.
    pub fallback: Model,
    /// Judged sets by name.
    pub sets: Vec<(String, Judged)>,
    /// Judged sets that fusion's weights are tuned on.
    pub tune: Vec<(String, Judged)>,
    /// Servers that are asked the reported sets' queries.
    pub servers: Vec<Arc<Server>>,
}

/// How.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What both models compute in.
    pub precision: Precision,
    /// Threads of each.
    pub threads: usize,
    /// What is cut from pairs that are too long; by default as a server does.
    pub truncation: Truncation,
    /// Numbers of candidates for the primary.
    pub top_k: Vec<usize>,
    /// Latency budgets in milliseconds.
    pub budgets_ms: Vec<u64>,
    /// Requests a second; none is half of what the primary can answer in full, and asks servers one query after the
    /// other.
    pub rate: Option<f64>,
    /// The price of the device.
    pub dollars_per_hour: f64,
    /// Requests that a month brings.
    pub monthly_requests: u64,
    /// The share of the primary's quality that is to be kept.
    pub keep: f64,
    /// Everything random comes from it.
    pub seed: u64,
}

/// A way's order of a set's candidates.
#[derive(Debug)]
pub struct TrecRun {
    /// The set's name.
    pub set: String,
    /// The way's, as a file may be named.
    pub way: String,
    /// `query Q0 document rank score way` a line.
    pub lines: String,
}

/// How far the work is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// What is being done.
    pub stage: String,
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub of: usize,
}

/// All ways side by side.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The primary's name and what it computes in.
    pub primary: String,
    /// The fallback's.
    pub fallback: String,
    /// The sets.
    pub sets: Vec<SetRow>,
    /// The ways, by rising cost.
    pub rows: Vec<Row>,
    /// Requests a second of the simulated load.
    pub rate: f64,
    /// Requests a second that servers were asked; none was one after the other.
    pub rate_asked: Option<f64>,
    /// Requests a second that the primary can answer in full.
    pub capacity: f64,
    /// The price of the device.
    pub dollars_per_hour: f64,
    /// Requests that a month brings.
    pub monthly_requests: u64,
    /// The share of the primary's quality that is to be kept.
    pub keep: f64,
    /// The place of the cheapest row that keeps it, fusion aside.
    pub cheapest: Option<usize>,
}

/// A set.
#[derive(Debug, Serialize)]
pub struct SetRow {
    /// Its name.
    pub name: String,
    /// Judged queries with candidates.
    pub queries: usize,
    /// Their candidates.
    pub pairs: usize,
}

/// A way with what it is worth and what it costs.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name in reports.
    pub name: String,
    /// Who orders.
    pub way: Way,
    /// The reranker's weight beside the first stage, where both are mixed.
    pub fused: Option<f32>,
    /// nDCG@10, the mean of the sets' means.
    pub ndcg: f64,
    /// nDCG@10 by set.
    pub by_set: Vec<f64>,
    /// RR@10, AP and R@10, means of the sets' means.
    pub others: [f64; 3],
    /// Kendall's tau to the primary's order, the mean over queries.
    pub tau: Option<f64>,
    /// nDCG@10 less the primary's over all queries, with its interval.
    pub delta: (f64, f64, f64),
    /// The randomisation test's p-value of that.
    pub p: f64,
    /// What it costs; none where a server does not tell.
    #[serde(flatten)]
    pub cost: Option<Cost>,
    /// Half of the answers come within this.
    pub p50_ms: f64,
    /// 99 of 100 answers come within this.
    pub p99_ms: f64,
    /// The share of requests that the primary did not answer in full; none where nobody tells.
    pub degraded: Option<f64>,
    /// The share of requests that were refused, or of a server's, that it did not answer.
    pub refused: f64,
    /// Queries that a server did not answer, by what became of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub faults: BTreeMap<String, usize>,
}

/// What requests cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Device milliseconds of a request.
    pub device_ms: f64,
    /// Dollars for a thousand requests.
    pub dollars_per_thousand: f64,
    /// Dollars for a month.
    pub dollars_per_month: f64,
}

/// Why there is no comparison.
#[derive(Debug, Error)]
pub enum CompareError {
    /// A model does not score.
    #[error(transparent)]
    Model(#[from] KeeperError),
    /// Scores cannot be had or kept.
    #[error("scores: {0}")]
    Scores(#[from] CacheError),
    /// A model cannot be measured.
    #[error(transparent)]
    Measure(#[from] ScoreError),
    /// A server does not answer.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// A way that refuses more than this share of requests is not recommended.
const REFUSED_MAX: f64 = 0.01;

/// What is measured of an order.
const MEASURES: [Measure; 4] =
    [Measure::Ndcg(10), Measure::ReciprocalRank(10), Measure::AveragePrecision, Measure::Recall(10)];

/// Compares ways to answer; `work` keeps scores, so that no pair is scored twice. Returns the comparison
/// and each way's order of each set.
///
/// # Errors
/// [`CompareError`].
pub fn compare(
    inputs: &Inputs,
    plan: &Plan,
    work: &Path,
    tell: &mut dyn FnMut(Progress),
) -> Result<(Comparison, Vec<TrecRun>), CompareError> {
    // First, as what is wrong with a server is soon told.
    let mut asked = ask_servers(inputs, plan, tell)?;
    let mut primary = Scoring::open(Tier::Primary, &inputs.primary, plan, work)?;
    let mut fallback = Scoring::open(Tier::Fallback, &inputs.fallback, plan, work)?;
    let mut queries = |sets| read_queries(sets, &mut primary, &mut fallback, tell);
    let (mut reported, tuned) = (queries(&inputs.sets)?, queries(&inputs.tune)?);
    for asked in &mut asked {
        let scores = reported.iter_mut().zip(std::mem::take(&mut asked.scores));
        scores.for_each(|(query, scores)| query.servers.push(scores));
    }
    let clock = Clock::start();
    let service = service(&reported, &inputs.sets, plan, [&mut primary, &mut fallback], clock)?;
    let mut rows = Vec::new();
    for way in ways(plan) {
        let served = service.serve(way);
        let weights = fusion(way, &tuned, inputs.tune.len());
        for weight in [None].into_iter().chain(weights.map(Some)) {
            rows.push(row(way, weight, &served, &reported, inputs.sets.len(), plan));
        }
    }
    for (place, (server, Asked { served, faults, .. })) in inputs.servers.iter().zip(asked).enumerate() {
        let row = row(Way::Server(place), None, &served, &reported, inputs.sets.len(), plan);
        rows.push(Row { name: server.name.clone(), faults, ..row });
    }
    let device_ms = |row: &Row| row.cost.map_or(f64::INFINITY, |cost| cost.device_ms);
    rows.sort_by(|a, b| device_ms(a).total_cmp(&device_ms(b)).then(a.ndcg.total_cmp(&b.ndcg)));
    let runs = super::table::trec_runs(&reported, &inputs.sets, &rows);
    let best =
        rows.iter().find(|row| row.way == Way::Full && row.fused.is_none()).map_or(0.0, |row| row.ndcg);
    let keeps = |row: &Row| {
        let ours = row.fused.is_none() && !matches!(row.way, Way::FirstStage | Way::Server(_));
        ours && row.refused <= REFUSED_MAX && row.ndcg >= plan.keep * best
    };
    let set_row = |(place, (name, _)): (usize, &(String, Judged))| {
        let of_set = reported.iter().filter(|query| query.set == place);
        let pairs = of_set.clone().map(|query| query.documents.len()).sum();
        SetRow { name: name.clone(), queries: of_set.count(), pairs }
    };
    let comparison = Comparison {
        sets: inputs.sets.iter().enumerate().map(set_row).collect(),
        cheapest: rows.iter().position(keeps),
        rows,
        primary: primary.name,
        fallback: fallback.name,
        rate: service.rate,
        rate_asked: plan.rate,
        capacity: service.capacity(),
        dollars_per_hour: plan.dollars_per_hour,
        monthly_requests: plan.monthly_requests,
        keep: plan.keep,
    };
    Ok((comparison, runs))
}

/// Asks every server the reported queries.
fn ask_servers(
    inputs: &Inputs,
    plan: &Plan,
    tell: &mut dyn FnMut(Progress),
) -> Result<Vec<Asked>, ServerError> {
    // In the order of the queries.
    let cases: Vec<_> = inputs.sets.iter().flat_map(|(_, set)| judged_cases(set, usize::MAX)).collect();
    let one =
        |(place, server)| ask(place, server, &cases, plan.rate, (plan.seed, plan.dollars_per_hour), tell);
    inputs.servers.iter().enumerate().map(one).collect()
}

fn ways(plan: &Plan) -> Vec<Way> {
    let top_k = plan.top_k.iter().map(|&k| Way::TopK(k));
    let budgets = plan.budgets_ms.iter().map(|&ms| Way::Budget(ms));
    [Way::FirstStage, Way::Fallback, Way::Full].into_iter().chain(top_k).chain(budgets).collect()
}

/// The requests' lengths and the measured devices.
fn service(
    queries: &[Query],
    sets: &[(String, Judged)],
    plan: &Plan,
    [primary, fallback]: [&mut Scoring; 2],
    clock: Clock,
) -> Result<Service, CompareError> {
    let lengths = |query: &Query| -> Result<Arc<[u32]>, CacheError> {
        let (_, set) = &sets[query.set];
        let mut batch = Packed::default();
        for document in &query.documents {
            primary.keeper.reader.push(&set.queries[query.id], &set.documents[*document], &mut batch)?;
        }
        Ok(batch.lengths().collect())
    };
    let requests = queries.iter().map(lengths).collect::<Result<_, _>>()?;
    let device = |tier, scoring: &mut Scoring| -> Result<Device, ScoreError> {
        measure(tier, &mut *scoring.keeper.scorer, scoring.keeper.reader.fit.limit, clock)
    };
    let (large, small) = (device(Tier::Primary, primary)?, device(Tier::Fallback, fallback)?);
    let (rate, dollars_per_hour, seed) = (1.0, plan.dollars_per_hour, plan.seed);
    let mut service = Service { requests, primary: large, fallback: small, rate, dollars_per_hour, seed };
    service.rate = plan.rate.unwrap_or(0.5 * service.capacity());
    Ok(service)
}

/// The weight that is best on the sets to tune on, for a way that has an order of its own.
fn fusion(way: Way, tuned: &[Query], sets: usize) -> Option<f32> {
    let fits = matches!(way, Way::Fallback | Way::TopK(_) | Way::Full);
    (fits && !tuned.is_empty()).then(|| {
        tune(|weight| {
            let values = tuned.iter().map(|query| query.value(MEASURES[0], way, Some(weight)));
            mean(&means(tuned, &values.collect::<Vec<_>>(), sets))
        })
    })
}

/// The mean of each set's queries.
fn means(queries: &[Query], values: &[f64], sets: usize) -> Vec<f64> {
    let of =
        |set| queries.iter().zip(values).filter(move |(query, _)| query.set == set).map(|(_, &value)| value);
    (0..sets).map(|set| mean(&of(set).collect::<Vec<f64>>())).collect()
}

fn row(way: Way, weight: Option<f32>, served: &Served, queries: &[Query], sets: usize, plan: &Plan) -> Row {
    // Whoever is refused keeps the first stage's order.
    let answered: f64 = served.shares.iter().map(|(_, share)| share).sum();
    let mixture = || served.shares.iter().copied().chain([(Way::FirstStage, 1.0 - answered)]);
    let value = |measure: Measure, query: &Query| match way {
        Way::Budget(_) => mixture()
            .filter(|(_, share)| *share > 0.0)
            .map(|(way, share)| share * query.value(measure, way, None))
            .sum(),
        way => query.value(measure, way, weight),
    };
    let values: Vec<Vec<f64>> =
        MEASURES.iter().map(|&measure| queries.iter().map(|query| value(measure, query)).collect()).collect();
    let full: Vec<f64> = queries.iter().map(|query| query.value(MEASURES[0], Way::Full, None)).collect();
    let differences: Vec<f64> = values[0].iter().zip(&full).map(|(value, full)| value - full).collect();
    let Interval { mean: difference, low, high } = Interval::of(&differences, plan.seed);
    let by_set = means(queries, &values[0], sets);
    let other = |place: usize| mean(&means(queries, &values[place], sets));
    let tau = |query: &Query| kendall_tau(&query.known().scores(way, weight), &query.primary);
    let taus: Vec<f64> = queries.iter().filter_map(tau).collect();
    let cost = |cost: ServedCost| Cost {
        device_ms: cost.device_ns / 1e6,
        dollars_per_thousand: 1e3 * cost.dollars,
        dollars_per_month: plan.monthly_requests as f64 * cost.dollars,
    };
    let name = match weight {
        Some(weight) => format!("{} + first stage, {weight:.2}", way.name()),
        None => way.name(),
    };
    Row {
        name,
        way,
        fused: weight,
        ndcg: mean(&by_set),
        by_set,
        others: [other(1), other(2), other(3)],
        tau: (!matches!(way, Way::Budget(_)) && !taus.is_empty()).then(|| mean(&taus)),
        delta: (difference, low, high),
        p: randomisation_p(&values[0], &full, plan.seed),
        cost: served.cost.map(cost),
        p50_ms: served.p50_ms,
        p99_ms: served.p99_ms,
        degraded: served.in_full.map(|share| 1.0 - share),
        refused: (1.0 - answered).max(0.0),
        faults: BTreeMap::new(),
    }
}
