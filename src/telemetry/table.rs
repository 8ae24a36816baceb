//! The table of metrics, one row each, in the order of the output.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Makes [`Table`] and [`METRICS`] from rows: field, type, initial value, exported name, and help text. Counters get
/// the suffix `_total` on output.
macro_rules! table {
    ($($field:ident: $type:ty = $new:expr, $name:literal, $help:literal;)*) => {
        /// The exported name and help text of every metric.
        pub const METRICS: &[(&str, &str)] = &[$(($name, $help)),*];

        /// The values of all metrics.
        pub(super) struct Table {
            $(pub $field: $type,)*
        }

        impl Table {
            /// Registers every metric.
            pub fn new(registry: &mut Registry) -> Self {
                $(
                    let $field: $type = $new;
                    registry.register($name.trim_end_matches("_total"), $help, $field.clone());
                )*
                Self { $($field),* }
            }
        }
    };
}

table! {
    requests: Family<RequestLabels, Counter> = Family::default(),
        "podium_requests_total", "Requests by dialect, tenant and outcome (full, topk, fallback, or the error's code)";
    budgets: Family<ResultLabel, Counter> = Family::default(),
        "podium_budgets_total", "Answers to requests with a latency budget, by result (met, missed)";
    degraded: Family<ReasonLabel, Counter> = Family::default(),
        "podium_degraded_total", "Degraded answers, by reason";
    latency: Histograms<ServedLabels> = Buckets::Latency.family(),
        "podium_request_seconds", "Seconds from arrival to answer";
    queue: Histograms<ServedLabels> = Buckets::Latency.family(),
        "podium_request_queue_seconds", "Seconds of a request before and between its batches: receiving the body, tokenising, and waiting for a lane";
    compute: Histograms<ServedLabels> = Buckets::Latency.family(),
        "podium_request_compute_seconds", "Seconds of a request in which a lane worked on it";
    documents: Counter = Counter::default(),
        "podium_documents_total", "Documents of answered requests";
    truncated: Counter = Counter::default(),
        "podium_documents_truncated_total", "Documents that lost tokens to truncation";
    queries_truncated: Counter = Counter::default(),
        "podium_queries_truncated_total", "Requests whose query lost tokens to truncation";
    batches: Family<BatchLabels, Counter> = Family::default(),
        "podium_batches_total", "Batches by result (ok, out_of_memory, non_finite, failed, stalled)";
    batch_tokens: Histograms<ModelLabels> = Buckets::Count.family(),
        "podium_batch_tokens", "Tokens of a batch";
    batch_pairs: Histograms<ModelLabels> = Buckets::Count.family(),
        "podium_batch_pairs", "Pairs of a batch";
    batch_fill: Histograms<ModelLabels> = Buckets::Ratio.family(),
        "podium_batch_fill_ratio", "Tokens of a batch, as a fraction of its lane's limit";
    batch_time: Histograms<ModelLabels> = Buckets::Device.family(),
        "podium_batch_device_seconds", "Device seconds of a batch";
    prediction_error: Family<ModelLabels, Ratio> = Family::default(),
        "podium_prediction_error_ratio", "Mean relative error of predicted batch times, last 256 batches";
    queued_jobs: Family<ModelLabels, Gauge> = Family::default(),
        "podium_queued_jobs", "Jobs that wait for a lane";
    queued_tokens: Family<ModelLabels, Gauge> = Family::default(),
        "podium_queued_tokens", "Tokens that wait for a lane";
    queued_work: Family<ModelLabels, Ratio> = Family::default(),
        "podium_queued_work_seconds", "Predicted device seconds of the jobs that wait for a lane";
    lanes_up: Family<ModelLabels, Gauge> = Family::default(),
        "podium_lanes_up", "Lanes whose model is loaded and whose breaker is closed";
    lanes: Family<ModelLabels, Gauge> = Family::default(),
        "podium_lanes", "Configured lanes";
    hedges: Counter = Counter::default(),
        "podium_hedges_total", "Fallback runs started because the primary might be late";
    hedges_won: Counter = Counter::default(),
        "podium_hedges_won_total", "Hedges whose fallback answered";
    tries: Counter = Counter::default(),
        "podium_tries_total", "Requests started on an idle lane although they were predicted to be late";
    tries_in_time: Counter = Counter::default(),
        "podium_tries_in_time_total", "Tries that met the budget";
    cancelled: Counter = Counter::default(),
        "podium_cancelled_total", "Requests whose client disconnected before the answer";
    faults: Counter = Counter::default(),
        "podium_faults_total", "Faults of lanes, including out of memory";
    deployments: Family<ResultLabel, Counter> = Family::default(),
        "podium_deployments_total", "Changes of what is served, by result (made, abandoned)";
    device: Family<UseLabels, Seconds> = Family::default(),
        "podium_device_seconds_total", "Device seconds by device, model and use (charged, discarded, idle); idle time has no model";
    cost: Family<CostLabels, Seconds> = Family::default(),
        "podium_cost_dollars_total", "Cost of the answers in dollars, by tenant; absent if no price is configured";
    energy: Family<CostLabels, Seconds> = Family::default(),
        "podium_energy_joules_total", "Energy of the answers in joules, by tenant; GPUs only";
    memory: Family<ModelLabels, Gauge> = Family::default(),
        "podium_device_memory_bytes", "Device memory in bytes that the tier's lanes use; GPUs only";
    power: Family<ModelLabels, Ratio> = Family::default(),
        "podium_device_watts", "Power of a device of the tier after a recent batch, in watts; GPUs only";
    token_cache: Family<ResultLabel, Counter> = Family::default(),
        "podium_token_cache_lookups_total", "Lookups of tokenised texts by result (hit, miss)";
    inside: Gauge = Gauge::default(),
        "podium_requests_inside", "Requests that are neither answered nor refused";
    connections: Gauge = Gauge::default(),
        "podium_connections", "Open connections";
    accepted: Counter = Counter::default(),
        "podium_connections_accepted_total", "Connections accepted";
    rejected: Counter = Counter::default(),
        "podium_connections_rejected_total", "Connections refused because too many were open";
    accept_failures: Counter = Counter::default(),
        "podium_accept_failures_total", "Connections that the system could not accept, for example because file descriptors ran out";
    ledger_failures: Counter = Counter::default(),
        "podium_ledger_write_failures_total", "Failed writes of the ledger; each is retried";
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
pub(super) struct ServedLabels {
    pub model: Arc<str>,
    pub version: Arc<str>,
    pub served: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub dialect: &'static str,
    pub tenant: Arc<str>,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabel {
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BatchLabels {
    pub model: Arc<str>,
    pub version: Arc<str>,
    pub tier: &'static str,
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UseLabels {
    pub device: Arc<str>,
    pub model: Arc<str>,
    pub version: Arc<str>,
    pub tier: &'static str,
    pub r#use: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CostLabels {
    pub model: Arc<str>,
    pub version: Arc<str>,
    pub tier: &'static str,
    pub tenant: Arc<str>,
}

pub(super) type Seconds = Counter<f64, AtomicU64>;
pub(super) type Ratio = Gauge<f64, AtomicU64>;

pub(super) type Histograms<L> = Family<L, Histogram, Buckets>;

/// Upper bounds of latency buckets: round numbers, because a service level at a bound is read exactly. Between bounds a
/// quantile is off by less than a factor of two. Native histograms need no bounds but exist only in the Protobuf format,
/// which `/metrics` does not support.
const LATENCY_SECONDS: [f64; 30] = [
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25,
    0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0,
];

/// Constructors of histogram families.
#[derive(Clone, Copy)]
pub(super) enum Buckets {
    /// [`LATENCY_SECONDS`].
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
            Self::Latency => Histogram::new(LATENCY_SECONDS.iter().copied()),
            Self::Device => Histogram::new(powers(0.000_1, 18)),
            Self::Count => Histogram::new(powers(1.0, 21)),
            Self::Ratio => Histogram::new((1..=10).map(|tenth| f64::from(tenth) / 10.0)),
        }
    }
}

impl Buckets {
    fn family<L: Clone + std::hash::Hash + Eq>(self) -> Histograms<L> {
        Family::new_with_constructor(self)
    }
}
