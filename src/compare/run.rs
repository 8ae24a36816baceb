//! Compares ways to answer on judged sets.

use super::ask::{Asked, Server, ServerError, ask};
use super::fuse::tune;
use super::query::{Query, Scoring, read_queries};
use super::serve::{Served, ServedCost, Service, measure};
use super::way::Way;
use crate::backend::{Precision, ScoreError};
use crate::base::Tier;
use crate::engine::Clock;
use crate::eval::{
    CacheError, CachedScorerError, Interval, Judged, Measure, kendall_tau, mean, randomisation_p,
};
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

/// The subjects of a comparison.
pub struct Inputs {
    /// The primary.
    pub primary: Model,
    /// The fallback.
    pub fallback: Model,
    /// The reported judged sets, by name.
    pub sets: Vec<(String, Judged)>,
    /// Judged sets that tune the weights of fusion.
    pub tune: Vec<(String, Judged)>,
    /// Servers to ask the queries of the reported sets.
    pub servers: Vec<Arc<Server>>,
}

/// The plan of a comparison.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The precision of both models.
    pub precision: Precision,
    /// Threads of each model.
    pub threads: usize,
    /// Truncation of pairs that are too long; the default is that of a server.
    pub truncation: Truncation,
    /// Values of k for top-k.
    pub top_k: Vec<usize>,
    /// Latency budgets in milliseconds.
    pub budgets_ms: Vec<u64>,
    /// Requests per second. Without it: half of what the primary can answer in full, and servers are asked one query
    /// after the other.
    pub rate: Option<f64>,
    /// The price of the device.
    pub dollars_per_hour: f64,
    /// Requests per month.
    pub monthly_requests: u64,
    /// The share of the primary's quality that a recommended way must keep.
    pub keep: f64,
    /// The seed of all random choices.
    pub seed: u64,
}

/// A way's ranking of a set.
#[derive(Debug)]
pub struct TrecRun {
    /// The set's name.
    pub set: String,
    /// The way's name, usable in a file name.
    pub way: String,
    /// A TREC run: `query Q0 document rank score way` per line.
    pub lines: String,
}

/// The progress of a comparison.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The name of the stage.
    pub stage: String,
    /// Steps done.
    pub done: usize,
    /// Total steps.
    pub of: usize,
}

/// The result: all ways side by side.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The primary's name and data type.
    pub primary: String,
    /// The fallback's name and data type.
    pub fallback: String,
    /// The sets.
    pub sets: Vec<SetRow>,
    /// The ways, by rising cost.
    pub rows: Vec<Row>,
    /// Requests per second of the simulated load.
    pub rate: f64,
    /// Requests per second sent to servers; none if one after the other.
    pub rate_asked: Option<f64>,
    /// Requests per second that the primary can answer in full.
    pub capacity: f64,
    /// The price of the device.
    pub dollars_per_hour: f64,
    /// Requests per month.
    pub monthly_requests: u64,
    /// The share of the primary's quality that a recommended way must keep.
    pub keep: f64,
    /// The row of the cheapest way that keeps it, without fusion.
    pub cheapest: Option<usize>,
}

/// A judged set.
#[derive(Debug, Serialize)]
pub struct SetRow {
    /// Its name.
    pub name: String,
    /// Judged queries with candidates.
    pub queries: usize,
    /// The number of candidates.
    pub pairs: usize,
}

/// A way with its quality and cost.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name in reports.
    pub name: String,
    /// The ranker.
    pub way: Way,
    /// The reranker's weight in fusion, if the way is mixed with the first stage.
    pub fused: Option<f32>,
    /// nDCG@10, the mean of the sets' means.
    pub ndcg: f64,
    /// nDCG@10 of each set.
    pub by_set: Vec<f64>,
    /// RR@10, AP and R@10: means of the sets' means.
    pub others: [f64; 3],
    /// Kendall's tau to the primary's order, mean over queries.
    pub tau: Option<f64>,
    /// The difference of nDCG@10 to the primary's over all queries, with its interval.
    pub delta: (f64, f64, f64),
    /// The randomisation test's p-value of that difference.
    pub p: f64,
    /// The cost; none if a server does not report it.
    #[serde(flatten)]
    pub cost: Option<Cost>,
    /// Median latency.
    pub p50_ms: f64,
    /// 99th percentile of latency.
    pub p99_ms: f64,
    /// The share of requests that the primary did not answer in full; none if unknown.
    pub degraded: Option<f64>,
    /// The share of requests that were refused, or that a server did not answer.
    pub refused: f64,
    /// Queries that a server did not answer, by kind of failure.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub faults: BTreeMap<String, usize>,
}

/// The cost of requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Device milliseconds per request.
    pub device_ms: f64,
    /// Dollars per 1,000 requests.
    pub dollars_per_thousand: f64,
    /// Dollars per month.
    pub dollars_per_month: f64,
}

/// Why a comparison failed.
#[derive(Debug, Error)]
pub enum CompareError {
    /// A model cannot be loaded.
    #[error(transparent)]
    Model(#[from] CachedScorerError),
    /// Scores cannot be computed or stored.
    #[error("scores: {0}")]
    Scores(#[from] CacheError),
    /// A model cannot be measured.
    #[error(transparent)]
    Measure(#[from] ScoreError),
    /// A server cannot be used.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// A way that refuses more than this share of requests is not recommended.
const REFUSED_MAX: f64 = 0.01;

/// The measures of a ranking.
const MEASURES: [Measure; 4] =
    [Measure::Ndcg(10), Measure::ReciprocalRank(10), Measure::AveragePrecision, Measure::Recall(10)];

/// Compares ways to answer. The folder `work` keeps scores, so that no pair is scored twice. Returns the comparison and
/// each way's ranking of each set.
///
/// # Errors
/// [`CompareError`].
pub fn compare(
    inputs: &Inputs,
    plan: &Plan,
    work: &Path,
    tell: &mut dyn FnMut(Progress),
) -> Result<(Comparison, Vec<TrecRun>), CompareError> {
    // Servers first, because their failures show quickly.
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

/// The lengths of the requests and the measured devices.
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

/// The best fusion weight on the tuning sets, for a way with scores of its own.
fn fusion(way: Way, tuned: &[Query], sets: usize) -> Option<f32> {
    let fits = matches!(way, Way::Fallback | Way::TopK(_) | Way::Full);
    (fits && !tuned.is_empty()).then(|| {
        tune(|weight| {
            let values = tuned.iter().map(|query| query.value(MEASURES[0], way, Some(weight)));
            mean(&means(tuned, &values.collect::<Vec<_>>(), sets))
        })
    })
}

/// The mean over the queries of each set.
fn means(queries: &[Query], values: &[f64], sets: usize) -> Vec<f64> {
    let of =
        |set| queries.iter().zip(values).filter(move |(query, _)| query.set == set).map(|(_, &value)| value);
    (0..sets).map(|set| mean(&of(set).collect::<Vec<f64>>())).collect()
}

fn row(way: Way, weight: Option<f32>, served: &Served, queries: &[Query], sets: usize, plan: &Plan) -> Row {
    // Refused requests keep the first stage's order.
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
