//! Prometheus metrics. Names stand in one enum; README lists them, and a test holds it to that.

use crate::base::{DeviceNs, Nanodollars, Ns, PerTier, TenantId, Tier};
use crate::rerank::Outcome;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric as Registered, Registry};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every metric. Counters get `_total` appended when they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests by what became of them.
    Requests,
    /// Answers by whether they met their budget.
    Budgets,
    /// Answers that were degraded.
    Degraded,
    /// From arrival to answer.
    Latency,
    /// The part of it in a queue.
    Queue,
    /// The part of it on a lane.
    Compute,
    /// Documents scored.
    Documents,
    /// Documents that lost tokens.
    Truncated,
    /// Batches by how they ended.
    Batches,
    /// Tokens of a batch.
    BatchTokens,
    /// Pairs of a batch.
    BatchPairs,
    /// Tokens of a batch over the lane's cap.
    BatchFill,
    /// Device time of a batch.
    BatchTime,
    /// The predictor's mean error.
    PredictionError,
    /// Jobs waiting.
    QueuedJobs,
    /// Tokens waiting.
    QueuedTokens,
    /// Predicted device time of what waits.
    QueuedWork,
    /// Lanes that work.
    LanesUp,
    /// Lanes that are configured.
    Lanes,
    /// Hedges started.
    Hedges,
    /// Hedges that answered.
    HedgesWon,
    /// Jobs whose client left.
    Cancelled,
    /// Faults of lanes.
    Faults,
    /// Device time by its use.
    Device,
    /// Dollars on responses.
    Cost,
    /// Energy of responses.
    Energy,
    /// Memory that is taken on devices.
    Memory,
    /// What devices draw.
    Power,
    /// Lookups of tokenised texts.
    TokenCache,
    /// Requests inside.
    Inside,
    /// Connections open.
    Connections,
    /// Connections accepted.
    Accepted,
    /// Connections turned away.
    Rejected,
    /// Writes of the ledger that failed.
    LedgerFailures,
}

impl Metric {
    /// Every metric, in the order in which they are written.
    pub const ALL: [Self; 34] = [
        Self::Requests,
        Self::Budgets,
        Self::Degraded,
        Self::Latency,
        Self::Queue,
        Self::Compute,
        Self::Documents,
        Self::Truncated,
        Self::Batches,
        Self::BatchTokens,
        Self::BatchPairs,
        Self::BatchFill,
        Self::BatchTime,
        Self::PredictionError,
        Self::QueuedJobs,
        Self::QueuedTokens,
        Self::QueuedWork,
        Self::LanesUp,
        Self::Lanes,
        Self::Hedges,
        Self::HedgesWon,
        Self::Cancelled,
        Self::Faults,
        Self::Device,
        Self::Cost,
        Self::Energy,
        Self::Memory,
        Self::Power,
        Self::TokenCache,
        Self::Inside,
        Self::Connections,
        Self::Accepted,
        Self::Rejected,
        Self::LedgerFailures,
    ];

