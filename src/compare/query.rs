//! Judged queries with everybody's scores.

use super::run::{CompareError, Plan, Progress};
use super::way::{Known, Way};
use crate::backend::{CacheError, Cpu, CpuModel, List, PairReader, ScoreCache};
use crate::eval::{Candidate, Judged, Measure, rank};
use crate::model::{Calibration, Model};
use crate::token::Tokenizer;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// A query with its candidates and everybody's scores.
pub(super) struct Query<'a> {
    /// Its set's place, those to tune on apart.
    pub set: usize,
    pub id: &'a str,
    pub documents: Vec<&'a str>,
    pub grades: &'a HashMap<String, i32>,
    pub first_stage: Vec<f32>,
    pub fallback: Vec<f32>,
    pub primary: Vec<f32>,
    pub calibration: Calibration,
}

impl Query<'_> {
    pub fn known(&self) -> Known<'_> {
        let Self { first_stage, fallback, primary, calibration, .. } = self;
        Known { first_stage, fallback, primary, calibration: *calibration }
    }

    /// The documents in a way's order, with its scores.
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

/// A model at work.
pub(super) struct Scoring {
    pub scorer: Cpu,
    pub reader: PairReader,
    cache: ScoreCache,
    pub name: String,
    calibration: Calibration,
}

impl Scoring {
    pub fn open(model: &Model, plan: &Plan, work: &Path) -> Result<Self, CompareError> {
        let packed = CpuModel::new(&model.encoder, &model.weights, plan.precision)?;
        let tokenizer = Arc::new(Tokenizer::parse(&model.tokenizer)?);
        let file = format!("scores-{}-{}.bin", model.identity, packed.dtype());
        Ok(Self {
            name: format!("{}, {}", model.manifest.name, packed.dtype()),
            reader: PairReader { tokenizer, tokens_max: model.encoder.pair_tokens_max() },
            cache: ScoreCache::open(&work.join(file))?,
            calibration: model.manifest.calibration,
            scorer: Cpu::new(packed, plan.threads),
        })
    }

    fn logits(
        &mut self,
        set: &str,
        lists: &[List],
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<f32>>, CacheError> {
        let (of, stage) =
            (lists.iter().map(|list| list.documents.len()).sum(), format!("{set}, {}", self.name));
        let told = |done| tell(Progress { stage: stage.clone(), done, of });
        self.cache.complete(lists, &mut self.scorer, &self.reader, told)?;
        Ok(self.cache.logits(lists))
    }
}

/// Every judged query of the sets, scored by both.
///
/// # Errors
/// [`CacheError`], of reading and scoring.
pub(super) fn read_queries<'a>(
    sets: &'a [(String, Judged)],
    primary: &mut Scoring,
    fallback: &mut Scoring,
    tell: &mut dyn FnMut(Progress),
) -> Result<Vec<Query<'a>>, CacheError> {
    let mut queries = Vec::new();
    for (place, (name, set)) in sets.iter().enumerate() {
        let list = |(query, found): (&String, &Vec<Candidate>)| List {
            query: set.queries[query].as_str().into(),
            documents: found.iter().map(|found| set.documents[&found.document].as_str().into()).collect(),
        };
        let lists: Vec<List> = set.run.iter().map(list).collect();
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
            calibration: fallback.calibration,
        }));
    }
    Ok(queries)
}
