//! A client of a simulated server.

use crate::base::{ModelId, Ns, TenantId};
use crate::rerank::Policy;
use crate::sched::Ask;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A client that waits for its answer.
pub(super) struct Client {
    pub tenant: TenantId,
    pub arrived: Ns,
    pub deadline: Option<Ns>,
    pub policy: Policy,
    /// The request as each model reads it that was live when it arrived, and its fallback.
    pub asks: Vec<Ask>,
    pub fallback: Option<ModelId>,
    /// The candidates that each model has scored.
    pub scored: BTreeMap<ModelId, Vec<bool>>,
    /// The order that [`Action::Rank`] was answered with.
    pub order: Option<Arc<[u32]>>,
}

impl Client {
    pub fn pairs(&self) -> usize {
        self.asks.first().map_or(0, |ask| ask.lengths.len())
    }

    /// Whether a model's scores are not complete, and no other model's are.
    pub fn needs(&self, model: ModelId) -> bool {
        !self.has_all(Some(model)) && !self.asks.iter().any(|ask| ask.model != model)
    }

    pub fn ask(&self, model: ModelId) -> &Ask {
        self.asks.iter().find(|ask| ask.model == model).expect("a job runs on the models that it asks")
    }

    /// Whether a model has scored every candidate.
    pub fn has_all(&self, model: Option<ModelId>) -> bool {
        model.is_some_and(|model| self.scored[&model].iter().all(|&scored| scored))
    }
}
