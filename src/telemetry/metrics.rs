//! Prometheus metrics: records facts. [`METRICS`] has every name; a test compares README with it.

pub use super::table::{METRICS, ModelLabels};

use super::table::{
    BatchLabels, CostLabels, ReasonLabel, RequestLabels, ResultLabel, ServedLabels, Table, UseLabels,
};
use crate::base::{DeviceNs, Nanodollars, Ns, TenantId};
use crate::rerank::Outcome;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The metrics of a running server.
pub struct Metrics {
    registry: Registry,
    tenants: Vec<Arc<str>>,
    table: Table,
}

/// A finished batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchFacts {
    /// `ok`, or the name of the fault.
    pub result: &'static str,
    /// Its pairs.
    pub pairs: usize,
    /// Its tokens.
    pub tokens: u64,
    /// The lane's limit of tokens per batch.
    pub tokens_max: u64,
    /// Its device time.
    pub device: DeviceNs,
}

/// The present state of a model.
#[derive(Clone, Copy, Debug)]
pub struct ModelFacts {
    /// Jobs waiting.
    pub jobs: usize,
    /// Tokens waiting.
    pub tokens: u64,
    /// Predicted device time of the waiting jobs.
    pub work: Ns,
    /// Its lanes, and those of them that accept work.
    pub lanes: usize,
    /// Lanes that accept work.
    pub lanes_up: usize,
    /// Mean relative error of predicted batch times.
    pub prediction_error: f64,
    /// Allocated device memory, if devices report it.
    pub memory_bytes: u64,
    /// Power draw of a device, if devices report it.
    pub watts: Option<f64>,
}

/// Counts of the scheduler since the start.
#[derive(Clone, Copy, Debug)]
pub struct CountFacts {
    /// Hedges started.
    pub hedges: u64,
    /// Hedges whose fallback answered.
    pub hedges_won: u64,
    /// Idle tiers tried although they were predicted to be late.
    pub tries: u64,
    /// Tries that were in time.
    pub tries_in_time: u64,
    /// Jobs cancelled by their client.
    pub cancelled: u64,
    /// Faults of lanes.
    pub faults: u64,
}

/// Values that are read when metrics are scraped.
#[derive(Clone, Copy, Debug)]
pub struct ServerFacts {
    /// Hits and misses of the token cache.
    pub token_lookups: (u64, u64),
    /// Requests that are neither answered nor refused.
    pub inside: usize,
    /// Open connections.
    pub connections: usize,
    /// Accepted connections.
    pub accepted: u64,
    /// Rejected connections.
    pub rejected: u64,
    /// Connections that could not be accepted.
    pub accept_failures: u64,
    /// Failed writes of the ledger.
    pub ledger_failures: u64,
}

impl Metrics {
    /// A tenant's name.
    pub fn tenant(&self, tenant: TenantId) -> Arc<str> {
        self.tenants[tenant.0 as usize].clone()
    }

    /// Registers the metrics of a server with these tenants.
    pub fn new(tenants: Vec<Arc<str>>) -> Self {
        let mut registry = Registry::default();
        let table = Table::new(&mut registry);
        Self { registry, tenants, table }
    }

    /// Counts a request that was answered with scores.
    pub fn answered(&self, dialect: &'static str, tenant: TenantId, outcome: &Outcome) {
        let receipt = &outcome.receipt;
        let served = receipt.served.name();
        self.request(dialect, Some(tenant), served);
        let (model, version) = (receipt.model.clone(), receipt.version.clone());
        let labels = ServedLabels { model, version, served };
        self.table.latency.get_or_create(&labels).observe(receipt.elapsed.as_secs_f64());
        self.table.queue.get_or_create(&labels).observe(receipt.queue.as_secs_f64());
        self.table.compute.get_or_create(&labels).observe(receipt.compute.as_secs_f64());
        self.table.documents.inc_by(outcome.scores.len() as u64);
        self.table.truncated.inc_by(outcome.receipt.truncated.documents.into());
        self.table.queries_truncated.inc_by(u64::from(outcome.receipt.truncated.query_tokens > 0));
        if receipt.budget.is_some() {
            let result = if receipt.within_budget() { "met" } else { "missed" };
            self.table.budgets.get_or_create(&ResultLabel { result }).inc();
        }
        if let Some(degradation) = receipt.degraded {
            self.table.degraded.get_or_create(&ReasonLabel { reason: degradation.name() }).inc();
        }
    }

    /// Counts a request that was answered with this error code. The tenant is none if the caller is unknown.
    pub fn refused(&self, dialect: &'static str, tenant: Option<TenantId>, code: &'static str) {
        self.request(dialect, tenant, code);
    }

    fn request(&self, dialect: &'static str, tenant: Option<TenantId>, outcome: &'static str) {
        let tenant = tenant.map_or_else(|| Arc::from(""), |tenant| self.tenants[tenant.0 as usize].clone());
        self.table.requests.get_or_create(&RequestLabels { dialect, tenant, outcome }).inc();
    }

