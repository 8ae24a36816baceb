//! The warm pool: loads versions of models beside those that serve, lets them take their place in one step, and retires
//! what they replace. One change is made at a time, by a thread of its own.

use super::driver::Message;
use super::handle::{Handle, State};
use super::record::{Record, Swaps};
use super::router::{RouteSetup, Routes};
use super::served::Served;
use super::{ModelSetup, StartError};
use crate::base::ModelRef;
use crate::deployments::{Deployments, Step};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use thiserror::Error;
use tokio::sync::oneshot;

/// Where models come from.
pub trait Source: Send {
    /// The versions that there are.
    ///
    /// # Errors
    /// Why they cannot be listed.
    fn list(&mut self) -> Result<Vec<Listed>, String>;

    /// The version that a name means: the one that it names, or the one that the model's version policy takes.
    ///
    /// # Errors
    /// That there is none, and which there are.
    fn resolve(&mut self, model: &ModelRef) -> Result<ModelRef, String>;

    /// Opens a version: reads and packs its weights.
    ///
    /// # Errors
    /// Why it cannot be served.
    fn open(&mut self, model: &ModelRef) -> Result<ModelSetup, String>;
}

/// A version of a model that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The model.
    pub name: String,
    /// The version.
    pub version: String,
    /// Why it cannot be loaded, if so.
    pub problem: Option<String>,
}

/// A change of what is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Loads a version of a model, which takes the place of the one that serves.
    Load(ModelRef),
    /// Retires a model, or one version of it.
    Unload(ModelRef),
    /// Makes live again what was live on a route before.
    RollBack {
        /// The route.
        route: String,
    },
}

/// Who makes a change, and why; kept in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// The author.
    pub who: String,
    /// The author's reason.
    pub why: String,
}

/// What a change has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Versions that serve now and did not before.
    pub up: Vec<ModelRef>,
    /// Versions that serve no longer.
    pub down: Vec<ModelRef>,
}

/// Why a change was not made. What was live stays live.
#[derive(Debug, Error)]
pub enum PoolError {
    /// There is no such model, version or route.
    #[error("{0}")]
    NotFound(String),
    /// The change would leave a route without what it needs, or another one is in the way.
    #[error("{0}")]
    Conflict(String),
    /// A version cannot be opened, is not what it should be, or does not come up.
    #[error("{0}")]
    Failed(String),
    /// The engine is stopped.
    #[error("the engine is stopped")]
    Stopped,
}

/// A handle to the pool. Its thread ends when all are dropped.
#[derive(Clone)]
pub struct ModelPool {
    commands: Sender<Command>,
}

enum Command {
    Ready { done: oneshot::Sender<()> },
    Change { change: Change, author: Author, done: oneshot::Sender<Result<Changed, PoolError>> },
    List { done: oneshot::Sender<Result<Vec<Listed>, String>> },
}

/// What the pool's thread has.
struct Keeper {
    handle: Handle,
    source: Box<dyn Source>,
    record: Record,
}

impl ModelPool {
    /// Starts the pool of an engine.
    pub fn start(handle: Handle, source: Box<dyn Source>, deployments: Option<Deployments>) -> Self {
        let (commands, receiver) = unbounded();
        let record = Record::new(deployments, handle.clock());
        let keeper = Keeper { handle, source, record };
        thread::Builder::new()
            .name("pool".to_owned())
            .spawn(move || keeper.run(&receiver))
            .expect("the system has room for one more thread");
        Self { commands }
    }

    /// Records what serves from the start. Call once, when the engine is ready.
    pub async fn ready(&self) {
        let (done, recorded) = oneshot::channel();
        if self.commands.send(Command::Ready { done }).is_ok() {
            let _ = recorded.await;
        }
    }

    /// Makes a change, after those that were asked for before. It is made also if the future is dropped.
    ///
    /// # Errors
    /// [`PoolError`].
    pub async fn change(&self, change: Change, author: Author) -> Result<Changed, PoolError> {
        let (done, changed) = oneshot::channel();
        let command = Command::Change { change, author, done };
        self.commands.send(command).map_err(|_| PoolError::Stopped)?;
        changed.await.unwrap_or(Err(PoolError::Stopped))
    }

