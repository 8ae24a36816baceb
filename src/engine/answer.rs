//! The driver's record of a job: its pairs, its scores so far, and the channel for its reply.

use super::books::Price;
use super::driver::Submission;
use super::pairs::{Part, Prepared};
use crate::base::{ModelId, Ns, TenantId, Tier, Tokens};
use crate::rerank::{Outcome, Receipt, Refusal, Served, Truncated, merge_top_k, order};
use crate::sched::{Answer, Arrival, Line, Slice};
use crate::token::Pair;
use smallvec::SmallVec;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A job between its arrival and its answer.
pub(super) struct Entry {
    tenant: TenantId,
    arrived: Ns,
    budget: Option<Ns>,
    prepared: Prepared,
    tokenise: Ns,
    /// For each model that has scored a slice a logit per candidate, on the model's own scale.
    scores: SmallVec<[(ModelId, Vec<f32>); 2]>,
    /// Candidates from best to worst by the fallback; set when a top-k needs it.
    order: Option<Arc<[u32]>>,
    reply: oneshot::Sender<Result<Outcome, Refusal>>,
}

impl Entry {
    /// Splits a submission into the scheduler's event and this record.
    pub fn new(submission: Submission) -> (Arrival, Self) {
        let Submission { arrival, prepared, tokenise, budget, reply } = submission;
        let (tenant, arrived) = (arrival.tenant, arrival.arrived);
        let (scores, order) = (SmallVec::new(), None);
        (arrival, Self { tenant, arrived, budget, prepared, tokenise, scores, order, reply })
    }

    /// The tenant that is charged.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The pairs for a model, one per candidate.
    pub fn pairs(&self, model: ModelId) -> Arc<[Pair]> {
        self.prepared.of(model).pairs.pairs.clone()
    }

    /// The number of candidates.
    pub fn candidates(&self) -> usize {
        self.prepared.candidates
    }

    /// Tokens of a slice's pairs.
    pub fn tokens(&self, model: ModelId, slice: &Slice) -> u64 {
        let lengths = &self.prepared.of(model).pairs.lengths;
        slice.candidates().map(|candidate| u64::from(lengths[candidate])).sum()
    }

    /// Stores a model's logits of a slice.
    pub fn keep(&mut self, model: ModelId, slice: &Slice, logits: &[f32]) {
        let place = self.scores.iter().position(|&(known, _)| known == model).unwrap_or_else(|| {
            self.scores.push((model, vec![0.0; self.prepared.candidates]));
            self.scores.len() - 1
        });
        let scores = &mut self.scores[place].1;
        for (candidate, &logit) in slice.candidates().zip(logits) {
            scores[candidate] = logit;
        }
    }

    /// Orders the candidates by the fallback's scores, best first.
    pub fn rank(&mut self) -> Arc<[u32]> {
        let fallback = self.prepared.fallback.as_ref().expect("a job that is ranked has a fallback").model.id;
        let scores = self.scores.iter().find(|&&(model, _)| model == fallback);
        let (_, scores) = scores.expect("a job is ranked when the fallback has scored it");
        let order = order(scores).expect("a lane reports finite scores only");
        let order: Arc<[u32]> = order.into_iter().map(|index| index as u32).collect();
        self.order = Some(order.clone());
        order
    }

    /// Sends the refusal to the caller.
    pub fn refuse(self, refusal: Refusal) {
        let _ = self.reply.send(Err(refusal));
    }

    /// Sends the outcome to the caller.
    pub fn answer(mut self, now: Ns, answer: &Answer, price: Price) {
        // A request without candidates has no line if its models are gone; then the preferred one signs.
        let part = self.part(answer.line, answer.served.tiers()[0]).or_else(|| self.preferred());
        let setup = &part.expect("a request has a model").model.setup;
        let elapsed = now.saturating_sub(self.arrived);
        let (truncated, all) = self.truncated(answer);
        let receipt = Receipt {
            served: answer.served,
            degraded: answer.degraded,
            budget: self.budget,
            elapsed,
            queue: elapsed.saturating_sub(answer.compute),
            tokenise: self.tokenise,
            compute: answer.compute,
            model: setup.name.clone(),
            version: setup.version.clone(),
            device_kind: setup.device.clone(),
            device: answer.charged.total(),
            cost: price.cost,
            joules: price.joules,
            truncated: all,
        };
        let tokens = part.map_or_else(Tokens::default, |part| part.pairs.tokens());
        let without_instruction = self.parts(answer).filter(|part| !part.model.info.takes_instruction);
        let without_instruction = without_instruction.map(|part| part.model.setup.name.clone()).collect();
        let scores = self.merge(answer);
        let _ = self.reply.send(Ok(Outcome { scores, truncated, tokens, without_instruction, receipt }));
    }

    /// The part of a tier's model.
    fn part(&self, line: Line, tier: Tier) -> Option<&Part> {
        line[tier].map(|model| self.prepared.of(model))
    }

    fn preferred(&self) -> Option<&Part> {
        self.prepared.primaries.first().or(self.prepared.fallback.as_ref())
    }

    /// The parts of the models whose scores are in the answer.
    fn parts(&self, answer: &Answer) -> impl Iterator<Item = &Part> {
        answer.served.tiers().iter().filter_map(|&tier| self.part(answer.line, tier))
    }

    /// Whether each document lost tokens in a model that scored it for the answer, and what was lost in all.
    fn truncated(&self, answer: &Answer) -> (Vec<bool>, Truncated) {
        let mut documents = vec![false; self.candidates()];
        let mut all = Truncated::default();
        for part in self.parts(answer) {
            for (document, pair) in documents.iter_mut().zip(&*part.pairs.pairs) {
                *document |= pair.document_lost() > 0;
                all.query_tokens = all.query_tokens.max(pair.query_lost());
            }
        }
        all.documents = documents.iter().map(|&truncated| u32::from(truncated)).sum();
        (documents, all)
    }

    /// The scores of the answer, on the primary's scale.
    fn merge(&mut self, answer: &Answer) -> Vec<f32> {
        let scores = &mut self.scores;
        let mut take = |tier: Tier| {
            let of_it = scores.iter_mut().find(|(model, _)| answer.line[tier] == Some(*model));
            of_it.map_or_else(Vec::new, |(_, scores)| std::mem::take(scores))
        };
        let primary = take(Tier::Primary);
        if answer.served == Served::Full {
            return primary;
        }
        let mut fallback = take(Tier::Fallback);
        let part = self.part(answer.line, Tier::Fallback).expect("the fallback answered");
        let calibration = part.model.setup.calibration;
        for score in &mut fallback {
            *score = calibration.apply(*score);
        }
        if let Served::TopK { k } = answer.served {
            let order = self.order.as_ref().expect("a top-k was ranked");
            let best = order[..k as usize].iter().map(|&index| index as usize);
            let block: Vec<(usize, f32)> = best.map(|index| (index, primary[index])).collect();
            merge_top_k(&mut fallback, &block);
        }
        fallback
    }
}