    /// Counts a change of what is served, by its result.
    pub fn deployed(&self, result: &'static str) {
        self.table.deployments.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a batch.
    pub fn batch(&self, labels: &ModelLabels, facts: &BatchFacts) {
        let ModelLabels { model, version, tier } = labels.clone();
        self.table.batches.get_or_create(&BatchLabels { model, version, tier, result: facts.result }).inc();
        self.table.batch_tokens.get_or_create(labels).observe(facts.tokens as f64);
        self.table.batch_pairs.get_or_create(labels).observe(facts.pairs as f64);
        self.table.batch_fill.get_or_create(labels).observe(facts.tokens as f64 / facts.tokens_max as f64);
        self.table.batch_time.get_or_create(labels).observe(facts.device.0 as f64 / 1e9);
    }

    /// Adds the price and the energy of an answer, if they are known.
    pub fn charged(
        &self,
        labels: &ModelLabels,
        tenant: TenantId,
        cost: Option<Nanodollars>,
        joules: Option<f64>,
    ) {
        let ModelLabels { model, version, tier } = labels.clone();
        let tenant = self.tenants[tenant.0 as usize].clone();
        let labels = CostLabels { model, version, tier, tenant };
        if let Some(cost) = cost {
            self.table.cost.get_or_create(&labels).inc_by(cost.0 as f64 / 1e9);
        }
        if let Some(joules) = joules {
            self.table.energy.get_or_create(&labels).inc_by(joules);
        }
    }

    /// Replaces the state of a model.
    pub fn model(&self, labels: &ModelLabels, facts: &ModelFacts) {
        self.table.queued_jobs.get_or_create(labels).set(facts.jobs as i64);
        self.table.queued_tokens.get_or_create(labels).set(facts.tokens as i64);
        self.table.queued_work.get_or_create(labels).set(facts.work.as_secs_f64());
        self.table.lanes.get_or_create(labels).set(facts.lanes as i64);
        self.table.lanes_up.get_or_create(labels).set(facts.lanes_up as i64);
        self.table.prediction_error.get_or_create(labels).set(facts.prediction_error);
        if facts.memory_bytes > 0 {
            self.table.memory.get_or_create(labels).set(facts.memory_bytes as i64);
        }
        if let Some(watts) = facts.watts {
            self.table.power.get_or_create(labels).set(watts);
        }
    }

    /// Removes the state of a model that serves no longer. What it has done is still counted.
    pub fn forget(&self, labels: &ModelLabels) {
        self.table.queued_jobs.remove(labels);
        self.table.queued_tokens.remove(labels);
        self.table.queued_work.remove(labels);
        self.table.lanes.remove(labels);
        self.table.lanes_up.remove(labels);
        self.table.prediction_error.remove(labels);
        self.table.memory.remove(labels);
        self.table.power.remove(labels);
    }

    /// Replaces a device's time since the start in one use (`charged`, `discarded`, `idle`) by one model; idle time has no
    /// model.
    pub fn device(
        &self,
        device: &Arc<str>,
        labels: Option<&ModelLabels>,
        r#use: &'static str,
        time: DeviceNs,
    ) {
        let nobody = || ModelLabels { model: "".into(), version: "".into(), tier: "" };
        let ModelLabels { model, version, tier } = labels.cloned().unwrap_or_else(nobody);
        let labels = UseLabels { device: device.clone(), model, version, tier, r#use };
        let seconds = time.0 as f64 / 1e9;
        let counter = self.table.device.get_or_create_owned(&labels);
        counter.inner().store(seconds.to_bits(), Ordering::Relaxed);
    }

    /// Replaces the scheduler's counts.
    pub fn counts(&self, facts: &CountFacts) {
        put(&self.table.hedges, facts.hedges);
        put(&self.table.hedges_won, facts.hedges_won);
        put(&self.table.tries, facts.tries);
        put(&self.table.tries_in_time, facts.tries_in_time);
        put(&self.table.cancelled, facts.cancelled);
        put(&self.table.faults, facts.faults);
    }

    /// Writes all metrics in Prometheus' text format, with the values read at scraping.
    pub fn scrape(&self, facts: &ServerFacts) -> String {
        let lookups = [("hit", facts.token_lookups.0), ("miss", facts.token_lookups.1)];
        for (result, count) in lookups {
            put(&self.table.token_cache.get_or_create(&ResultLabel { result }), count);
        }
        self.table.inside.set(facts.inside as i64);
        self.table.connections.set(facts.connections as i64);
        put(&self.table.accepted, facts.accepted);
        put(&self.table.rejected, facts.rejected);
        put(&self.table.accept_failures, facts.accept_failures);
        put(&self.table.ledger_failures, facts.ledger_failures);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes all that is written");
        text
    }
}

/// Raises a counter to a total that is kept elsewhere.
fn put(counter: &Counter, count: u64) {
    counter.inner().store(count, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Tokens;
    use crate::rerank::{Degradation, Receipt, Served, Truncated};

    fn metrics() -> Metrics {
        Metrics::new(vec!["acme".into()])
    }

    fn labels() -> ModelLabels {
        ModelLabels { model: "m".into(), version: "v".into(), tier: "primary" }
    }

    const MODEL: ModelFacts = ModelFacts {
        jobs: 1,
        tokens: 1,
        work: Ns(1),
        lanes: 2,
        lanes_up: 1,
        prediction_error: 0.1,
        memory_bytes: 1,
        watts: Some(1.0),
    };

    const SERVER: ServerFacts = ServerFacts {
        token_lookups: (3, 1),
        inside: 2,
        connections: 5,
        accepted: 9,
        rejected: 1,
        accept_failures: 0,
        ledger_failures: 0,
    };

    fn outcome(elapsed: u64) -> Outcome {
        let receipt = Receipt {
            served: Served::Full,
            degraded: None,
            budget: Some(Ns::from_millis(10)),
            elapsed: Ns::from_millis(elapsed),
            queue: Ns::ZERO,
            tokenise: Ns::ZERO,
            compute: Ns::from_millis(elapsed),
            model: "m".into(),
            version: "v".into(),
            device_kind: "cpu".into(),
            device: DeviceNs(7),
            cost: Some(Nanodollars(7)),
            joules: None,
            truncated: Truncated { documents: 1, query_tokens: elapsed as u32 / 50 },
        };
        let (scores, truncated, tokens) = (vec![1.0, 2.0], vec![true, false], Tokens(9));
        Outcome { scores, truncated, tokens, without_instruction: Vec::new(), receipt }
    }

    #[test]
    fn an_answer_is_counted_by_all_that_it_is() {
        let metrics = metrics();
        metrics.answered("tei", TenantId(0), &outcome(5));
        metrics.answered("tei", TenantId(0), &outcome(50));
        metrics.refused("tei", None, "unauthorized");
        metrics.charged(&labels(), TenantId(0), Some(Nanodollars(1_500_000_000)), Some(2.5));
        metrics.model(&labels(), &MODEL);
        let text = metrics.scrape(&SERVER);
        for line in [
            r#"podium_requests_total{dialect="tei",tenant="acme",outcome="full"} 2"#,
            r#"podium_requests_total{dialect="tei",tenant="",outcome="unauthorized"} 1"#,
            r#"podium_budgets_total{result="met"} 1"#,
            r#"podium_budgets_total{result="missed"} 1"#,
            r#"podium_request_seconds_count{model="m",version="v",served="full"} 2"#,
            "podium_documents_truncated_total 2",
            "podium_queries_truncated_total 1",
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
    fn a_service_level_of_a_round_number_is_a_bucket() {
        let metrics = metrics();
        metrics.answered("tei", TenantId(0), &outcome(180));
        metrics.answered("tei", TenantId(0), &outcome(210));
        let text = metrics.scrape(&SERVER);
        for (seconds, count) in [("0.15", 0), ("0.2", 1), ("0.25", 2), ("60.0", 2), ("+Inf", 2)] {
            let line = format!(
                r#"podium_request_seconds_bucket{{le="{seconds}",model="m",version="v",served="full"}} {count}"#
            );
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }

    #[test]
    fn names_are_distinct_and_scraped_with_their_help() {
        let metrics = metrics();
        let degraded = Receipt { degraded: Some(Degradation::Late), ..outcome(5).receipt };
        metrics.answered("tei", TenantId(0), &Outcome { receipt: degraded, ..outcome(5) });
        metrics.charged(&labels(), TenantId(0), Some(Nanodollars(1)), Some(1.0));
        let device = DeviceNs(1);
        metrics.batch(&labels(), &BatchFacts { result: "ok", pairs: 1, tokens: 10, tokens_max: 100, device });
        metrics.model(&labels(), &MODEL);
        metrics.deployed("made");
        metrics.device(&"cpu".into(), Some(&labels()), "charged", device);
        let text = metrics.scrape(&SERVER);
        for (name, _) in METRICS {
            let family = name.trim_end_matches("_total");
            assert_eq!(text.matches(&format!("# HELP {family} ")).count(), 1, "{family}");
        }
    }

    #[test]
    fn a_model_that_is_gone_has_no_state_but_what_it_has_done() {
        let metrics = metrics();
        metrics.model(&labels(), &MODEL);
        metrics.charged(&labels(), TenantId(0), Some(Nanodollars(1_000_000_000)), None);
        metrics.forget(&labels());
        let text = metrics.scrape(&SERVER);
        let of_it: Vec<&str> = text.lines().filter(|line| line.contains(r#"model="m""#)).collect();
        let cost = r#"podium_cost_dollars_total{model="m",version="v",tier="primary",tenant="acme"} 1.0"#;
        assert_eq!(of_it, [cost]);
    }
}
