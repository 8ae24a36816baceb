//! The state of a job: which tier works on what, and which scores are back.

use super::config::Limits;
use super::event::{Arrival, Ask, JobId, Line};
use super::stage::Stage;
use crate::base::{LaneId, ModelId, Ns, PerTier, TenantId, Tier, Used};
use crate::forecast::predict::Load;
use crate::rerank::{Degradation, Policy, Priority};
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// A job with a budget lets later ones pass for this part of its slack. With all of it the order would be that of
/// deadlines, and with none that of arrival. By `podium simulate`, p99 at 0.7 of capacity is 89 ms
/// with an eighth, 113 ms with all and 95 ms in a FIFO; and at capacity 0.4% of answers were late
/// with an eighth and 1.5% with all, as long budgets were used up to their last moment.
const SLACK_PART: u64 = 8;
/// A job without a budget lets later ones pass for this many times the device time that it needs itself, so that every
/// size waits in proportion: the order is that of equal stretch (latency over own service time), and waiting is ageing.
/// By `sim::tests::a_request_waits_in_proportion_to_its_own_size` the p99 of stretch at loads of 0.8 and 0.95 is 67 and
/// 71 with 32, 85 and 91 under processor sharing, 68 and 2181 with 24, and 3313 and 9868 in a FIFO.
const STRETCH: u64 = 32;

/// A job in the scheduler.
#[derive(Debug)]
pub(super) struct Job {
    pub id: JobId,
    /// When it arrived at the server.
    pub arrived: Ns,
    pub tenant: TenantId,
    pub policy: Policy,
    pub top_k: Option<u32>,
    pub deadline: Option<Ns>,
    /// The sort key in its tenant's queue, earliest first; not a deadline.
    pub due: Ns,
    /// Number of candidates.
    pub pairs: u32,
    pub line: Line,
    pub prefixes: PerTier<u32>,
    pub lengths: PerTier<Arc<[u32]>>,
    /// The load of all pairs in one batch, by tier.
    pub loads: PerTier<Load>,
    pub stage: Stage,
    /// Tiers that idled and are tried on this job although they are predicted to miss its deadline.
    pub tried: PerTier<bool>,
    /// Whether the fallback was started in addition to the primary.
    pub is_hedged: bool,
    pub parts: PerTier<Part>,
    pub degraded: Option<Degradation>,
    /// Why the preferred primary has no part in it, if another one has.
    pub passed_over: Option<Degradation>,
    pub charged: Used,
    /// Tiers that failed on this job once; each gets one more attempt.
    pub failed: PerTier<bool>,
    /// The number of batches with pairs of this job, and since when it is at least one.
    pub batches: u32,
    pub busy_since: Ns,
    pub compute: Ns,
}

/// Usually there is one, which needs no allocation.
pub(super) type Ranges = SmallVec<[Range<u32>; 1]>;

/// One tier's work on a job.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The order in which candidates are taken in a top-k.
    pub order: Option<Arc<[u32]>>,
    /// Positions that are not dispatched.
    pub todo: Ranges,
    /// Tokens and predicted device time of `todo`, with the prefix unless the tier has begun it; zero exactly if `todo` is
    /// empty.
    pub tokens: u64,
    pub work: Ns,
    /// Pairs in running batches.
    pub running: u32,
    /// Lanes that have the prefix from a batch of this job.
    pub lanes: SmallVec<[LaneId; 2]>,
    /// Positions that are scored, in order of completion.
    pub done: Ranges,
    /// Pairs that the tier has to score.
    pub pairs: u32,
    /// The place in its tenant's queue while `todo` is not empty.
    pub queued: Option<super::queue::Ticket>,
}

impl Part {
    /// Whether all pairs are scored.
    pub fn complete(&self) -> bool {
        self.pairs > 0 && self.done_pairs() == self.pairs
    }

    /// Whether a batch has taken some of it.
    pub fn has_begun(&self) -> bool {
        self.running > 0 || !self.done.is_empty()
    }

    /// Pairs that are scored.
    pub fn done_pairs(&self) -> u32 {
        self.done.iter().map(|range| range.end - range.start).sum()
    }

    /// The number of positions from the first on that are all scored.
    pub fn done_prefix(&self) -> u32 {
        let mut ranges: Vec<&Range<u32>> = self.done.iter().collect();
        ranges.sort_by_key(|range| range.start);
        ranges.iter().fold(0, |end, range| if range.start <= end { end.max(range.end) } else { end })
    }