    /// The versions that can be loaded.
    ///
    /// # Errors
    /// Why they cannot be listed.
    pub async fn list(&self) -> Result<Vec<Listed>, String> {
        let (done, listed) = oneshot::channel();
        let _ = self.commands.send(Command::List { done });
        listed.await.unwrap_or_else(|_| Err(PoolError::Stopped.to_string()))
    }
}

impl Keeper {
    fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(command) = commands.recv() {
            match command {
                Command::Change { change, author, done } => {
                    let changed = self.change(&change, &author);
                    match &changed {
                        Ok(Changed { up, down }) => {
                            let named = |models: &[ModelRef]| {
                                models.iter().map(ModelRef::to_string).collect::<Vec<_>>().join(", ")
                            };
                            let (up, down, Author { who, why }) = (named(up), named(down), &author);
                            tracing::info!(up, down, who, why, "deployment");
                        }
                        Err(error) => {
                            let (who, why) = (&author.who, &author.why);
                            tracing::error!(?change, who, why, %error, "a deployment was not made");
                        }
                    }
                    self.handle.metrics().deployed(if changed.is_ok() { "made" } else { "abandoned" });
                    // The caller may have left.
                    let _ = done.send(changed);
                }
                Command::Ready { done } => {
                    if let Err(error) = self.record.start(&self.handle.routes()) {
                        tracing::error!(%error, "what is live is not recorded");
                    }
                    let _ = done.send(());
                }
                Command::List { done } => drop(done.send(self.source.list())),
            }
        }
    }

    fn change(&mut self, change: &Change, author: &Author) -> Result<Changed, PoolError> {
        if self.handle.state() == State::Loading {
            return Err(PoolError::Conflict("the server's first models are loading".to_owned()));
        }
        match change {
            Change::Load(model) => self.load(std::slice::from_ref(model), author),
            Change::Unload(model) => self.unload(model, author),
            Change::RollBack { route } => {
                let before = self.record.before(route)?;
                let models: Vec<ModelRef> = before.primaries.into_iter().chain(before.fallback).collect();
                self.load(&models, author)
            }
        }
    }

    /// Loads versions, each of which takes the place of its model's version that serves. Either all of them do or none.
    fn load(&mut self, models: &[ModelRef], author: &Author) -> Result<Changed, PoolError> {
        let before = self.handle.routes();
        // A version that serves needs no source.
        let serves = |model: &ModelRef| model.version.is_some() && before.find(model).is_some();
        let resolve =
            |model: &ModelRef| if serves(model) { Ok(model.clone()) } else { self.source.resolve(model) };
        let resolved: Result<Vec<_>, _> = models.iter().map(resolve).collect();
        let models = resolved.map_err(PoolError::NotFound)?;
        let missing: Vec<_> = models.iter().filter(|model| before.find(model).is_none()).cloned().collect();
        let is_current = |model: &ModelRef| {
            let name = ModelRef { version: None, ..model.clone() };
            before.find(&name).is_some_and(|live| live.is(model))
        };
        if models.iter().all(is_current) {
            return Ok(Changed::default());
        }
        let swaps = self.record.begin(&before, &models, author)?;
        let loaded = match self.bring_up(&missing, &swaps) {
            Ok(loaded) => loaded,
            Err(error) => return Err(self.record.abandon(&swaps, error)),
        };
        let up: Vec<ModelRef> = loaded.iter().map(|model| model.named()).collect();
        if let Err(error) = self.record.step(&swaps, Step::Switching) {
            let error = self.record.abandon(&swaps, error);
            loaded.into_iter().for_each(|model| self.retire(model));
            return Err(error);
        }
        let routes = before.with(&models, &loaded);
        drop(loaded);
        let is_gone = |old: &&Arc<Served>| !routes.models.iter().any(|new| new.id == old.id);
        let down: Vec<Arc<Served>> = before.models.iter().filter(is_gone).cloned().collect();
        self.handle.publish(routes);
        drop(before);
        // From here on the change is made, whatever can be recorded.
        let drained = self.record.step(&swaps, Step::Draining);
        let gone = down.iter().map(|model| model.named()).collect();
        down.into_iter().for_each(|model| self.retire(model));
        self.end(&swaps, drained);
        Ok(Changed { up, down: gone })
    }

    /// Records that a change that was made is complete.
    fn end(&mut self, swaps: &Swaps, drained: Result<(), PoolError>) {
        if let Err(error) = drained.and_then(|()| self.record.finish(swaps)) {
            tracing::error!(%error, "a deployment that was made is not recorded as complete");
        }
    }

    /// Loads versions beside those that serve, verified and warm.
    fn bring_up(&mut self, models: &[ModelRef], swaps: &Swaps) -> Result<Vec<Arc<Served>>, PoolError> {
        let mut opened = Vec::new();
        for model in models {
            // A panic fails this change only.
            let open = catch_unwind(AssertUnwindSafe(|| self.source.open(model)));
            let open = open.unwrap_or_else(|_| Err("opening it panicked; the log has the panic".to_owned()));
            opened.push(open.map_err(PoolError::Failed)?);
        }
        self.record.step(swaps, Step::Verifying)?;
        let mut loaded: Vec<Arc<Served>> = Vec::new();
        for setup in opened {
            match self.come_up(setup) {
                Ok(model) => loaded.push(model),
                Err(error) => {
                    loaded.into_iter().for_each(|model| self.retire(model));
                    return Err(error);
                }
            }
        }
        Ok(loaded)
    }

    fn come_up(&self, model: ModelSetup) -> Result<Arc<Served>, PoolError> {
        let (done, loaded) = oneshot::channel();
        let message = Message::Load { model: Box::new(model), done };
        self.handle.send(message).map_err(|()| PoolError::Stopped)?;
        let loaded = loaded.blocking_recv().unwrap_or(Err(StartError::Stopped));
        loaded.map_err(|error| PoolError::Failed(error.to_string()))
    }

    /// Retires a version that the router names no longer, once no request holds it.
    fn retire(&self, model: Arc<Served>) {
        let (id, ended) = (model.id, model.ended.clone());
        drop(model);
        // Nothing is ever sent: the channel closes when the last request has its answer.
        let _ = ended.recv();
        let (done, released) = oneshot::channel();
        if self.handle.send(Message::Retire { model: id, done }).is_ok() {
            let _ = released.blocking_recv();
        }
    }

    fn unload(&mut self, model: &ModelRef, author: &Author) -> Result<Changed, PoolError> {
        let before = self.handle.routes();
        let (gone, stay): (Vec<Arc<Served>>, Vec<_>) =
            before.models.iter().cloned().partition(|live| live.is(model));
        if gone.is_empty() {
            return Err(PoolError::NotFound(format!("model `{model}` is not loaded")));
        }
        let is_left =
            |route: &RouteSetup| stay.iter().any(|model| route.primaries.iter().any(|named| model.is(named)));
        let (stays, ends): (Vec<_>, Vec<_>) =
            before.routes.iter().cloned().partition(|route| !route.is_implicit || is_left(route));
        let routes = Routes { routes: stays, models: stay };
        let is_needed = |route: &&RouteSetup| {
            let needed =
                if route.primaries.is_empty() { route.fallback.as_slice() } else { &route.primaries };
            !needed.iter().any(|name| routes.find(name).is_some())
        };
        if let Some(route) = routes.routes.iter().find(is_needed) {
            let route = &route.name;
            return Err(PoolError::Conflict(format!(
                "model `{model}` is the last one of route `{route}`; load another version, which takes its place"
            )));
        }
        let swaps = self.record.begin_end(&ends, author)?;
        for step in [Step::Verifying, Step::Switching] {
            if let Err(error) = self.record.step(&swaps, step) {
                return Err(self.record.abandon(&swaps, error));
            }
        }
        drop(before);
        self.handle.publish(routes);
        let drained = self.record.step(&swaps, Step::Draining);
        let down = gone.iter().map(|model| model.named()).collect();
        gone.into_iter().for_each(|model| self.retire(model));
        self.end(&swaps, drained);
        Ok(Changed { up: Vec::new(), down })
    }
}