    /// The name as it is scraped.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "podium_requests_total",
            Self::Budgets => "podium_budgets_total",
            Self::Degraded => "podium_degraded_total",
            Self::Latency => "podium_request_seconds",
            Self::Queue => "podium_request_queue_seconds",
            Self::Compute => "podium_request_compute_seconds",
            Self::Documents => "podium_documents_total",
            Self::Truncated => "podium_documents_truncated_total",
            Self::Batches => "podium_batches_total",
            Self::BatchTokens => "podium_batch_tokens",
            Self::BatchPairs => "podium_batch_pairs",
            Self::BatchFill => "podium_batch_fill_ratio",
            Self::BatchTime => "podium_batch_device_seconds",
            Self::PredictionError => "podium_prediction_error_ratio",
            Self::QueuedJobs => "podium_queued_jobs",
            Self::QueuedTokens => "podium_queued_tokens",
            Self::QueuedWork => "podium_queued_work_seconds",
            Self::LanesUp => "podium_lanes_up",
            Self::Lanes => "podium_lanes",
            Self::Hedges => "podium_hedges_total",
            Self::HedgesWon => "podium_hedges_won_total",
            Self::Cancelled => "podium_cancelled_total",
            Self::Faults => "podium_faults_total",
            Self::Device => "podium_device_seconds_total",
            Self::Cost => "podium_cost_dollars_total",
            Self::Energy => "podium_energy_joules_total",
            Self::Memory => "podium_device_memory_bytes",
            Self::Power => "podium_device_watts",
            Self::TokenCache => "podium_token_cache_lookups_total",
            Self::Inside => "podium_requests_inside",
            Self::Connections => "podium_connections",
            Self::Accepted => "podium_connections_accepted_total",
            Self::Rejected => "podium_connections_rejected_total",
            Self::LedgerFailures => "podium_ledger_write_failures_total",
        }
    }

    /// What it counts, with its labels.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Requests => {
                "Requests by dialect, tenant and outcome (full, topk, fallback, or the error's code)"
            }
            Self::Budgets => "Answers to requests with a latency budget, by result (met, missed)",
            Self::Degraded => "Answers that are less than their policy's best, by reason",
            Self::Latency => "Seconds from arrival to answer",
            Self::Queue => "Seconds of it that a request waited for a lane",
            Self::Compute => "Seconds of it in which a lane worked on the request",
            Self::Documents => "Documents of answered requests",
            Self::Truncated => "Documents that lost tokens to truncation",
            Self::Batches => "Batches by result (ok, out_of_memory, non_finite, failed, stalled)",
            Self::BatchTokens => "Tokens of a batch",
            Self::BatchPairs => "Pairs of a batch",
            Self::BatchFill => "Tokens of a batch over the most that its lane takes",
            Self::BatchTime => "Device seconds of a batch",
            Self::PredictionError => "Mean relative error of predicted batch times, last 256 batches",
            Self::QueuedJobs => "Jobs that wait for a lane",
            Self::QueuedTokens => "Tokens that wait for a lane",
            Self::QueuedWork => "Predicted device seconds of what waits",
            Self::LanesUp => "Lanes that take work: loaded, and their breaker closed",
            Self::Lanes => "Lanes that are configured",
            Self::Hedges => "Fallback runs started beside a primary that might be late",
            Self::HedgesWon => "Hedges whose fallback answered",
            Self::Cancelled => "Requests whose client left before the answer",
            Self::Faults => "Faults of lanes, out of memory included",
            Self::Device => "Device seconds by use (charged, discarded, idle); idle is known when scraped",
            Self::Cost => "Dollars on responses, by tenant",
            Self::Energy => "Joules of responses by tenant, where devices tell what they draw (GPUs)",
            Self::Memory => "Device memory that the tier's lanes have taken (GPUs)",
            Self::Power => "What a device of the tier drew after a recent batch (GPUs)",
            Self::TokenCache => "Lookups of tokenised texts by result (hit, miss)",
            Self::Inside => "Requests that are neither answered nor refused",
            Self::Connections => "Connections open",
            Self::Accepted => "Connections accepted",
            Self::Rejected => "Connections turned away, as too many were open",
            Self::LedgerFailures => "Writes of the ledger that failed; each is tried again",
        }
    }
}

/// A model, for labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModelLabels {
    /// Its name.
    pub model: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// Its tier's name.
    pub tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServedLabels {
    model: Arc<str>,
    version: Arc<str>,
    served: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    dialect: &'static str,
    tenant: Arc<str>,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BatchLabels {
    model: Arc<str>,
    version: Arc<str>,
    tier: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UseLabels {
    model: Arc<str>,
    version: Arc<str>,
    tier: &'static str,
    r#use: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CostLabels {
    model: Arc<str>,
    version: Arc<str>,
    tier: &'static str,
    tenant: Arc<str>,
}

type Seconds = Counter<f64, AtomicU64>;
type Ratio = Gauge<f64, AtomicU64>;

/// Makes the histograms of a family.
#[derive(Clone, Copy)]
enum Buckets {
    /// 1 ms to 65 s, each twice the one before.
    Latency,
    /// 0.1 ms to 13 s.
    Device,
    /// 1 to 2^20.
    Count,
    /// Tenths.
    Ratio,
}

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        let powers = |start: f64, count: i32| (0..count).map(move |power| start * 2_f64.powi(power));
        match self {
            Self::Latency => Histogram::new(powers(0.001, 17)),
            Self::Device => Histogram::new(powers(0.000_1, 18)),
            Self::Count => Histogram::new(powers(1.0, 21)),
            Self::Ratio => Histogram::new((1..=10).map(|tenth| f64::from(tenth) / 10.0)),
        }
    }
}

type Histograms<L> = Family<L, Histogram, Buckets>;