    /// Positions that are not scored.
    pub fn not_done(&self) -> Ranges {
        let mut done: Vec<&Range<u32>> = self.done.iter().collect();
        done.sort_by_key(|range| range.start);
        let starts = std::iter::once(0).chain(done.iter().map(|range| range.end));
        let ends = done.iter().map(|range| range.start).chain(std::iter::once(self.pairs));
        std::iter::zip(starts, ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect()
    }

    /// The candidate at a position.
    pub fn candidate(&self, place: u32) -> usize {
        match &self.order {
            Some(order) => order[place as usize] as usize,
            None => place as usize,
        }
    }
}

/// The load of all pairs in one batch.
fn load(ask: &Ask) -> Load {
    match ask.lengths.is_empty() {
        true => Load::default(),
        false => Load::behind(ask.prefix, ask.lengths.iter().copied()),
    }
}

impl Job {
    /// Its primary is the preferred one. `predict` gives the device time of a load alone on a model; it is called for jobs without a deadline.
    pub fn new(arrival: Arrival, limits: &Limits, predict: impl FnOnce(ModelId, &Load) -> Ns) -> Self {
        let pairs = arrival.pairs;
        let asks = PerTier { primary: arrival.primaries.into_iter().next(), fallback: arrival.fallback };
        let line = PerTier::from_fn(|tier| Some(asks[tier].as_ref()?.model));
        let loads = PerTier::from_fn(|tier| asks[tier].as_ref().map_or_else(Load::default, load));
        let prefixes = PerTier::from_fn(|tier| asks[tier].as_ref().map_or(0, |ask| ask.prefix));
        let PerTier { primary, fallback } = asks;
        let lengths = |ask: Option<Ask>| ask.map_or_else(Arc::default, |ask| ask.lengths);
        let lengths = PerTier { primary: lengths(primary), fallback: lengths(fallback) };
        // The best tier that its policy and its models allow.
        let best = match arrival.policy {
            Policy::Fallback => Tier::Fallback,
            _ if line.primary.is_none() => Tier::Fallback,
            Policy::Full | Policy::TopK | Policy::Auto => Tier::Primary,
        };
        let deadline = arrival.deadline.map(|deadline| deadline.saturating_sub(limits.answer_ns_margin));
        let lead = match deadline {
            Some(deadline) => Ns(deadline.saturating_sub(arrival.arrived).0 / SLACK_PART),
            None => {
                let alone = line[best].map_or(Ns::ZERO, |model| predict(model, &loads[best]));
                Ns(alone.0.saturating_mul(STRETCH)).min(limits.wait_ns_max)
            }
        };
        // Priorities scale the lead, so that a low one rises as it waits and none starves.
        let due = match arrival.priority {
            Priority::High => Ns(lead.0 / 8),
            Priority::Normal => lead,
            Priority::Low => Ns(lead.0.saturating_mul(8)),
        };
        Self {
            id: arrival.job,
            arrived: arrival.arrived,
            tenant: arrival.tenant,
            policy: arrival.policy,
            top_k: arrival.top_k,
            deadline,
            due: arrival.arrived.saturating_add(due),
            pairs,
            line,
            prefixes,
            lengths,
            loads,
            stage: Stage::Full,
            tried: PerTier::default(),
            is_hedged: false,
            parts: PerTier::default(),
            degraded: None,
            passed_over: None,
            charged: Used::default(),
            failed: PerTier::default(),
            batches: 0,
            busy_since: Ns::ZERO,
            compute: Ns::ZERO,
        }
    }

    /// Makes a model its primary; before it is admitted.
    pub fn set_primary(&mut self, ask: &Ask) {
        self.line.primary = Some(ask.model);
        self.prefixes.primary = ask.prefix;
        self.lengths.primary = ask.lengths.clone();
        self.loads.primary = load(ask);
    }

    /// What a model of its line is to the job.
    pub fn tier_of(&self, model: ModelId) -> Tier {
        if self.line.primary == Some(model) { Tier::Primary } else { Tier::Fallback }
    }

    /// Whether the fallback has scored every candidate.
    pub fn has_fallback_scores(&self) -> bool {
        self.parts.fallback.complete()
    }

    /// The tokens of a position in a tier's part, beyond the prefix.
    pub fn length(&self, tier: Tier, place: u32) -> u32 {
        self.lengths[tier][self.parts[tier].candidate(place)]
    }

    /// The load of a position in a tier's part.
    pub fn pair(&self, tier: Tier, place: u32) -> Load {
        let mut load = Load::default();
        load.add_behind(self.prefixes[tier], self.length(tier, place));
        load
    }

    /// The prefix of a tier's part, if the tier has not begun it.
    pub fn prefix(&self, tier: Tier) -> Load {
        let mut load = Load::default();
        load.add_prefix(if self.parts[tier].has_begun() { 0 } else { self.prefixes[tier] });
        load
    }

