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
//! | `reading` | a request that is being tokenised |
//! | `pairs` | a request's pairs, as lanes score them and as the scheduler counts them |
//! | `driver` | the loop that passes events to the scheduler and executes its actions |
//! | `served` | a version of a model that serves, and the models that may answer a request |
//! | `pool` | loads versions of models beside those that serve, and swaps them |
//! | `record` | which versions are live on which route, on disk |
//! | `router` | routes: from the name in a request to models |
//! | `loading` | models that come up and are retired, for the driver |
//! | `answer` | merges the scores of both tiers into an outcome with its receipt |
//! | `books` | the one place that updates metrics, ledger and journal |
//! | `journal` | a record of the scheduler's events and decisions, for replay |
//! | `lane` | a scorer's thread |
//! | `mailbox` | a channel whose receiver sleeps without spinning |
//! | `self_check` | a model's golden pairs, scored before its lane is ready |
//! | `factory` | what a lane's thread is made from; its warm-up batches |
//! | `clock` | the only reader of time |

mod answer;
mod books;
mod clock;
mod driver;
mod factory;
mod handle;
mod journal;
mod lane;
mod loading;
mod mailbox;
mod pairs;
mod pool;
mod prepare;
mod reading;
mod record;
mod router;
mod self_check;
mod served;

pub use books::BooksSetup;
pub use clock::Clock;
pub use handle::{Caller, Capacity, Handle, State};
pub use journal::{Entry as JournalEntry, Journal};
pub use lane::MakeScorer;
pub use pool::{Author, Change, Changed, Listed, ModelPool, PoolError, Source};
pub use prepare::PrepareLimits;
pub use router::RouteSetup;
pub use self_check::{GoldenError, Mismatch, SelfCheck, SelfCheckError};
pub use served::ModelInfo;

use crate::base::{Ns, Tier};
use crate::model::Calibration;
use crate::rerank::TruncationDefaults;
use crate::sched::{Config, Limits, TenantConfig};
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
        let models = std::mem::take(&mut setup.models);
        let books = Books::new(&mut setup);
        let prepare = Prepare::start(setup.truncation.clone(), setup.prepare.clone());
        let shared = Shared::new(&setup, (driver_sender.clone(), prepare), &models, books.metrics());
        let (shared, config) = (Arc::new(shared), setup.config());
        let (started, receiver) = oneshot::channel();
        let driver = Driver::new((clock, driver_sender, inbox), shared.clone(), books, config);
        let (alive, ended) = oneshot::channel();
        let routes = setup.routes;
        let driver = thread::Builder::new()
            .name("driver".to_owned())
            .spawn(move || {
                let _alive = alive;
                driver.run(models, routes, started);
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
    pub models: Vec<ModelSetup>,
    /// The routes; the first one is that of requests that name no model.
    pub routes: Vec<RouteSetup>,
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
    /// Checks that models, routes, lanes and devices go together.
    ///
    /// # Errors
    /// [`StartError::Incomplete`], [`StartError::Route`] and [`StartError::TwoKinds`].
    pub fn check(&self) -> Result<(), StartError> {
        if self.models.is_empty() || self.routes.is_empty() {
            let what = "no model, and the fallback tier has none either";
            return Err(StartError::Incomplete { model: "primary".into(), what });
        }
        if let Some(model) = self.models.iter().find(|model| model.lanes.is_empty()) {
            return Err(StartError::Incomplete { model: model.name.clone(), what: "no lane" });
        }
        self.routes.iter().try_for_each(|route| route.check(&self.models))?;
        let lanes = || self.models.iter().flat_map(|model| model.lanes.iter().map(move |lane| (model, lane)));
        for (model, lane) in lanes() {
            let other = lanes().find(|(other, at)| at.device == lane.device && other.device != model.device);
            if let Some((other, _)) = other {
                let kinds = [model.device.clone(), other.device.clone()];
                return Err(StartError::TwoKinds { device: lane.device.clone(), kinds });
            }
        }
        Ok(())
    }

    /// The scheduler's configuration; models are added as they come up.
    fn config(&self) -> Config {
        Config {
            lanes: Vec::new(),
            tenants: self.tenants.iter().map(|(_, config)| config.clone()).collect(),
            seeds: Vec::new(),
            limits: self.limits.clone(),
        }
    }
}

/// One version of a model.
#[derive(Clone)]
pub struct ModelSetup {
    /// The name under which it is served.
    pub name: Arc<str>,
    /// Its version: the first 12 hex digits of its weights' sha256.
    pub version: Arc<str>,
    /// Its role in metrics and lists.
    pub tier: Tier,
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
    /// Its lanes; at least one.
    pub lanes: Vec<LaneSetup>,
}

/// One lane.
#[derive(Clone)]
pub struct LaneSetup {
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
    /// No model is configured, or a model has no lane.
    #[error("{model} has {what}")]
    Incomplete {
        /// The model.
        model: Arc<str>,
        /// The fault in its configuration.
        what: &'static str,
    },
    /// A route names what is not there.
    #[error("route `{route}`: {why}")]
    Route {
        /// The route.
        route: Arc<str>,
        /// What is wrong with it.
        why: String,
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
