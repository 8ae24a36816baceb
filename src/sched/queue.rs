//! The jobs that wait for a model: earliest due time first within a tenant, and fairness among tenants in predicted device
//! time.
//!
//! Tenants take turns by deficit round robin (Shreedhar and Varghese 1995). A tenant saves the unused part of its
//! share. Tenants with savings come first, in order of their most urgent jobs, while their turn is not used up. So a
//! flood does not delay a tenant that stays within its share.

use super::event::JobId;
use super::horizon::{Bucket, Horizon};
use crate::base::{Ns, TenantId};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};

/// Shares are saved for at most this long.
const SAVED_MAX: Ns = Ns::from_millis(1_000);

/// A job's place in a queue, by which it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    due: Ns,
    seq: u64,
    bucket: Bucket,
}

/// The queue of a model.
#[derive(Debug)]
pub(super) struct WorkQueue {
    tenants: Vec<TenantQueue>,
    /// Tenants with waiting work; the first one has the turn.
    ring: VecDeque<TenantId>,
    /// Device time per turn for a tenant of weight 1.
    quantum: i64,
    /// The sum of all tenants' weights. Savings are counted in nanoseconds times this sum, to stay exact.
    weights: i64,
    lanes: i64,
    seq: u64,
    work: Ns,
    tokens: u64,
    jobs: usize,
}

#[derive(Debug)]
struct TenantQueue {
    weight: i64,
    deficit: i64,
    /// Its savings at `saved_at`; later shares of the lanes' time are added when they are read.
    saved: i64,
    saved_at: Ns,
    waiting: BTreeMap<(Ns, u64), JobId>,
    horizon: Horizon,
}

impl WorkQueue {
    /// A queue for tenants with these weights and for this number of lanes.
    pub fn new(weights: impl Iterator<Item = u32>, lanes: usize, quantum: Ns) -> Self {
        let lanes = lanes as i64;
        let tenants: Vec<TenantQueue> = weights
            .map(|weight| i64::from(weight.max(1)))
            .map(|weight| TenantQueue {
                weight,
                deficit: 0,
                saved: saved_max(weight, lanes),
                saved_at: Ns::ZERO,
                waiting: BTreeMap::new(),
                horizon: Horizon::default(),
            })
            .collect();
        Self {
            weights: tenants.iter().map(|tenant| tenant.weight).sum(),
            lanes,
            tenants,
            ring: VecDeque::new(),
            quantum: quantum.0.max(1) as i64,
            seq: 0,
            work: Ns::ZERO,
            tokens: 0,
            jobs: 0,
        }
    }

    /// Adds a job.
    pub fn push(&mut self, now: Ns, job: (TenantId, JobId), due: Ns, (tokens, work): (u64, Ns)) -> Ticket {
        let (tenant, id) = job;
        self.seq += 1;
        let ticket = Ticket { due, seq: self.seq, bucket: Horizon::bucket(now, due) };
        let queue = &mut self.tenants[tenant.0 as usize];
        if queue.waiting.is_empty() {
            queue.deficit = queue.deficit.min(0) + self.quantum * queue.weight;
            self.ring.push_back(tenant);
        }
        queue.waiting.insert((ticket.due, ticket.seq), id);
        queue.horizon.add(ticket.bucket, work);
        self.work += work;
        self.tokens += tokens;
        self.jobs += 1;
        ticket
    }

    /// Takes some of a waiting job's work. The job keeps its place.
    pub fn take(&mut self, tenant: TenantId, ticket: Ticket, (tokens, work): (u64, Ns)) {
        let queue = &mut self.tenants[tenant.0 as usize];
        queue.horizon.remove(ticket.bucket, work);
        self.work -= work;
        self.tokens -= tokens;
    }

    /// Removes a job with its remaining work.
    pub fn remove(&mut self, tenant: TenantId, ticket: Ticket, rest: (u64, Ns)) {
        self.take(tenant, ticket, rest);
        let queue = &mut self.tenants[tenant.0 as usize];
        let removed = queue.waiting.remove(&(ticket.due, ticket.seq));
        assert!(removed.is_some(), "a ticket is for a waiting job");
        self.jobs -= 1;
        if queue.waiting.is_empty() {
            self.ring.retain(|&listed| listed != tenant);
        }
    }

