//! The driver's record of a job: its pairs, its scores so far, and the channel for its reply.

use super::TierSetup;
use super::books::Price;
use super::driver::Submission;
use super::pairs::Prepared;
use crate::base::{Ns, PerTier, TenantId, Tier};
use crate::rerank::{Outcome, Receipt, Refusal, Served, Truncated, merge_top_k, order};
use crate::sched::{Answer, Arrival, Slice};
use crate::token::Pair;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A job between its arrival and its answer.
pub(super) struct Entry {
    tenant: TenantId,
    arrived: Ns,
    budget: Option<Ns>,
    prepared: Prepared,
    tokenise: Ns,
    /// For each tier a logit per candidate, on the tier's own scale; empty until the tier's first slice is scored.
    scores: PerTier<Vec<f32>>,
    /// Candidates from best to worst by the fallback; set when a top-k needs it.
    order: Option<Arc<[u32]>>,
    reply: oneshot::Sender<Result<Outcome, Refusal>>,
}

impl Entry {
    /// Splits a submission into the scheduler's event and this record.
    pub fn new(submission: Submission) -> (Arrival, Self) {
        let Submission { arrival, prepared, tokenise, budget, reply } = submission;
        let (tenant, arrived) = (arrival.tenant, arrival.arrived);
        let (scores, order) = (PerTier::default(), None);
        (arrival, Self { tenant, arrived, budget, prepared, tokenise, scores, order, reply })
    }

    /// The tenant that is charged.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The pairs for a tier, one per candidate.
    pub fn pairs(&self, tier: Tier) -> Arc<[Pair]> {
        self.prepared[tier].pairs.clone()
    }

    /// The number of candidates.
    pub fn candidates(&self) -> usize {
        self.prepared.primary.lengths.len().max(self.prepared.fallback.lengths.len())
    }

    /// Tokens of a slice's pairs.
    pub fn tokens(&self, tier: Tier, slice: &Slice) -> u64 {
        let lengths = &self.prepared[tier].lengths;
        slice.candidates().map(|candidate| u64::from(lengths[candidate])).sum()
    }

    /// Stores a tier's logits of a slice.
    pub fn keep(&mut self, tier: Tier, slice: &Slice, logits: &[f32]) {
        let scores = &mut self.scores[tier];
        if scores.is_empty() {
            scores.resize(self.prepared[tier].pairs.len(), 0.0);
        }
        for (candidate, &logit) in slice.candidates().zip(logits) {
            scores[candidate] = logit;
        }
    }

    /// Orders the candidates by the fallback's scores, best first.
    pub fn rank(&mut self) -> Arc<[u32]> {
        let order = order(&self.scores.fallback).expect("a lane reports finite scores only");
        let order: Arc<[u32]> = order.into_iter().map(|index| index as u32).collect();
        self.order = Some(order.clone());
        order
    }

    /// Sends the refusal to the caller.
    pub fn refuse(self, refusal: Refusal) {
        let _ = self.reply.send(Err(refusal));
    }

    /// Sends the outcome to the caller.
    pub fn answer(mut self, now: Ns, answer: &Answer, price: Price, tiers: &PerTier<Option<TierSetup>>) {
        let tier = match answer.served {
            Served::Full | Served::TopK { .. } => Tier::Primary,
            Served::Fallback => Tier::Fallback,
        };
        let setup = tiers[tier].as_ref().expect("a tier that answers is configured");
        let elapsed = now.saturating_sub(self.arrived);
        let (truncated, all) = self.truncated(answer.served);
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
        let tokens = self.prepared[tier].tokens();
        let scores = self.merge(answer.served, tiers);
        let _ = self.reply.send(Ok(Outcome { scores, truncated, tokens, receipt }));
    }

    /// Whether each document lost tokens in a tier that scored it for the answer, and what was lost in all.
    fn truncated(&self, served: Served) -> (Vec<bool>, Truncated) {
        let mut documents = vec![false; self.candidates()];
        let mut all = Truncated::default();
        for &tier in served.tiers() {
            for (document, pair) in documents.iter_mut().zip(&*self.prepared[tier].pairs) {
                *document |= pair.document_lost() > 0;
                all.query_tokens = all.query_tokens.max(pair.query_lost());
            }
        }
        all.documents = documents.iter().map(|&truncated| u32::from(truncated)).sum();
        (documents, all)
    }

    /// The scores of the answer, on the primary's scale.
    fn merge(&mut self, served: Served, tiers: &PerTier<Option<TierSetup>>) -> Vec<f32> {
        let primary = std::mem::take(&mut self.scores.primary);
        let mut fallback = std::mem::take(&mut self.scores.fallback);
        if served == Served::Full {
            return primary;
        }
        let calibration = tiers.fallback.as_ref().expect("the fallback answered").calibration;
        for score in &mut fallback {
            *score = calibration.apply(*score);
        }
        if let Served::TopK { k } = served {
            let order = self.order.as_ref().expect("a top-k was ranked");
            let best = order[..k as usize].iter().map(|&index| index as usize);
            let block: Vec<(usize, f32)> = best.map(|index| (index, primary[index])).collect();
            merge_top_k(&mut fallback, &block);
        }
        fallback
    }
}