/// The metrics of a running server.
pub struct Metrics {
    registry: Registry,
    tenants: Vec<Arc<str>>,
    models: PerTier<Option<ModelLabels>>,
    requests: Family<RequestLabels, Counter>,
    budgets: Family<ResultLabel, Counter>,
    degraded: Family<ReasonLabel, Counter>,
    latency: Histograms<ServedLabels>,
    queue: Histograms<ServedLabels>,
    compute: Histograms<ServedLabels>,
    documents: Counter,
    truncated: Counter,
    batches: Family<BatchLabels, Counter>,
    batch_tokens: Histograms<ModelLabels>,
    batch_pairs: Histograms<ModelLabels>,
    batch_fill: Histograms<ModelLabels>,
    batch_time: Histograms<ModelLabels>,
    prediction_error: Family<ModelLabels, Ratio>,
    queued_jobs: Family<ModelLabels, Gauge>,
    queued_tokens: Family<ModelLabels, Gauge>,
    queued_work: Family<ModelLabels, Ratio>,
    lanes_up: Family<ModelLabels, Gauge>,
    lanes: Family<ModelLabels, Gauge>,
    hedges: Counter,
    hedges_won: Counter,
    cancelled: Counter,
    faults: Counter,
    device: Family<UseLabels, Seconds>,
    cost: Family<CostLabels, Seconds>,
    energy: Family<CostLabels, Seconds>,
    memory: Family<ModelLabels, Gauge>,
    power: Family<ModelLabels, Ratio>,
    token_cache: Family<ResultLabel, Counter>,
    inside: Gauge,
    connections: Gauge,
    accepted: Counter,
    rejected: Counter,
    ledger_failures: Counter,
}

/// A batch that ended.
#[derive(Clone, Copy, Debug)]
pub struct BatchFacts {
    /// Whose model ran.
    pub tier: Tier,
    /// `ok`, or the fault's name.
    pub result: &'static str,
    /// Its pairs.
    pub pairs: usize,
    /// Its tokens.
    pub tokens: u64,
    /// The most that its lane takes.
    pub tokens_max: u64,
    /// Its device time.
    pub device: DeviceNs,
}

/// What a tier looks like now.
#[derive(Clone, Copy, Debug)]
pub struct TierFacts {
    /// Jobs waiting.
    pub jobs: usize,
    /// Tokens waiting.
    pub tokens: u64,
    /// Predicted device time of what waits.
    pub work: Ns,
    /// Lanes that take work.
    pub lanes_up: usize,
    /// Mean relative error of predicted batch times.
    pub prediction_error: f64,
    /// Device time that is on responses.
    pub charged: DeviceNs,
    /// Device time that is on none.
    pub discarded: DeviceNs,
    /// Device time not used.
    pub idle: DeviceNs,
    /// Device memory that is taken, where devices tell.
    pub memory_bytes: u64,
    /// What a device draws, where devices tell.
    pub watts: Option<f64>,
}

/// The scheduler's counts since the start.
#[derive(Clone, Copy, Debug)]
pub struct CountFacts {
    /// Hedges started.
    pub hedges: u64,
    /// Hedges whose fallback answered.
    pub hedges_won: u64,
    /// Jobs whose client left.
    pub cancelled: u64,
    /// Faults of lanes.
    pub faults: u64,
}

/// What the server knows when it is scraped.
#[derive(Clone, Copy, Debug)]
pub struct ServerFacts {
    /// Lookups in the token cache: hits, misses.
    pub token_lookups: (u64, u64),
    /// Requests inside.
    pub inside: usize,
    /// Connections open.
    pub connections: usize,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections turned away.
    pub rejected: u64,
    /// Writes of the ledger that failed.
    pub ledger_failures: u64,
}

impl Metrics {
    /// A tenant's name.
    pub fn tenant(&self, tenant: TenantId) -> Arc<str> {
        self.tenants[tenant.0 as usize].clone()
    }