    /// The next job. With one tenant there is nothing to be fair about.
    pub fn front(&mut self, now: Ns) -> Option<(TenantId, JobId)> {
        if self.ring.len() > 1
            && let Some(tenant) = self.front_saver(now)
        {
            return self.first_of(tenant);
        }
        while self.ring.len() > 1 {
            let tenant = self.ring[0];
            let queue = &mut self.tenants[tenant.0 as usize];
            if queue.deficit > 0 {
                break;
            }
            queue.deficit += self.quantum * queue.weight;
            self.ring.rotate_left(1);
        }
        self.first_of(*self.ring.front()?)
    }

    /// Among the tenants with savings and an unfinished turn, the one with the most urgent job.
    fn front_saver(&mut self, now: Ns) -> Option<TenantId> {
        let savers: SmallVec<[TenantId; 8]> =
            self.ring.iter().copied().filter(|&tenant| self.has_saved(now, tenant)).collect();
        loop {
            let turn = savers.iter().copied().filter(|tenant| self.tenants[tenant.0 as usize].deficit > 0);
            let first = turn.min_by_key(|tenant| self.tenants[tenant.0 as usize].waiting.keys().next());
            if first.is_some() || savers.is_empty() {
                return first;
            }
            for tenant in &savers {
                let queue = &mut self.tenants[tenant.0 as usize];
                queue.deficit += self.quantum * queue.weight;
            }
        }
    }

    fn first_of(&self, tenant: TenantId) -> Option<(TenantId, JobId)> {
        let (_, &job) = self.tenants[tenant.0 as usize].waiting.first_key_value()?;
        Some((tenant, job))
    }

    /// Whether every waiting tenant uses less than its share. A sole tenant always does.
    pub fn all_within_share(&self, now: Ns) -> bool {
        self.tenants.len() == 1 || self.ring.iter().all(|&tenant| self.has_saved(now, tenant))
    }

    /// Whether all waiting tenants exceed their share while others within theirs were active recently.
    pub fn disturbs(&self, now: Ns) -> bool {
        let calm = |tenant: TenantId| {
            let last = self.tenants[tenant.0 as usize].saved_at;
            self.has_saved(now, tenant) && last > Ns::ZERO && now.saturating_sub(last) < SAVED_MAX
        };
        !self.ring.iter().any(|&tenant| self.has_saved(now, tenant))
            && (0..self.tenants.len() as u32).map(TenantId).any(calm)
    }

    /// Whether a tenant goes before others that wait.
    pub fn goes_first(&self, now: Ns, tenant: TenantId) -> bool {
        self.ring.len() > 1 && self.has_saved(now, tenant)
    }

    /// Predicted device time that a tenant may take in its turn.
    pub fn allowance(&self, tenant: TenantId) -> Ns {
        if self.ring.len() <= 1 {
            return Ns::MAX;
        }
        Ns(self.tenants[tenant.0 as usize].deficit.max(0) as u64)
    }

    /// Charges a tenant for predicted device time, or refunds it if negative. Debt is bounded, so that one wrong
    /// prediction does not block a tenant for long.
    pub fn charge(&mut self, now: Ns, tenant: TenantId, device_ns: i64) {
        let saved = self.saved(now, tenant);
        let queue = &mut self.tenants[tenant.0 as usize];
        let bound = 4 * self.quantum * queue.weight;
        queue.deficit = (queue.deficit - device_ns).clamp(-bound, bound);
        let left = saved.saturating_sub(device_ns.saturating_mul(self.weights));
        // Using idle capacity creates no debt.
        queue.saved = left.clamp(0, saved_max(queue.weight, self.lanes));
        queue.saved_at = now;
    }

    /// A tenant's savings: device time times the sum of weights.
    fn saved(&self, now: Ns, tenant: TenantId) -> i64 {
        let queue = &self.tenants[tenant.0 as usize];
        let since = i128::from(now.saturating_sub(queue.saved_at).0);
        let saved = i128::from(queue.saved) + since * i128::from(self.lanes * queue.weight);
        saved.min(i128::from(saved_max(queue.weight, self.lanes))) as i64
    }

    /// Whether a tenant uses less than its share: its savings, minus its waiting work, are at least half of the
    /// maximum.
    fn has_saved(&self, now: Ns, tenant: TenantId) -> bool {
        let queue = &self.tenants[tenant.0 as usize];
        let waits = (queue.horizon.total().0 as i64).saturating_mul(self.weights);
        2 * self.saved(now, tenant).saturating_sub(waits) >= saved_max(queue.weight, self.lanes)
    }

