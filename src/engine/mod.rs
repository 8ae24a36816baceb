//! Floor 5: the running server. The driver's thread owns the scheduler, each lane's thread owns a scorer, and a bounded
//! pool of threads tokenises.
//!
//! Driver and lanes receive through `mailbox`, a crossbeam channel with a parker. Of tokio the engine uses only what a
//! request awaits: the one-shot reply, and `Notify` for the end of tokenisation.
//!
//! | file | what it holds |
//! |---|---|
//! | `handle` | [`Handle::rank`], from request to outcome |
//! | `prepare` | tokenisation: pool, cache |
//! | `pairs` | a request's pairs, as lanes score them and as the scheduler counts them |
//! | `driver` | the loop that passes events to the scheduler and executes its actions |
//! | `answer` | merges the scores of both tiers into an outcome with its receipt |
//! | `books` | the one place that updates metrics, ledger and journal |
//! | `journal` | a record of the scheduler's events and decisions, for replay |
//! | `lane` | a scorer's thread |
//! | `mailbox` | a channel whose receiver sleeps without spinning |
//! | `self_check` | a model's golden pairs, scored before its lane is ready |
//! | `pool` | what a lane's thread is made from; its warm-up batches |
//! | `clock` | the only reader of time |

mod answer;
mod books;
mod clock;
mod driver;
mod handle;
mod journal;
mod lane;
mod mailbox;
mod pairs;
mod pool;
mod prepare;
mod self_check;

pub use books::BooksSetup;
pub use clock::Clock;
pub use handle::{Caller, Capacity, Handle, ModelInfo, State};
pub use journal::{Entry as JournalEntry, Journal};
pub use lane::MakeScorer;
pub use prepare::PrepareLimits;
pub use self_check::{GoldenError, Mismatch, SelfCheck, SelfCheckError};

use crate::base::{DeviceId, Ns, PerTier, Tier};
use crate::model::Calibration;
use crate::rerank::TruncationDefaults;
use crate::sched::{Config, LaneConfig, Limits, TenantConfig};
use crate::token::Tokenizer;
use books::Books;
use driver::Driver;
use handle::Shared;
use prepare::Prepare;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use thiserror::Error;
use tokio::sync::oneshot;

/// The running engine. Dropping it ends its threads and refuses the requests still inside.
pub struct Engine {
    handle: Handle,
    driver: Option<JoinHandle<()>>,
    started: Option<oneshot::Receiver<Result<(), StartError>>>,
    /// Closed when the driver's thread ends, by a panic too.
    alive: oneshot::Receiver<()>,
}

impl Engine {
    /// Starts loading. The handle refuses requests until every lane is up.
    ///
    /// # Errors
    /// Those of [`Setup::check`]. [`Engine::ready`] reports a lane that fails to come up.
    pub fn start(mut setup: Setup) -> Result<Self, StartError> {
        setup.check()?;
        let clock = setup.clock;
        let (driver_sender, inbox) = mailbox::mailbox();
        let factories =
            pool::factories(&setup.lanes, &setup.tiers, setup.limits.batch_ns_max, clock, &driver_sender);
        let config = Config {
            lanes: setup.lanes.iter().map(|lane| setup.lane_config(lane)).collect(),
            tenants: setup.tenants.iter().map(|(_, config)| config.clone()).collect(),
            seeds: PerTier::default(),
            limits: setup.limits.clone(),
        };
        let books = Books::new(&mut setup);
        let prepare = Prepare::start(&setup.tiers, setup.truncation.clone(), setup.prepare.clone());
        let shared = Arc::new(Shared::new(&setup, driver_sender, prepare, books.metrics()));
        let (started, receiver) = oneshot::channel();
        let driver = Driver {
            clock,
            inbox,
            shared: shared.clone(),
            books,
            tiers: setup.tiers,
            config,
            factories,
            started,
        };
        let (alive, ended) = oneshot::channel();
        let driver = thread::Builder::new()
            .name("driver".to_owned())
            .spawn(move || {
                let _alive = alive;
                driver.run();
            })
            .expect("the system has room for one more thread");
        Ok(Self { handle: Handle::new(shared), driver: Some(driver), started: Some(receiver), alive: ended })
    }

    /// A handle for requests.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until every lane is up. Call once.
    ///
    /// # Errors
    /// [`StartError::Lane`] or [`StartError::Unfit`] for the first lane that did not come up.
    pub async fn ready(&mut self) -> Result<(), StartError> {
        let started = self.started.take().expect("readiness is asked for once");
        started.await.unwrap_or(Err(StartError::Stopped))
    }

    /// Waits until the driver ends. Unless the engine was stopped, that is a bug of ours, and the server should end
    /// and be restarted.
    pub async fn ended(&mut self) {
        let _ = (&mut self.alive).await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(driver) = self.driver.take()
            && driver.join().is_err()
        {
            tracing::error!("the driver panicked");
        }
    }
}

/// The inputs of [`Engine::start`].
pub struct Setup {
    /// The clock of all times.
    pub clock: Clock,
    /// The models; at least one.
    pub tiers: PerTier<Option<TierSetup>>,
    /// The lanes; at least one for each tier that has a model.
    pub lanes: Vec<LaneSetup>,
    /// The tenants with their names; the first is the anonymous one.
    pub tenants: Vec<(Arc<str>, TenantConfig)>,
    /// The scheduler's bounds.
    pub limits: Limits,
    /// What is cut from pairs of requests that do not say.
    pub truncation: TruncationDefaults,
    /// Tokenisation's bounds.
    pub prepare: PrepareLimits,
    /// The budget of requests without their own.
    pub default_budget: Option<Ns>,
    /// Whether the primary answers a request for a model that is not served.
    pub any_model: bool,
    /// Prices, ledger and journal.
    pub books: BooksSetup,
}