    /// Registers every metric of a server with these models, lanes of each tier, and tenants.
    pub fn new(models: PerTier<Option<ModelLabels>>, lanes: PerTier<usize>, tenants: Vec<Arc<str>>) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            tenants,
            models,
            requests: Family::default(),
            budgets: Family::default(),
            degraded: Family::default(),
            latency: Family::new_with_constructor(Buckets::Latency),
            queue: Family::new_with_constructor(Buckets::Latency),
            compute: Family::new_with_constructor(Buckets::Latency),
            documents: Counter::default(),
            truncated: Counter::default(),
            batches: Family::default(),
            batch_tokens: Family::new_with_constructor(Buckets::Count),
            batch_pairs: Family::new_with_constructor(Buckets::Count),
            batch_fill: Family::new_with_constructor(Buckets::Ratio),
            batch_time: Family::new_with_constructor(Buckets::Device),
            prediction_error: Family::default(),
            queued_jobs: Family::default(),
            queued_tokens: Family::default(),
            queued_work: Family::default(),
            lanes_up: Family::default(),
            lanes: Family::default(),
            hedges: Counter::default(),
            hedges_won: Counter::default(),
            cancelled: Counter::default(),
            faults: Counter::default(),
            device: Family::default(),
            cost: Family::default(),
            energy: Family::default(),
            memory: Family::default(),
            power: Family::default(),
            token_cache: Family::default(),
            inside: Gauge::default(),
            connections: Gauge::default(),
            accepted: Counter::default(),
            rejected: Counter::default(),
            ledger_failures: Counter::default(),
        };
        metrics.register();
        for (tier, labels) in metrics.served() {
            metrics.lanes.get_or_create(labels).set(lanes[tier] as i64);
        }
        metrics
    }

    fn register(&mut self) {
        fn add(registry: &mut Registry, metric: Metric, it: impl Registered) {
            let name = metric.name();
            registry.register(name.strip_suffix("_total").unwrap_or(name), metric.help(), it);
        }
        let registry = &mut self.registry;
        for metric in Metric::ALL {
            match metric {
                Metric::Requests => add(registry, metric, self.requests.clone()),
                Metric::Budgets => add(registry, metric, self.budgets.clone()),
                Metric::Degraded => add(registry, metric, self.degraded.clone()),
                Metric::Latency => add(registry, metric, self.latency.clone()),
                Metric::Queue => add(registry, metric, self.queue.clone()),
                Metric::Compute => add(registry, metric, self.compute.clone()),
                Metric::Documents => add(registry, metric, self.documents.clone()),
                Metric::Truncated => add(registry, metric, self.truncated.clone()),
                Metric::Batches => add(registry, metric, self.batches.clone()),
                Metric::BatchTokens => add(registry, metric, self.batch_tokens.clone()),
                Metric::BatchPairs => add(registry, metric, self.batch_pairs.clone()),
                Metric::BatchFill => add(registry, metric, self.batch_fill.clone()),
                Metric::BatchTime => add(registry, metric, self.batch_time.clone()),
                Metric::PredictionError => add(registry, metric, self.prediction_error.clone()),
                Metric::QueuedJobs => add(registry, metric, self.queued_jobs.clone()),
                Metric::QueuedTokens => add(registry, metric, self.queued_tokens.clone()),
                Metric::QueuedWork => add(registry, metric, self.queued_work.clone()),
                Metric::LanesUp => add(registry, metric, self.lanes_up.clone()),
                Metric::Lanes => add(registry, metric, self.lanes.clone()),
                Metric::Hedges => add(registry, metric, self.hedges.clone()),
                Metric::HedgesWon => add(registry, metric, self.hedges_won.clone()),
                Metric::Cancelled => add(registry, metric, self.cancelled.clone()),
                Metric::Faults => add(registry, metric, self.faults.clone()),
                Metric::Device => add(registry, metric, self.device.clone()),
                Metric::Cost => add(registry, metric, self.cost.clone()),
                Metric::Energy => add(registry, metric, self.energy.clone()),
                Metric::Memory => add(registry, metric, self.memory.clone()),
                Metric::Power => add(registry, metric, self.power.clone()),
                Metric::TokenCache => add(registry, metric, self.token_cache.clone()),
                Metric::Inside => add(registry, metric, self.inside.clone()),
                Metric::Connections => add(registry, metric, self.connections.clone()),
                Metric::Accepted => add(registry, metric, self.accepted.clone()),
                Metric::Rejected => add(registry, metric, self.rejected.clone()),
                Metric::LedgerFailures => add(registry, metric, self.ledger_failures.clone()),
            }
        }
    }

    fn served(&self) -> impl Iterator<Item = (Tier, &ModelLabels)> {
        Tier::ALL.into_iter().filter_map(|tier| Some((tier, self.models[tier].as_ref()?)))
    }

    /// Counts a request that was answered with scores.
    pub fn answered(&self, dialect: &'static str, tenant: TenantId, outcome: &Outcome) {
        let receipt = &outcome.receipt;
        let served = receipt.served.name();
        self.request(dialect, Some(tenant), served);
        let (model, version) = (receipt.model.clone(), receipt.version.clone());
        let labels = ServedLabels { model, version, served };
        self.latency.get_or_create(&labels).observe(receipt.elapsed.as_secs_f64());
        self.queue.get_or_create(&labels).observe(receipt.queue.as_secs_f64());
        self.compute.get_or_create(&labels).observe(receipt.compute.as_secs_f64());
        self.documents.inc_by(outcome.scores.len() as u64);
        self.truncated.inc_by(outcome.truncated.iter().filter(|&&truncated| truncated).count() as u64);
        if receipt.budget.is_some() {
            let result = if receipt.within_budget() { "met" } else { "missed" };
            self.budgets.get_or_create(&ResultLabel { result }).inc();
        }
        if let Some(degradation) = receipt.degraded {
            self.degraded.get_or_create(&ReasonLabel { reason: degradation.name() }).inc();
        }
    }

    /// Counts a request that was answered with an error of this code; the tenant is none where the
    /// caller is not known.
    pub fn refused(&self, dialect: &'static str, tenant: Option<TenantId>, code: &'static str) {
        self.request(dialect, tenant, code);
    }

    fn request(&self, dialect: &'static str, tenant: Option<TenantId>, outcome: &'static str) {
        let tenant = tenant.map_or_else(|| Arc::from(""), |tenant| self.tenants[tenant.0 as usize].clone());
        self.requests.get_or_create(&RequestLabels { dialect, tenant, outcome }).inc();
    }

    /// Counts a batch.
    pub fn batch(&self, facts: &BatchFacts) {
        let Some(labels) = &self.models[facts.tier] else { return };
        let ModelLabels { model, version, tier } = labels.clone();
        self.batches.get_or_create(&BatchLabels { model, version, tier, result: facts.result }).inc();
        self.batch_tokens.get_or_create(labels).observe(facts.tokens as f64);
        self.batch_pairs.get_or_create(labels).observe(facts.pairs as f64);
        self.batch_fill.get_or_create(labels).observe(facts.tokens as f64 / facts.tokens_max as f64);
        self.batch_time.get_or_create(labels).observe(facts.device.0 as f64 / 1e9);
    }

    /// Adds an answer's price, and its energy where that is known.
    pub fn charged(&self, tier: Tier, tenant: TenantId, cost: Nanodollars, joules: Option<f64>) {
        let Some(ModelLabels { model, version, tier }) = self.models[tier].clone() else { return };
        let tenant = self.tenants[tenant.0 as usize].clone();
        let labels = CostLabels { model, version, tier, tenant };
        self.cost.get_or_create(&labels).inc_by(cost.0 as f64 / 1e9);
        if let Some(joules) = joules {
            self.energy.get_or_create(&labels).inc_by(joules);
        }
    }

    /// Replaces what is known of a tier.
    pub fn tier(&self, tier: Tier, facts: &TierFacts) {
        let Some(labels) = &self.models[tier] else { return };
        self.queued_jobs.get_or_create(labels).set(facts.jobs as i64);
        self.queued_tokens.get_or_create(labels).set(facts.tokens as i64);
        self.queued_work.get_or_create(labels).set(facts.work.as_secs_f64());
        self.lanes_up.get_or_create(labels).set(facts.lanes_up as i64);
        self.prediction_error.get_or_create(labels).set(facts.prediction_error);
        if facts.memory_bytes > 0 {
            self.memory.get_or_create(labels).set(facts.memory_bytes as i64);
        }
        if let Some(watts) = facts.watts {
            self.power.get_or_create(labels).set(watts);
        }
        let uses = [("charged", facts.charged), ("discarded", facts.discarded), ("idle", facts.idle)];
        for (r#use, device) in uses {
            let ModelLabels { model, version, tier } = labels.clone();
            let seconds = device.0 as f64 / 1e9;
            let counter = self.device.get_or_create_owned(&UseLabels { model, version, tier, r#use });
            counter.inner().store(seconds.to_bits(), Ordering::Relaxed);
        }
    }

    /// Replaces the scheduler's counts.
    pub fn counts(&self, facts: &CountFacts) {
        put(&self.hedges, facts.hedges);
        put(&self.hedges_won, facts.hedges_won);
        put(&self.cancelled, facts.cancelled);
        put(&self.faults, facts.faults);
    }

    /// Writes every metric in Prometheus' text format, with what the server knows just now.
    pub fn scrape(&self, facts: &ServerFacts) -> String {
        let lookups = [("hit", facts.token_lookups.0), ("miss", facts.token_lookups.1)];
        for (result, count) in lookups {
            put(&self.token_cache.get_or_create(&ResultLabel { result }), count);
        }
        self.inside.set(facts.inside as i64);
        self.connections.set(facts.connections as i64);
        put(&self.accepted, facts.accepted);
        put(&self.rejected, facts.rejected);
        put(&self.ledger_failures, facts.ledger_failures);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes all that is written");
        text
    }
}

/// Sets a counter that is kept elsewhere, where it only grows.
fn put(counter: &Counter, count: u64) {
    counter.inner().store(count, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Tokens;
    use crate::rerank::{Degradation, Receipt, Served};

    fn metrics() -> Metrics {
        let labels =
            |tier: Tier| Some(ModelLabels { model: "m".into(), version: "v".into(), tier: tier.name() });
        let lanes = PerTier { primary: 2, fallback: 0 };
        Metrics::new(PerTier { primary: labels(Tier::Primary), fallback: None }, lanes, vec!["acme".into()])
    }

    const SERVER: ServerFacts = ServerFacts {
        token_lookups: (3, 1),
        inside: 2,
        connections: 5,
        accepted: 9,
        rejected: 1,
        ledger_failures: 0,
    };

    fn outcome(elapsed: u64) -> Outcome {
        let receipt = Receipt {
            served: Served::Full,
            degraded: None,
            budget: Some(Ns::from_millis(10)),
            elapsed: Ns::from_millis(elapsed),
            queue: Ns::ZERO,
            compute: Ns::from_millis(elapsed),
            model: "m".into(),
            version: "v".into(),
            device: DeviceNs(7),
            cost: Nanodollars(7),
            joules: None,
        };
        Outcome { scores: vec![1.0, 2.0], truncated: vec![true, false], tokens: Tokens(9), receipt }
    }

    #[test]
    fn an_answer_is_counted_by_all_that_it_is() {
        let metrics = metrics();
        metrics.answered("tei", TenantId(0), &outcome(5));
        metrics.answered("tei", TenantId(0), &outcome(50));
        metrics.refused("tei", None, "unauthorized");
        metrics.charged(Tier::Primary, TenantId(0), Nanodollars(1_500_000_000), Some(2.5));
        let text = metrics.scrape(&SERVER);
        for line in [
            r#"podium_requests_total{dialect="tei",tenant="acme",outcome="full"} 2"#,
            r#"podium_requests_total{dialect="tei",tenant="",outcome="unauthorized"} 1"#,
            r#"podium_budgets_total{result="met"} 1"#,
            r#"podium_budgets_total{result="missed"} 1"#,
            r#"podium_request_seconds_count{model="m",version="v",served="full"} 2"#,
            "podium_documents_truncated_total 2",
            r#"podium_cost_dollars_total{model="m",version="v",tier="primary",tenant="acme"} 1.5"#,
            r#"podium_energy_joules_total{model="m",version="v",tier="primary",tenant="acme"} 2.5"#,
            r#"podium_lanes{model="m",version="v",tier="primary"} 2"#,
            r#"podium_token_cache_lookups_total{result="hit"} 3"#,
            "podium_connections 5",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn names_are_distinct_and_scraped_with_their_help() {
        let metrics = metrics();
        let degraded = Receipt { degraded: Some(Degradation::Late), ..outcome(5).receipt };
        metrics.answered("tei", TenantId(0), &Outcome { receipt: degraded, ..outcome(5) });
        metrics.charged(Tier::Primary, TenantId(0), Nanodollars(1), Some(1.0));
        let device = DeviceNs(1);
        let (tier, result) = (Tier::Primary, "ok");
        metrics.batch(&BatchFacts { tier, result, pairs: 1, tokens: 10, tokens_max: 100, device });
        let (charged, discarded, idle) = (device, device, device);
        let (jobs, tokens, work, lanes_up, prediction_error) = (1, 1, Ns(1), 1, 0.1);
        let (memory_bytes, watts) = (1, Some(1.0));
        let facts = TierFacts {
            jobs,
            tokens,
            work,
            lanes_up,
            prediction_error,
            charged,
            discarded,
            idle,
            memory_bytes,
            watts,
        };
        metrics.tier(Tier::Primary, &facts);
        let text = metrics.scrape(&SERVER);
        for metric in Metric::ALL {
            let family = metric.name().strip_suffix("_total").unwrap_or(metric.name());
            assert_eq!(text.matches(&format!("# HELP {family} ")).count(), 1, "{family}");
        }
    }
}
