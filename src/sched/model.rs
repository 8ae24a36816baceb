//! A model as the scheduler sees it: the work that waits for it, what is known of its speed, and its lanes.

use super::Scheduler;
use super::config::LaneConfig;
use super::event::{Action, Line};
use super::lane::{Health, Lane};
use super::queue::WorkQueue;
use crate::base::{LaneId, ModelId, Ns, Tier};
use crate::forecast::predict::{Measured, Predictor};
use smallvec::SmallVec;

/// One served version of a model.
#[derive(Debug)]
pub(super) struct Model {
    pub queue: WorkQueue,
    pub predictor: Predictor,
    pub lanes: SmallVec<[LaneId; 2]>,
    /// Jobs inside whose line names it.
    pub inside: usize,
}

/// The present state of a model, for metrics and the admin page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauge {
    /// Jobs waiting.
    pub jobs: usize,
    /// Tokens waiting.
    pub tokens: u64,
    /// Predicted device time of the waiting work.
    pub work: Ns,
    /// Lanes that accept work.
    pub lanes_up: usize,
}

impl Scheduler {
    /// Adds a model with lanes that are up.
    pub(super) fn add_model(&mut self, model: ModelId, seeds: &[Measured], lanes: Vec<(LaneId, LaneConfig)>) {
        let weights = self.weights.iter().copied();
        let quantum = Ns(self.limits.batch_ns_max.0 / 4);
        let queue = WorkQueue::new(weights, lanes.len(), quantum);
        let (predictor, ids) = (Predictor::new(seeds), lanes.iter().map(|&(lane, _)| lane).collect());
        self.models.insert(model, Model { queue, predictor, lanes: ids, inside: 0 });
        for (id, config) in lanes {
            assert_eq!(config.model, model, "a model's lanes are its own");
            self.lanes.insert(id, Lane::new(config));
        }
    }

    /// Retires a model. One that is not there, or is retired already, is ignored.
    pub(super) fn retire(&mut self, model: ModelId) {
        if self.models.get(model).is_some() && !self.retired.contains(&model) {
            self.retired.push(model);
        }
    }

    /// Releases the lanes of the retired models that have no job inside and no batch.
    pub(super) fn release_retired(&mut self, out: &mut Vec<Action>) {
        let is_done = |scheduler: &Self, model| {
            scheduler.models[model].inside == 0
                && scheduler.lanes_of(model).all(|lane| lane.running.is_empty())
        };
        while let Some(place) = self.retired.iter().position(|&model| is_done(self, model)) {
            let model = self.retired.remove(place);
            for lane in
                self.models.remove(model).expect("a retired model is there until it is released").lanes
            {
                self.released += self.lanes.remove(lane).expect("a model's lanes are there").busy;
                out.push(Action::Release { lane });
            }
        }
    }

    /// Counts a job that enters or leaves with its models.
    pub(super) fn count_inside(&mut self, line: Line, count: impl Fn(&mut usize)) {
        for model in Tier::ALL.into_iter().filter_map(|tier| line[tier]) {
            count(&mut self.models[model].inside);
        }
    }

    /// The models that are there, retired ones until their lanes are released.
    pub fn models(&self) -> impl Iterator<Item = ModelId> + '_ {
        self.models.ids()
    }

    /// The present state of a model.
    pub fn gauge(&self, model: ModelId) -> Gauge {
        let queue = &self.models[model].queue;
        let lanes_up = self.lanes_of(model).filter(|lane| lane.health == Health::Up).count();
        Gauge { jobs: queue.jobs(), tokens: queue.tokens(), work: queue.work(), lanes_up }
    }

    /// A model's predictor, for the metric of its error.
    pub fn predictor(&self, model: ModelId) -> &Predictor {
        &self.models[model].predictor
    }

    pub(super) fn lanes_of(&self, model: ModelId) -> impl Iterator<Item = &Lane> {
        self.models[model].lanes.iter().map(|&lane| &self.lanes[lane])
    }

    /// Whether a model has a working lane, or a probing lane without work to probe with.
    pub(super) fn is_available(&self, model: ModelId) -> bool {
        self.lanes_of(model).any(|lane| lane.health == Health::Up)
            || (self.models[model].queue.jobs() == 0
                && self.lanes_of(model).any(|lane| lane.health == Health::Probing && lane.has_room()))
    }

    /// The lanes among which a model's work is divided.
    pub(super) fn working_lanes(&self, model: ModelId) -> impl Iterator<Item = &Lane> {
        self.lanes_of(model).filter(|lane| matches!(lane.health, Health::Up | Health::Probing))
    }
}