impl Setup {
    /// Checks that models, lanes and devices go together.
    ///
    /// # Errors
    /// [`StartError::Incomplete`] and [`StartError::TwoKinds`].
    pub fn check(&self) -> Result<(), StartError> {
        let incomplete = |tier, what| Err(StartError::Incomplete { tier, what });
        if self.tiers.primary.is_none() && self.tiers.fallback.is_none() {
            return incomplete(Tier::Primary, "no model, and the fallback tier has none either");
        }
        for tier in Tier::ALL {
            let lanes = self.lanes.iter().filter(|lane| lane.tier == tier).count();
            match (&self.tiers[tier], lanes) {
                (Some(_), 0) => return incomplete(tier, "a model but no lane"),
                (None, 1..) => return incomplete(tier, "a lane but no model"),
                (Some(_), 1..) | (None, 0) => {}
            }
        }
        for (name, kind) in self.devices() {
            let on_it = self.lanes.iter().filter(|lane| lane.device == *name);
            let kinds = on_it.filter_map(|lane| self.tiers[lane.tier].as_ref().map(|tier| &tier.device));
            if let Some(other) = kinds.into_iter().find(|other| *other != kind) {
                let (device, kinds) = (name.clone(), [kind.clone(), other.clone()]);
                return Err(StartError::TwoKinds { device, kinds });
            }
        }
        Ok(())
    }

    /// The devices with their kinds, by [`DeviceId`].
    fn devices(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        let first = |place: usize| {
            let device = &self.lanes[place].device;
            self.lanes[..place].iter().all(|lane| lane.device != *device)
        };
        (0..self.lanes.len()).filter(move |&place| first(place)).filter_map(move |place| {
            let lane = &self.lanes[place];
            Some((&lane.device, &self.tiers[lane.tier].as_ref()?.device))
        })
    }

    fn device_of(&self, lane: &LaneSetup) -> DeviceId {
        let place = self.devices().position(|(name, _)| *name == lane.device);
        DeviceId(place.expect("a lane's device is among the lanes' devices") as u32)
    }

    fn lane_config(&self, lane: &LaneSetup) -> LaneConfig {
        let LaneSetup { tier, batch_tokens_max, depth, .. } = *lane;
        LaneConfig { tier, on: self.device_of(lane), batch_tokens_max, depth }
    }
}

/// One tier's model, apart from its scorers.
#[derive(Clone)]
pub struct TierSetup {
    /// The name under which it is served.
    pub name: Arc<str>,
    /// The first 12 hex digits of its weights' sha256.
    pub version: Arc<str>,
    /// Its licence, for `/v1/models`.
    pub licence: Arc<str>,
    /// The data type of its linear maps: `float32`, `bfloat16` or `int8` on a CPU; `float16`, `bfloat16` or
    /// `float8_e4m3` on a GPU.
    pub dtype: &'static str,
    /// The reason for that data type.
    pub dtype_reason: Arc<str>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The longest pair that it reads, special tokens included.
    pub pair_tokens_max: u32,
    /// Whether its scorers compute once what pairs have in common before the document.
    pub shares_prefixes: bool,
    /// The kind of device that its lanes run on, by the name that prices use.
    pub device: Arc<str>,
    /// Maps its logits to the primary's scale.
    pub calibration: Calibration,
    /// What each of its lanes scores before it is ready, if the model has golden pairs.
    pub self_check: Option<Arc<SelfCheck>>,
}

/// One lane.
#[derive(Clone)]
pub struct LaneSetup {
    /// The tier whose model it runs.
    pub tier: Tier,
    /// The device that it runs on, by a name that lanes on the same one share: `cpu`, or `gpu 0`.
    pub device: Arc<str>,
    /// Most tokens of a batch.
    pub batch_tokens_max: u64,
    /// Most batches that it holds at once.
    pub depth: usize,
    /// Makes its scorer.
    pub make: MakeScorer,
}

/// Why an engine could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Neither a primary nor a fallback is configured, or a tier has no lane.
    #[error("the {} tier has {what}", .tier.name())]
    Incomplete {
        /// The tier.
        tier: Tier,
        /// The fault in its configuration.
        what: &'static str,
    },
    /// Two tiers on one device call it by different kinds, and so by two prices.
    #[error(
        "{device} is `{}` to one tier and `{}` to the other: tiers on one device give it one name in `device`",
        .kinds[0], .kinds[1]
    )]
    TwoKinds {
        /// The device.
        device: Arc<str>,
        /// What it is called.
        kinds: [Arc<str>; 2],
    },
    /// A lane's scorer could not be made.
    #[error("lane {lane} did not start: {why}")]
    Lane {
        /// The lane's number.
        lane: u32,
        /// The cause.
        why: String,
    },
    /// A model does not give its golden scores.
    #[error("{why}")]
    Unfit {
        /// Which pairs differ.
        why: String,
    },
    /// It was stopped while its models loaded.
    #[error("the engine was stopped while its models loaded")]
    Stopped,
}
