//! Judged queries with the scores of both models.

use super::run::{CompareError, Plan, Progress};
use super::way::{Known, Way};
use crate::base::Tier;
use crate::eval::{CacheError, CachedScorer, Judged, List, Measure, rank};
use crate::model::{Calibration, Model};
use std::collections::HashMap;
use std::path::Path;

/// A query with its candidates and all scores.
pub(super) struct Query<'a> {
    /// The position of its set; tuning sets are numbered separately.
    pub set: usize,
    pub id: &'a str,
    pub documents: Vec<&'a str>,
    pub grades: &'a HashMap<String, i32>,
    pub first_stage: Vec<f32>,
    pub fallback: Vec<f32>,
    pub primary: Vec<f32>,
    pub servers: Vec<Option<Vec<f32>>>,
    pub calibration: Calibration,
}

impl Query<'_> {
    pub fn known(&self) -> Known<'_> {
        let Self { first_stage, fallback, primary, servers, calibration, .. } = self;
        Known { first_stage, fallback, primary, servers, calibration: *calibration }
    }

    /// The documents in the order of a way, with their scores.
    pub fn ranked(&self, way: Way, weight: Option<f32>) -> Vec<(&str, f32)> {
        let scores = self.known().scores(way, weight);
        let by_id: HashMap<&str, f32> = self.documents.iter().copied().zip(scores).collect();
        rank(by_id.iter().map(|(&id, &score)| (id, score))).into_iter().map(|id| (id, by_id[id])).collect()
    }

    pub fn value(&self, measure: Measure, way: Way, weight: Option<f32>) -> f64 {
        let ranked: Vec<&str> = self.ranked(way, weight).into_iter().map(|(id, _)| id).collect();
        measure.of(&ranked, self.grades)
    }
}

/// A model that scores pairs.
pub(super) struct Scoring {
    pub keeper: CachedScorer,
    pub name: String,
    calibration: Calibration,
}

impl Scoring {
    pub fn open(tier: Tier, model: &Model, plan: &Plan, work: &Path) -> Result<Self, CompareError> {
        let keeper = CachedScorer::open(tier, model, (plan.precision, plan.threads), &plan.truncation, work)?;
        let name = format!("{}, {}", model.manifest.name, keeper.dtype);
        Ok(Self { keeper, name, calibration: model.manifest.calibration })
    }

    fn logits(
        &mut self,
        set: &str,
        lists: &[List],
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<f32>>, CacheError> {
        let (of, stage) =
            (lists.iter().map(|list| list.documents.len()).sum(), format!("{set}, {}", self.name));
        self.keeper.logits(lists, |done| tell(Progress { stage: stage.clone(), done, of }))
    }
}

/// Scores every judged query of the sets by both models.
///
/// # Errors
/// [`CacheError`] of tokenising or scoring.
pub(super) fn read_queries<'a>(
    sets: &'a [(String, Judged)],
    primary: &mut Scoring,
    fallback: &mut Scoring,
    tell: &mut dyn FnMut(Progress),
) -> Result<Vec<Query<'a>>, CacheError> {
    let mut queries = Vec::new();
    for (place, (name, set)) in sets.iter().enumerate() {
        let lists = List::of_set(set);
        let scores =
            fallback.logits(name, &lists, tell)?.into_iter().zip(primary.logits(name, &lists, tell)?);
        queries.extend(set.run.iter().zip(scores).map(|((id, found), (small, large))| Query {
            set: place,
            id,
            documents: found.iter().map(|found| found.document.as_str()).collect(),
            grades: &set.grades[id],
            first_stage: found.iter().map(|found| found.score).collect(),
            fallback: small,
            primary: large,
            servers: Vec::new(),
            calibration: fallback.calibration,
        }));
    }
    Ok(queries)
}
