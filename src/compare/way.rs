//! A way to answer: the ranker and its candidates.

use super::fuse::fuse;
use crate::model::Calibration;
use crate::rerank::top_k_scores;
use serde::{Serialize, Serializer};

/// The ranker of a request's candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// None: the first stage's order.
    FirstStage,
    /// The fallback.
    Fallback,
    /// The primary on the fallback's best k, the fallback on the others.
    TopK(usize),
    /// The primary.
    Full,
    /// The tier that the scheduler chooses for a latency budget in milliseconds.
    Budget(u64),
    /// A server that was asked over HTTP, by its position.
    Server(usize),
}

impl Serialize for Way {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.name())
    }
}

impl Way {
    /// Its name in reports.
    pub fn name(self) -> String {
        match self {
            Self::FirstStage => "first stage".to_owned(),
            Self::Fallback => "fallback".to_owned(),
            Self::TopK(k) => format!("top {k}"),
            Self::Full => "full".to_owned(),
            Self::Budget(ms) => format!("budget {ms} ms"),
            Self::Server(place) => format!("server {}", place + 1),
        }
    }
}

/// All scores of a query's candidates, each `[candidates]`.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub first_stage: &'a [f32],
    pub fallback: &'a [f32],
    pub primary: &'a [f32],
    /// By server; none without an answer.
    pub servers: &'a [Option<Vec<f32>>],
    pub calibration: Calibration,
}

impl Known<'_> {
    /// The scores of a way, mixed with the first stage's if a weight is given. A budget's scores mix those of the
    /// tiers.
    pub fn scores(&self, way: Way, weight: Option<f32>) -> Vec<f32> {
        let scores = match way {
            Way::FirstStage => return self.first_stage.to_vec(),
            Way::Fallback => self.fallback.to_vec(),
            Way::TopK(k) => self.top_k(k),
            Way::Full | Way::Budget(_) => self.primary.to_vec(),
            // Unanswered requests keep the first stage's order.
            Way::Server(place) => return self.servers[place].as_deref().unwrap_or(self.first_stage).to_vec(),
        };
        weight.map_or(scores.clone(), |weight| fuse(&scores, self.first_stage, weight))
    }

    /// Merges both tiers as `engine::answer` does.
    fn top_k(&self, k: usize) -> Vec<f32> {
        let fallback: Vec<f32> = self.fallback.iter().map(|&logit| self.calibration.apply(logit)).collect();
        top_k_scores(&fallback, self.primary, k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_orders_by_its_own_scores() {
        let known = Known {
            first_stage: &[3.0, 2.0, 1.0],
            fallback: &[0.1, 0.3, 0.2],
            primary: &[9.0, 8.0, 7.0],
            servers: &[None, Some(vec![0.5, 0.4, 0.6])],
            calibration: Calibration { scale: 10.0, offset: 0.0 },
        };
        assert_eq!(known.scores(Way::TopK(2), None), [1.0, 8.0, 7.0]);
        assert_eq!(known.scores(Way::TopK(0), None), [1.0, 3.0, 2.0]);
        assert_eq!(known.scores(Way::TopK(9), None), known.scores(Way::Full, None));
        assert_eq!(known.scores(Way::FirstStage, Some(0.5)), [3.0, 2.0, 1.0]);
        assert_eq!(known.scores(Way::Full, Some(0.0)), [1.0, 0.5, 0.0]);
        assert_eq!(known.scores(Way::Server(0), None), [3.0, 2.0, 1.0]);
        assert_eq!(known.scores(Way::Server(1), None), [0.5, 0.4, 0.6]);
    }
}
