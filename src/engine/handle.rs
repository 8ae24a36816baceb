//! The interface of the engine: from a request to its outcome.

use super::Setup;
use super::clock::Clock;
use super::driver::{Message, Submission};
use super::mailbox::Post;
use super::pairs::Prepared;
use super::prepare::Prepare;
use crate::base::{Ns, PerTier, TenantId, Tier};
use crate::rerank::{Outcome, Overflow, Policy, Refusal, Request, Served};
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

/// A model that is served.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Its name.
    pub name: Arc<str>,
    /// The first 12 hex digits of its weights' sha256.
    pub version: Arc<str>,
    /// Primary or fallback.
    pub tier: Tier,
    /// The data type of its linear maps: `float32`, `bfloat16` or `int8` on a CPU; `float16`, `bfloat16` or
    /// `float8_e4m3` on a GPU.
    pub dtype: &'static str,
    /// The reason for that data type.
    pub dtype_reason: Arc<str>,
    /// Most tokens of a pair.
    pub pair_tokens_max: u32,
    /// Whether its prompt has a place for a request's instruction.
    pub takes_instruction: bool,
    /// Its licence.
    pub licence: Arc<str>,
    /// When the engine was started, in seconds since 1970.
    pub created_unix: u64,
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
    models: Vec<ModelInfo>,
    any_model: bool,
    default_budget: Option<Ns>,
    state: AtomicU8,
    jobs: AtomicU64,
    /// Requests that are neither answered nor refused.
    inside: AtomicUsize,
    capacity: Capacity,
    /// The primary's tokenizer; the fallback's if there is no primary.
    tokenizer: Arc<Tokenizer>,
}

impl Shared {
    pub fn new(setup: &Setup, driver: Post<Message>, prepare: Prepare, metrics: Arc<Metrics>) -> Self {
        let created_unix = setup.clock.unix_seconds();
        let info = |tier: Tier| {
            setup.tiers[tier].as_ref().map(|model| ModelInfo {
                name: model.name.clone(),
                version: model.version.clone(),
                tier,
                dtype: model.dtype,
                dtype_reason: model.dtype_reason.clone(),
                pair_tokens_max: model.pair_tokens_max,
                takes_instruction: model.tokenizer.takes_instruction(),
                licence: model.licence.clone(),
                created_unix,
            })
        };
        Self {
            clock: setup.clock,
            driver,
            prepare,
            metrics,
            models: Tier::ALL.into_iter().filter_map(info).collect(),
            any_model: setup.any_model,
            default_budget: setup.default_budget,
            state: AtomicU8::new(State::Loading as u8),
            jobs: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            capacity: Capacity {
                // Requests being tokenised come on top of the scheduler's own bound.
                requests_max: setup.limits.jobs_max + setup.prepare.queued_max,
                batch_tokens_max: setup.lanes.iter().map(|lane| lane.batch_tokens_max).max().unwrap_or(0),
                tokenizers: setup.prepare.threads,
                truncates: setup.truncation.policy != Overflow::Refuse,
            },
            tokenizer: {
                let tier = setup.tiers.primary.as_ref().or(setup.tiers.fallback.as_ref());
                tier.expect("a setup that was checked has a model").tokenizer.clone()
            },
        }
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

    /// The models that are served, the primary first.
    pub fn models(&self) -> &[ModelInfo] {
        &self.shared.models
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

    pub(super) fn stop(&self) {
        let _ = self.shared.driver.send(Message::Stop);
    }

    /// The models of an answer whose prompts have no place for a request's instruction.
    pub fn without_instruction(&self, served: Served) -> impl Iterator<Item = &ModelInfo> {
        let models = self.models().iter();
        models.filter(move |model| served.tiers().contains(&model.tier) && !model.takes_instruction)
    }

    /// Hits and misses of the token cache since the start.
    pub fn token_lookups(&self) -> (u64, u64) {
        self.shared.prepare.lookups()
    }

    /// The tokenizer of the model that answers where nothing is degraded.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.shared.tokenizer
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
        let policy = self.policy(&request, caller.policy)?;
        let job = JobId(shared.jobs.fetch_add(1, Ordering::Relaxed));
        if shared.inside.fetch_add(1, Ordering::Relaxed) >= shared.capacity.requests_max {
            shared.inside.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Overloaded { retry_after: Ns::from_millis(100) });
        }
        let mut guard = CancelOnDrop { shared, job, answered: false };
        let result = async {
            let begun = self.now();
            let prepared = shared.prepare.prepare(&request, policy).await?;
            let tokenise = self.now().saturating_sub(begun);
            let (reply, outcome) = oneshot::channel();
            let submission = self.submission(&request, policy, (job, caller), (prepared, tokenise, reply));
            shared.driver.send(Message::Submit(Box::new(submission))).map_err(|_| Refusal::Draining)?;
            // The driver drops a reply only when it ends.
            outcome.await.unwrap_or(Err(Refusal::Draining))
        }
        .await;
        guard.answered = true;
        result
    }

    fn submission(
        &self,
        request: &Request,
        policy: Policy,
        (job, caller): (JobId, Caller),
        (prepared, tokenise, reply): (Prepared, Ns, oneshot::Sender<Result<Outcome, Refusal>>),
    ) -> Submission {
        let budget = request.options.latency_budget.or(self.shared.default_budget);
        let arrival = Arrival {
            job,
            tenant: caller.tenant,
            priority: request.options.priority,
            policy,
            arrived: caller.arrived,
            deadline: budget.map(|budget| caller.arrived.saturating_add(budget)),
            top_k: request.options.top_k,
            prefixes: PerTier::from_fn(|tier| prepared[tier].prefix),
            lengths: PerTier::from_fn(|tier| prepared[tier].beyond.clone()),
        };
        Submission { arrival, prepared, tokenise, budget, reply }
    }

    /// The effective policy. A request that names the fallback's model gets [`Policy::Fallback`]. Refused if a tier that
    /// the policy needs has no model.
    fn policy(&self, request: &Request, default: Policy) -> Result<Policy, Refusal> {
        let shared = &*self.shared;
        let served = |tier: Tier| shared.models.iter().find(|model| model.tier == tier);
        let mut policy = request.options.policy.unwrap_or(default);
        if let Some(name) = request.model.as_deref() {
            let named = shared.models.iter().find(|model| &*model.name == name);
            match named.map(|model| model.tier) {
                Some(Tier::Fallback) if served(Tier::Primary).is_some() => policy = Policy::Fallback,
                Some(_) => {}
                None if shared.any_model => {}
                None => return Err(Refusal::UnknownModel { name: name.to_owned() }),
            }
        }
        let needs: &[Tier] = match policy {
            Policy::Auto => &[],
            Policy::Full => &[Tier::Primary],
            Policy::TopK => &[Tier::Primary, Tier::Fallback],
            Policy::Fallback => &[Tier::Fallback],
        };
        match needs.iter().find(|&&tier| served(tier).is_none()) {
            None => Ok(policy),
            Some(tier) => Err(Refusal::Invalid {
                field: "policy".to_owned(),
                message: format!("`{}` needs a {} model, and none is configured", policy.name(), tier.name()),
            }),
        }
    }
}