    /// Adds the waiting pairs of a tier's part to a batch.
    pub fn add_waiting(&self, tier: Tier, load: &mut Load) {
        *load += self.prefix(tier);
        for place in self.parts[tier].todo.iter().cloned().flatten() {
            *load += self.pair(tier, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::tests::asks;

    #[test]
    fn the_prefix_ends_at_the_first_gap() {
        let part = Part { done: [4..6, 0..2, 2..3].into_iter().collect(), pairs: 7, ..Part::default() };
        assert_eq!(part.done_prefix(), 3);
        assert_eq!(part.not_done()[..], [3..4, 6..7]);
        assert_eq!(part.done_pairs(), 5);
        assert!(!part.complete());
        for (done, prefix) in [([2..3, 0..2], 3), ([1..2, 3..4], 0)] {
            let part = Part { done: done.into_iter().collect(), pairs: 7, ..Part::default() };
            assert_eq!(part.done_prefix(), prefix);
        }
    }

    #[test]
    fn a_part_is_complete_when_all_of_its_pairs_are_scored() {
        let part = |pairs, running, done: &[Range<u32>]| Part {
            pairs,
            running,
            done: done.iter().cloned().collect(),
            ..Part::default()
        };
        let done = [0..2, 2..4];
        for (part, complete, has_begun) in [
            (part(0, 0, &[]), false, false),
            (part(4, 0, &[]), false, false),
            (part(4, 4, &[]), false, true),
            (part(4, 0, &done[..1]), false, true),
            (part(4, 0, &done), true, true),
        ] {
            assert_eq!((part.complete(), part.has_begun()), (complete, has_begun), "{part:?}");
        }
    }

    #[test]
    fn the_sort_key_follows_budget_size_and_priority() {
        let limits = Limits { wait_ns_max: Ns(50_000), answer_ns_margin: Ns(100), ..Limits::default() };
        let due = |deadline: Option<u64>, priority, policy, has_primary: bool| {
            let primary = if has_primary { &[10, 20][..] } else { &[] };
            let (pairs, asks) = (2, asks(PerTier { primary, fallback: &[1, 2] }));
            let (primaries, fallback) = (asks.primary.into_iter().collect(), asks.fallback);
            let (arrived, deadline) = (Ns(1_000), deadline.map(Ns));
            let (job, tenant, top_k) = (JobId(0), TenantId(0), None);
            let arrival = Arrival {
                job,
                tenant,
                priority,
                policy,
                arrived,
                deadline,
                top_k,
                pairs,
                primaries,
                fallback,
            };
            let job = Job::new(arrival, &limits, |_, load| Ns(load.tokens));
            (job.due.0 - 1_000, job.deadline.map(|deadline| deadline.0))
        };
        use Policy::{Auto, Fallback, Full};
        use Priority::{High, Low, Normal};
        for (deadline, priority, policy, has_primary, lead, answered_by) in [
            (Some(9_100), Normal, Auto, true, 1_000, Some(9_000)),
            (Some(9_100), High, Auto, true, 125, Some(9_000)),
            (Some(9_100), Low, Auto, true, 8_000, Some(9_000)),
            (None, Normal, Full, true, 30 * 32, None),
            (None, High, Auto, true, 30 * 4, None),
            (None, Low, Auto, true, 30 * 256, None),
            (None, Normal, Fallback, true, 3 * 32, None),
            (None, Normal, Auto, false, 3 * 32, None),
        ] {
            let found = due(deadline, priority, policy, has_primary);
            assert_eq!(found, (lead, answered_by), "{deadline:?}, {priority:?}, {policy:?}");
        }
        let limits = Limits { wait_ns_max: Ns(7), ..limits };
        let primaries = asks(PerTier { primary: &[10], fallback: &[] }).primary.into_iter().collect();
        let (job, tenant, priority, policy) = (JobId(0), TenantId(0), Normal, Auto);
        let (arrived, deadline, top_k, pairs, fallback) = (Ns(1_000), None, None, 1, None);
        let arrival =
            Arrival { job, tenant, priority, policy, arrived, deadline, top_k, pairs, primaries, fallback };
        let job = Job::new(arrival, &limits, |_, load| Ns(load.tokens));
        assert_eq!(job.due, Ns(1_007), "no job without a budget waits longer than the bound");
        assert_eq!(job.pairs, 1);
        let lengths = PerTier { primary: Arc::default(), fallback: Arc::from([10, 20]) };
        let mut job = Job { lengths, ..job };
        assert_eq!(job.length(Tier::Fallback, 0), 10);
        job.parts.fallback.order = Some(Arc::from([1, 0]));
        assert_eq!(job.length(Tier::Fallback, 0), 20);
    }
}