    /// Predicted device time before a new job of this tenant, due at `due` and taking `own`, is finished: the more
    /// urgent work of its own tenant, and the work of other tenants that runs meanwhile.
    pub fn ahead(&self, now: Ns, tenant: TenantId, due: Ns, own: Ns) -> Ns {
        let queue = &self.tenants[tenant.0 as usize];
        let mine = queue.ahead(now, due);
        let has_saved = self.has_saved(now, tenant);
        // Other tenants with savings come first, or by due time if this one has savings too. Tenants that take turns
        // pass as much as their shares allow, and nothing before a tenant with savings.
        let (mut first, mut turns, mut rivals) = (Ns::ZERO, Ns::ZERO, 0);
        for &listed in self.ring.iter().filter(|&&listed| listed != tenant) {
            let rival = &self.tenants[listed.0 as usize];
            if self.has_saved(now, listed) {
                first += if has_saved { rival.ahead(now, due) } else { rival.horizon.total() };
            } else if !has_saved {
                turns += rival.horizon.total();
                rivals += rival.weight;
            }
        }
        let turn = Ns((self.quantum * rivals) as u64);
        let share = (u128::from(mine.0 + own.0) * rivals as u128 / queue.weight as u128) as u64;
        mine + first + turns.min(Ns(share).saturating_add(turn))
    }

    /// Predicted device time of all waiting work.
    pub fn work(&self) -> Ns {
        self.work
    }

    /// Tokens of all waiting work.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The number of waiting jobs.
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    /// Asserts that the sums of the tenants agree with the total, and that shares stay within their bounds.
    pub fn check(&self) {
        let (mut work, mut jobs) = (Ns::ZERO, 0);
        for (tenant, id) in self.tenants.iter().zip(0..) {
            work += tenant.horizon.total();
            jobs += tenant.waiting.len();
            let turns = self.ring.iter().filter(|&&listed| listed == TenantId(id)).count();
            assert_eq!(turns, usize::from(!tenant.waiting.is_empty()), "a tenant that waits takes turns");
            let bound = 4 * self.quantum * tenant.weight;
            assert!(tenant.deficit.abs() <= bound, "debts and turns stay within their bound");
            let saved_max = saved_max(tenant.weight, self.lanes);
            assert!((0..=saved_max).contains(&tenant.saved), "savings stay within their bound");
        }
        assert_eq!((self.work, self.jobs), (work, jobs), "a queue's work is its tenants'");
    }

    /// Every waiting job, for rare events that concern all of them.
    pub fn all(&self) -> Vec<JobId> {
        self.tenants.iter().flat_map(|tenant| tenant.waiting.values().copied()).collect()
    }
}

/// A tenant's largest savings: device time times the sum of weights.
fn saved_max(weight: i64, lanes: i64) -> i64 {
    SAVED_MAX.0 as i64 * lanes * weight
}

