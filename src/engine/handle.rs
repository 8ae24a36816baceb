//! The interface of the engine: from a request to its outcome.

use super::clock::Clock;
use super::driver::{Message, Submission};
use super::mailbox::Post;
use super::pairs::Part;
use super::prepare::Prepare;
use super::router::{Resolved, Router, Routes};
use super::served::{Candidates, ModelInfo, Served};
use super::{ModelSetup, Setup};
use crate::base::{ModelId, Ns, TenantId, Tier};
use crate::deployments::Served as Line;
use crate::rerank::{Outcome, Overflow, Policy, Refusal, Request};
use crate::sched::{Arrival, JobId};
use crate::telemetry::metrics::Metrics;
use crate::token::Tokenizer;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::oneshot;

/// A handle to the running engine. Clones are cheap and share the engine.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// The origin of a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The tenant that is charged.
    pub tenant: TenantId,
    /// When the request was accepted, by [`Handle::now`].
    pub arrived: Ns,
    /// What holds where the request names no policy.
    pub policy: Policy,
}

/// Whether the engine takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Models are loading and warming up.
    Loading,
    /// Requests are accepted.
    Ready,
    /// Accepted requests are finished, new ones refused.
    Draining,
}

/// What the engine takes at once, and what it does with texts that are too long.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Requests that are neither answered nor refused.
    pub requests_max: usize,
    /// Tokens of the largest lane's batch.
    pub batch_tokens_max: u64,
    /// Threads that tokenise.
    pub tokenizers: usize,
    /// Whether pairs that are too long are cut where a request does not say.
    pub truncates: bool,
}

pub(super) struct Shared {
    clock: Clock,
    driver: Post<Message>,
    prepare: Prepare,
    metrics: Arc<Metrics>,
    pub router: Router,
    any_model: bool,
    default_budget: Option<Ns>,
    state: AtomicU8,
    jobs: AtomicU64,
    /// Requests that are neither answered nor refused.
    inside: AtomicUsize,
    capacity: Capacity,
    /// The models that were configured, until they are up.
    configured: Arc<[ModelInfo]>,
    /// The tokenizer of the first of them.
    tokenizer: Arc<Tokenizer>,
}

impl Shared {
    pub fn new(
        setup: &Setup,
        (driver, prepare): (Post<Message>, Prepare),
        models: &[ModelSetup],
        metrics: Arc<Metrics>,
    ) -> Self {
        let created_unix = setup.clock.unix_seconds();
        let lanes = models.iter().flat_map(|model| &model.lanes);
        Self {
            clock: setup.clock,
            driver,
            prepare,
            metrics,
            router: Router::default(),
            any_model: setup.any_model,
            default_budget: setup.default_budget,
            state: AtomicU8::new(State::Loading as u8),
            jobs: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            capacity: Capacity {
                // Requests being tokenised come on top of the scheduler's own bound.
                requests_max: setup.limits.jobs_max + setup.prepare.queued_max,
                batch_tokens_max: lanes.map(|lane| lane.batch_tokens_max).max().unwrap_or(0),
                tokenizers: setup.prepare.threads,
                truncates: setup.truncation.policy != Overflow::Refuse,
            },
            configured: models.iter().map(|model| ModelInfo::new(model, created_unix)).collect(),
            tokenizer: models.first().expect("a setup that was checked has a model").tokenizer.clone(),
        }
    }

    /// A version of a model whose lanes are up.
    pub fn served(&self, id: ModelId, setup: ModelSetup) -> Arc<Served> {
        let info = ModelInfo::new(&setup, self.clock.unix_seconds());
        let reader = self.prepare.reader(&setup);
        Arc::new(Served::new(id, setup, reader, info))
    }

