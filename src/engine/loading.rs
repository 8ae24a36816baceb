//! Models that come and go: the driver starts the lanes of one that is loaded, and ends those of one that is retired.

use super::driver::{Driver, LaneFactory, LaneThread, Message};
use super::factory::factories;
use super::lane::LaneEvent;
use super::router::Routes;
use super::served::Served;
use super::{ModelSetup, RouteSetup, StartError};
use crate::backend::DeviceState;
use crate::base::{LaneId, ModelId, Ns};
use crate::forecast::predict::Measured;
use crate::sched::{Event, LaneConfig};
use std::sync::Arc;
use tokio::sync::oneshot;

/// A model whose lanes are not all up.
pub(super) struct Loading {
    pub id: ModelId,
    model: ModelSetup,
    /// Its lanes, each with the state of its device if that was reported.
    lanes: Vec<(LaneId, Option<DeviceState>)>,
    seeds: Vec<Measured>,
    missing: usize,
    /// Who waits; none for a model of the start.
    done: Option<oneshot::Sender<Result<Arc<Served>, StartError>>>,
}

/// The start, until all of its models are up.
pub(super) struct Starting {
    pub routes: Vec<RouteSetup>,
    pub models: Vec<Arc<Served>>,
    pub missing: usize,
    /// Receives once whether every lane came up.
    pub started: oneshot::Sender<Result<(), StartError>>,
}

/// A retired model.
pub(super) struct Releasing {
    lanes: Vec<LaneId>,
    done: oneshot::Sender<()>,
}

impl Driver {
    /// Starts the lanes of a model.
    pub(super) fn load(
        &mut self,
        mut model: ModelSetup,
        done: Option<oneshot::Sender<Result<Arc<Served>, StartError>>>,
    ) {
        let (id, first) = (ModelId(self.next_model), LaneId(self.next_lane));
        let factories = factories(&model, first, self.batch_ns_max, self.clock, &self.sender);
        self.next_model += 1;
        self.next_lane += factories.len() as u32;
        let mut lanes = Vec::new();
        for (factory, lane) in factories.into_iter().zip((first.0..).map(LaneId)) {
            self.threads.insert(lane, LaneThread::start(id, factory));
            lanes.push((lane, None));
        }
        // The factories hold what its scorers are made of.
        model.lanes.clear();
        let missing = lanes.len();
        self.loading.push(Loading { id, model, lanes, seeds: Vec::new(), missing, done });
    }

    /// A lane of a model that is loading reports.
    pub(super) fn report_of_loading(&mut self, place: usize, lane: LaneId, event: LaneEvent) {
        let loading = &mut self.loading[place];
        match event {
            LaneEvent::Up(measured) => {
                loading.seeds.extend(measured);
                loading.missing -= 1;
                if loading.missing == 0 {
                    let loading = self.loading.remove(place);
                    self.loaded(loading);
                }
            }
            LaneEvent::Device(state) => {
                let known = loading.lanes.iter_mut().find(|(known, _)| *known == lane);
                known.expect("a lane of this model reports").1 = Some(state);
            }
            LaneEvent::Down(why) => self.not_loaded(place, StartError::Lane { lane: lane.0, why }),
            LaneEvent::Unfit(why) => self.not_loaded(place, StartError::Unfit { why }),
            LaneEvent::Ended { .. } => unreachable!("no batch is sent to a model that is not up"),
        }
    }

    /// All lanes of a model are up.
    fn loaded(&mut self, Loading { id, model, lanes, seeds, done, .. }: Loading) {
        let threads = &self.threads;
        let accounts: Vec<_> =
            lanes.iter().map(|&(lane, state)| (lane, &threads[lane].factory, state)).collect();
        let devices = self.books.add_model(self.clock.now(), (id, &model), &accounts);
        let config = |(&(lane, _), on)| {
            let LaneFactory { batch_tokens_max, depth, .. } = threads[lane].factory;
            (lane, LaneConfig { model: id, on, batch_tokens_max, depth })
        };
        let lanes = lanes.iter().zip(devices).map(config).collect();
        self.step(Event::ModelUp { model: id, seeds, lanes });
        let served = self.shared.served(id, model);
        match done {
            // Nobody waits any more: the model is retired as if it had been replaced.
            Some(done) => {
                if done.send(Ok(served)).is_err() {
                    self.step(Event::Retire { model: id });
                }
            }
            None => self.has_started(served),
        }
    }

    /// A model of the start is up.
    fn has_started(&mut self, served: Arc<Served>) {
        let starting = self.starting.as_mut().expect("a model of the start comes up at the start");
        starting.models.push(served);
        starting.missing -= 1;
        if starting.missing > 0 {
            return;
        }
        let Starting { routes, mut models, started, .. } = self.starting.take().expect("it was just seen");
        models.sort_by_key(|model| model.id);
        self.shared.router.publish(Routes { routes, models });
        // A drain that came while loading must not be undone.
        self.shared.loaded();
        let _ = started.send(Ok(()));
    }

    /// A lane of a model did not come up: its other lanes are given up.
    fn not_loaded(&mut self, place: usize, error: StartError) {
        let Loading { lanes, done, .. } = self.loading.remove(place);
        for (lane, _) in lanes {
            self.threads.remove(lane);
        }
        match (done, self.starting.take()) {
            (Some(done), starting) => {
                self.starting = starting;
                let _ = done.send(Err(error));
            }
            (None, Some(Starting { started, .. })) => {
                let _ = started.send(Err(error));
                self.next = Some(Message::Stop);
            }
            (None, None) => unreachable!("a model of the start is loaded at the start"),
        }
    }

    pub(super) fn retire(&mut self, model: ModelId, done: oneshot::Sender<()>) {
        let lanes = self.threads.ids().filter(|&lane| self.threads[lane].model == model).collect();
        self.releasing.push(Releasing { lanes, done });
        self.step(Event::Retire { model });
        self.tell_released();
    }

    /// Ends a lane's thread. It drops the scorer, and so its memory.
    pub(super) fn release(&mut self, now: Ns, lane: LaneId) {
        self.threads.remove(lane);
        self.books.remove_lane(now, lane);
        self.releasing.iter_mut().for_each(|releasing| releasing.lanes.retain(|&other| other != lane));
        self.tell_released();
    }

    fn tell_released(&mut self) {
        while let Some(place) = self.releasing.iter().position(|releasing| releasing.lanes.is_empty()) {
            let _ = self.releasing.remove(place).done.send(());
        }
    }
}