impl TenantQueue {
    fn ahead(&self, now: Ns, due: Ns) -> Ns {
        match self.waiting.first_key_value() {
            None => Ns::ZERO,
            // So long overdue that the horizon has forgotten it: the queue is far behind.
            Some((&(first, _), _)) if Horizon::forgotten(now, first) => self.horizon.total(),
            Some(_) => self.horizon.before(now, due),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A queue whose tenants have used up their savings.
    fn spent(weights: &[u32]) -> WorkQueue {
        let mut queue = WorkQueue::new(weights.iter().copied(), 1, Ns(MS));
        for tenant in 0..weights.len() as u32 {
            queue.charge(Ns::ZERO, TenantId(tenant), i64::MAX);
            queue.tenants[tenant as usize].deficit = 0;
        }
        queue
    }

    fn served(queue: &mut WorkQueue, turns: usize) -> Vec<u64> {
        let mut order = Vec::new();
        for _ in 0..turns {
            let Some((tenant, job)) = queue.front(Ns::ZERO) else { break };
            queue.charge(Ns::ZERO, tenant, MS as i64);
            let ((due, seq), _) = queue.tenants[tenant.0 as usize].waiting.first_key_value().unwrap();
            let ticket = Ticket { due: *due, seq: *seq, bucket: Horizon::bucket(Ns::ZERO, *due) };
            queue.remove(tenant, ticket, (1, Ns(MS)));
            order.push(job.0);
        }
        order
    }

    #[test]
    fn a_tenant_s_own_jobs_go_by_deadline() {
        let mut queue = WorkQueue::new([1].into_iter(), 1, Ns(MS));
        for (job, due) in [(1, 30), (2, 10), (3, 20), (4, 10)] {
            queue.push(Ns::ZERO, (TenantId(0), JobId(job)), Ns(due * MS), (1, Ns(MS)));
        }
        assert_eq!(served(&mut queue, 9), [2, 4, 3, 1]);
        assert_eq!((queue.work(), queue.tokens(), queue.jobs()), (Ns::ZERO, 0, 0));
    }

    #[test]
    fn tenants_share_by_weight_however_much_one_sends() {
        let mut queue = spent(&[1, 3]);
        for job in 0..100 {
            queue.push(Ns::ZERO, (TenantId(0), JobId(job)), Ns(MS), (1, Ns(MS)));
        }
        for job in 100..130 {
            queue.push(Ns::ZERO, (TenantId(1), JobId(job)), Ns(900 * MS), (1, Ns(MS)));
        }
        let order = served(&mut queue, 40);
        assert_eq!(order.iter().filter(|&&job| job >= 100).count(), 30);
    }

    #[test]
    fn a_tenant_within_its_share_goes_before_a_flood() {
        let mut queue = spent(&[1, 1]);
        for job in 0..1000 {
            queue.push(Ns::ZERO, (TenantId(0), JobId(job)), Ns(50 * MS), (1, Ns(MS)));
        }
        // The second one has used a tenth of what its share lets it save.
        queue.tenants[1].saved = saved_max(1, 1) * 9 / 10;
        assert_eq!(queue.ahead(Ns::ZERO, TenantId(1), Ns(90 * MS), Ns(2 * MS)), Ns::ZERO);
        for job in 1000..1010 {
            queue.push(Ns::ZERO, (TenantId(1), JobId(job)), Ns(90 * MS), (1, Ns(MS)));
        }
        assert_eq!(queue.ahead(Ns::ZERO, TenantId(0), Ns(90 * MS), Ns(2 * MS)), Ns(1010 * MS));
        assert!(served(&mut queue, 10).iter().all(|&job| job >= 1000));
        // Once a second its share of the lanes is there again, and is not more than that.
        assert_eq!(queue.saved(Ns(5_000 * MS), TenantId(1)), saved_max(1, 1));
    }

    #[test]
    fn a_flood_hides_at_most_a_share_of_the_others() {
        let mut queue = spent(&[1, 1]);
        for job in 0..1000 {
            queue.push(Ns::ZERO, (TenantId(0), JobId(job)), Ns(50 * MS), (1, Ns(MS)));
        }
        assert_eq!(queue.ahead(Ns::ZERO, TenantId(1), Ns(50 * MS), Ns(2 * MS)), Ns(3 * MS));
        assert_eq!(queue.ahead(Ns::ZERO, TenantId(0), Ns(60 * MS), Ns(2 * MS)), Ns(1000 * MS));
    }

    fn tenant(queue: &WorkQueue, id: u32) -> (i64, i64) {
        (queue.tenants[id as usize].deficit, queue.tenants[id as usize].saved)
    }

    fn push(queue: &mut WorkQueue, tenant: u32, job: u64, due_ms: u64) -> Ticket {
        queue.push(Ns::ZERO, (TenantId(tenant), JobId(job)), Ns(due_ms * MS), (1, Ns(MS)))
    }

    #[test]
    fn an_empty_queue_keeps_a_tenant_s_debt_and_not_its_turn() {
        for (before, after) in [(0, 2 * MS as i64), (5, 2 * MS as i64), (-5, 2 * MS as i64 - 5)] {
            let mut queue = spent(&[2]);
            queue.tenants[0].deficit = before;
            push(&mut queue, 0, 1, 1);
            assert_eq!(tenant(&queue, 0).0, after);
            // A second job gives no second turn.
            push(&mut queue, 0, 2, 1);
            assert_eq!(tenant(&queue, 0).0, after);
        }
    }

    #[test]
    fn a_sole_tenant_needs_no_turn() {
        let mut queue = WorkQueue::new([1, 1].into_iter(), 1, Ns(MS));
        push(&mut queue, 0, 1, 1);
        queue.tenants[0].deficit = -5;
        assert_eq!(queue.front(Ns::ZERO), Some((TenantId(0), JobId(1))));
        assert_eq!(tenant(&queue, 0).0, -5);
        assert_eq!((queue.allowance(TenantId(0)), queue.goes_first(Ns::ZERO, TenantId(0))), (Ns::MAX, false));
        // With a second one it needs one, and goes first within its savings.
        push(&mut queue, 1, 2, 1);
        assert_eq!((queue.allowance(TenantId(0)), queue.goes_first(Ns::ZERO, TenantId(0))), (Ns::ZERO, true));
        queue.tenants[0].saved = 0;
        assert!(!queue.goes_first(Ns::ZERO, TenantId(0)));
        queue.tenants[1].saved_at = Ns(1);
        assert!(!queue.all_within_share(Ns(1)) && !queue.disturbs(Ns(1)), "one of two is");
        queue.tenants[1].saved = 0;
        assert!(!queue.all_within_share(Ns(1)) && !queue.disturbs(Ns(1)), "none is");
        // Who is alone is within its share whatever it used.
        let mut queue = spent(&[1]);
        push(&mut queue, 0, 1, 1);
        assert!(queue.all_within_share(Ns::ZERO));
        let mut queue = spent(&[1, 1]);
        push(&mut queue, 0, 1, 1);
        assert!(!queue.all_within_share(Ns::ZERO));
    }

    #[test]
    fn tenants_with_savings_go_by_urgency_while_their_turns_last() {
        for (deficits, first, left) in [
            ([1, 1], 0, [1, 1]),
            ([0, 1], 1, [0, 1]),
            ([-1, 1], 1, [-1, 1]),
            // All turns are used up: the next round begins.
            ([0, 0], 0, [MS as i64, 2 * MS as i64]),
        ] {
            let mut queue = WorkQueue::new([1, 2, 1].into_iter(), 1, Ns(MS));
            push(&mut queue, 0, 10, 20);
            push(&mut queue, 1, 11, 30);
            // The third one has the most urgent job and no savings.
            push(&mut queue, 2, 12, 1);
            queue.tenants[2].saved = 0;
            (queue.tenants[0].deficit, queue.tenants[1].deficit) = (deficits[0], deficits[1]);
            assert_eq!(
                queue.front(Ns::ZERO),
                Some((TenantId(first), JobId(10 + u64::from(first)))),
                "{deficits:?}"
            );
            assert_eq!([0, 1].map(|id| tenant(&queue, id).0), left);
        }
    }

    #[test]
    fn turns_and_debts_are_bounded_by_weight() {
        let mut queue = WorkQueue::new([1, 3].into_iter(), 2, Ns(MS));
        for (id, bound) in [(0, 4 * MS as i64), (1, 12 * MS as i64)] {
            queue.charge(Ns::ZERO, TenantId(id), i64::MAX / 2);
            assert_eq!(tenant(&queue, id).0, -bound);
            queue.charge(Ns::ZERO, TenantId(id), i64::MIN / 2);
            assert_eq!(tenant(&queue, id).0, bound);
            queue.charge(Ns::ZERO, TenantId(id), 7);
            assert_eq!(tenant(&queue, id).0, bound - 7);
        }
        let mut queue = spent(&[1, 1]);
        push(&mut queue, 0, 1, 1);
        push(&mut queue, 1, 2, 1);
        queue.tenants[0].deficit = -7;
        assert_eq!(queue.allowance(TenantId(0)), Ns::ZERO);
        queue.tenants[0].deficit = 7;
        assert_eq!(queue.allowance(TenantId(0)), Ns(7));
    }

    #[test]
    fn savings_are_a_share_of_the_time_of_all_lanes() {
        // Weights 1 and 3 on two lanes: in a second the second tenant saves 3/4 of two seconds.
        let mut queue = WorkQueue::new([1, 3].into_iter(), 2, Ns(MS));
        let second = 1_000 * MS as i64;
        assert_eq!(queue.saved(Ns::ZERO, TenantId(1)), 6 * second);
        queue.charge(Ns::ZERO, TenantId(1), second);
        assert_eq!(tenant(&queue, 1).1, 2 * second, "a second of device time costs four");
        queue.charge(Ns::ZERO, TenantId(1), second);
        assert_eq!(tenant(&queue, 1).1, 0, "idle capacity creates no debt");
        assert_eq!(queue.saved(Ns(100 * MS), TenantId(1)), 6 * second / 10);
        queue.charge(Ns(100 * MS), TenantId(1), -second);
        assert_eq!(tenant(&queue, 1).1, 46 * second / 10);
        assert_eq!(queue.saved(Ns(9_000 * MS), TenantId(1)), 6 * second);
    }

    #[test]
    fn a_tenant_is_within_its_share_with_half_of_its_savings_beyond_what_waits() {
        let mut queue = WorkQueue::new([1, 1].into_iter(), 1, Ns(MS));
        let half = saved_max(1, 1) / 2;
        push(&mut queue, 0, 1, 1);
        for (saved, has_saved) in [(half + 2 * MS as i64, true), (half + 2 * MS as i64 - 1, false)] {
            queue.tenants[0].saved = saved;
            assert_eq!(queue.has_saved(Ns::ZERO, TenantId(0)), has_saved);
        }
    }

    #[test]
    fn what_is_ahead_is_the_more_urgent_work_and_the_rivals_part() {
        // Tenants 0 and 1 have savings or not; the third one never. Each has ten jobs due at 20 ms, and ten at 80 ms.
        let ahead = |saved: [bool; 2], weights: [u32; 3]| {
            let mut queue = WorkQueue::new(weights.into_iter(), 1, Ns(MS));
            for job in 0..60 {
                push(&mut queue, job as u32 % 3, job, if job < 30 { 20 } else { 80 });
            }
            let sums = queue.weights;
            for (id, saved) in saved.into_iter().chain([false]).enumerate() {
                let tenant = &mut queue.tenants[id];
                tenant.saved = if saved { saved_max(tenant.weight, 1) } else { 0 };
                assert!(tenant.saved == 0 || 2 * (tenant.saved - 20 * MS as i64 * sums) > tenant.saved);
            }
            queue.ahead(Ns::ZERO, TenantId(0), Ns(40 * MS), Ns(2 * MS)).0 / MS
        };
        // Its own: 10 ms. Rivals with savings go by due time beside one with savings, and all before one without.
        assert_eq!(ahead([true, true], [1, 1, 1]), 10 + 10);
        assert_eq!(ahead([true, false], [1, 1, 1]), 10);
        // Those that take turns pass 12 ms for its own 12, and a turn, by weight.
        assert_eq!(ahead([false, true], [1, 1, 1]), 10 + 20 + 12 + 1);
        assert_eq!(ahead([false, false], [1, 1, 1]), 10 + 24 + 2);
        assert_eq!(ahead([false, true], [2, 1, 1]), 10 + 20 + 6 + 1);
        assert_eq!(ahead([false, true], [4, 1, 2]), 10 + 20 + 6 + 2);
        // At most all that they have.
        assert_eq!(ahead([false, true], [1, 1, 4]), 10 + 20 + 20);
    }

    #[test]
    fn a_queue_that_is_very_far_behind_counts_all_of_its_work_as_ahead() {
        let mut queue = spent(&[1]);
        push(&mut queue, 0, 1, 0);
        push(&mut queue, 0, 2, 9_000);
        let ahead = |now_ms| queue.ahead(Ns(now_ms * MS), TenantId(0), Ns((now_ms + 100) * MS), Ns(1));
        assert_eq!(ahead(2_047), Ns(MS), "the second job is due later");
        assert_eq!(ahead(2_048), Ns(2 * MS), "the first one is forgotten");
    }

    #[test]
    fn a_weight_and_a_turn_are_at_least_one() {
        let mut queue = WorkQueue::new([0, 3].into_iter(), 1, Ns::ZERO);
        assert_eq!((queue.tenants[0].weight, queue.weights), (1, 4));
        for id in 0..2 {
            push(&mut queue, id, u64::from(id), 1);
            (queue.tenants[id as usize].deficit, queue.tenants[id as usize].saved) = (-2, 0);
        }
        assert_eq!(queue.front(Ns::ZERO), Some((TenantId(1), JobId(1))), "turns grow by weight");
    }
}