    /// Accepts requests from now on, unless a drain came while loading.
    pub fn loaded(&self) {
        let (loading, ready) = (State::Loading as u8, State::Ready as u8);
        let _ = self.state.compare_exchange(loading, ready, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// Cancels the job unless it was answered.
struct CancelOnDrop<'a> {
    shared: &'a Shared,
    job: JobId,
    answered: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.shared.inside.fetch_sub(1, Ordering::Relaxed);
        if !self.answered {
            let _ = self.shared.driver.send(Message::Cancel(self.job));
        }
    }
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The present time of the engine's clock.
    pub fn now(&self) -> Ns {
        self.shared.clock.now()
    }

    /// The engine's clock.
    pub(super) fn clock(&self) -> Clock {
        self.shared.clock
    }

    /// Seconds since 1970.
    pub fn unix_seconds(&self) -> u64 {
        self.shared.clock.unix_seconds()
    }

    /// Nanoseconds since 1970.
    pub fn unix_ns(&self) -> u64 {
        self.shared.clock.unix_ns()
    }

    /// Whether requests are accepted.
    pub fn state(&self) -> State {
        match self.shared.state.load(Ordering::Acquire) {
            state if state == State::Loading as u8 => State::Loading,
            state if state == State::Ready as u8 => State::Ready,
            _ => State::Draining,
        }
    }

    /// The models that are served, the first route's primary first. Until they are up, those that are configured.
    pub fn models(&self) -> Arc<[ModelInfo]> {
        let models = self.shared.router.infos();
        if models.is_empty() { self.shared.configured.clone() } else { models }
    }

    /// Refuses new requests; those inside are answered.
    pub fn drain(&self) {
        self.shared.state.store(State::Draining as u8, Ordering::Release);
        let _ = self.shared.driver.send(Message::Drain);
    }

    /// The engine's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Waits until the ledger's store and the metrics contain everything booked at least `ago` before now.
    pub async fn hand_over(&self, ago: Ns) {
        let (done, waiting) = oneshot::channel();
        // If the driver has ended, it has handed everything over.
        if self.shared.driver.send(Message::HandOver { ago, done }).is_ok() {
            let _ = waiting.await;
        }
    }

    /// The model that answers a request of that name, or without one, where nothing is degraded: that of a route, or the one
    /// that is named, with or without a version. None for a name that is not served.
    pub fn answering(&self, name: Option<&str>) -> Option<ModelInfo> {
        let routes = self.routes();
        if routes.routes.is_empty() {
            // While the models load.
            let mut configured = self.shared.configured.iter();
            return configured.find(|model| name.is_none_or(|name| *model.name == *name)).cloned();
        }
        let resolved = routes.resolve(name, false).ok()?;
        let is_fallback = resolved.policy == Some(Policy::Fallback);
        let Candidates { primaries, fallback } = resolved.candidates;
        let preferred = primaries.into_iter().next().filter(|_| !is_fallback).or(fallback);
        preferred.map(|model| model.info.clone())
    }

    /// The routes with the versions that serve on them.
    pub fn serving(&self) -> Vec<(Arc<str>, Line)> {
        let routes = self.routes();
        routes.routes.iter().map(|route| (route.name.clone(), routes.line(route))).collect()
    }

    /// The present routes.
    pub(super) fn routes(&self) -> Arc<Routes> {
        self.shared.router.routes()
    }

    /// Replaces the routes for all requests that come from now on.
    pub(super) fn publish(&self, routes: Routes) {
        self.shared.router.publish(routes);
    }

    /// # Errors
    /// The driver has ended.
    pub(super) fn send(&self, message: Message) -> Result<(), ()> {
        self.shared.driver.send(message).map_err(|_| ())
    }

    pub(super) fn stop(&self) {
        let _ = self.shared.driver.send(Message::Stop);
    }

    /// Hits and misses of the token cache since the start.
    pub fn token_lookups(&self) -> (u64, u64) {
        self.shared.prepare.lookups()
    }

    /// The tokenizer of the model that answers where nothing is degraded.
    pub fn tokenizer(&self) -> Arc<Tokenizer> {
        let routes = self.shared.router.routes();
        let first = routes.resolve(None, true).ok().and_then(|resolved| {
            let Candidates { primaries, fallback } = resolved.candidates;
            primaries.into_iter().next().or(fallback)
        });
        first.map_or_else(|| self.shared.tokenizer.clone(), |model| model.setup.tokenizer.clone())
    }

    /// What is taken at once.
    pub fn capacity(&self) -> Capacity {
        self.shared.capacity
    }

    /// Requests that are neither answered nor refused.
    pub fn inside(&self) -> usize {
        self.shared.inside.load(Ordering::Relaxed)
    }

    /// Scores a request's candidates. All of its documents are admitted together or refused together. Dropping the future
    /// cancels the work.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn rank(&self, request: Arc<Request>, caller: Caller) -> Result<Outcome, Refusal> {
        let shared = &*self.shared;
        match self.state() {
            State::Loading => return Err(Refusal::Unavailable),
            State::Draining => return Err(Refusal::Draining),
            State::Ready => {}
        }
        let resolved = shared.router.routes().resolve(request.model.as_deref(), shared.any_model)?;
        let policy = policy(&request, &resolved, caller.policy)?;
        let budget = request.options.latency_budget.or(resolved.default_budget).or(shared.default_budget);
        let candidates = resolved.candidates;
        let job = JobId(shared.jobs.fetch_add(1, Ordering::Relaxed));
        if shared.inside.fetch_add(1, Ordering::Relaxed) >= shared.capacity.requests_max {
            shared.inside.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Overloaded { retry_after: Ns::from_millis(100) });
        }
        let mut guard = CancelOnDrop { shared, job, answered: false };
        let result = async {
            let begun = self.now();
            let prepared = shared.prepare.prepare(&request, policy, candidates).await?;
            let tokenise = self.now().saturating_sub(begun);
            let (reply, outcome) = oneshot::channel();
            let arrival = Arrival {
                job,
                tenant: caller.tenant,
                priority: request.options.priority,
                policy,
                arrived: caller.arrived,
                deadline: budget.map(|budget| caller.arrived.saturating_add(budget)),
                top_k: request.options.top_k,
                pairs: prepared.candidates as u32,
                primaries: prepared.primaries.iter().map(Part::ask).collect(),
                fallback: prepared.fallback.as_ref().map(Part::ask),
            };
            let submission = Submission { arrival, prepared, tokenise, budget, reply };
            shared.driver.send(Message::Submit(Box::new(submission))).map_err(|_| Refusal::Draining)?;
            // The driver drops a reply only when it ends.
            outcome.await.unwrap_or(Err(Refusal::Draining))
        }
        .await;
        guard.answered = true;
        result
    }
}

/// The effective policy: that of the name, of the request, of the route, or the default. Refused if it needs a tier
/// that has no model.
fn policy(request: &Request, resolved: &Resolved, default: Policy) -> Result<Policy, Refusal> {
    let Candidates { primaries, fallback } = &resolved.candidates;
    let asked = request.options.policy.or(resolved.default_policy).unwrap_or(default);
    let policy = resolved.policy.unwrap_or(asked);
    let is_served = |tier: Tier| match tier {
        Tier::Primary => !primaries.is_empty(),
        Tier::Fallback => fallback.is_some(),
    };
    let needs: &[Tier] = match policy {
        Policy::Auto => &[],
        Policy::Full => &[Tier::Primary],
        Policy::TopK => &[Tier::Primary, Tier::Fallback],
        Policy::Fallback => &[Tier::Fallback],
    };
    match needs.iter().find(|&&tier| !is_served(tier)) {
        None => Ok(policy),
        Some(tier) => Err(Refusal::Invalid {
            field: "policy".to_owned(),
            message: format!("`{}` needs a {} model, and none is configured", policy.name(), tier.name()),
        }),
    }
}
