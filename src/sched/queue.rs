//! The waiting jobs of a tier: earliest due time first within a tenant, and fairness among tenants in predicted device
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

/// The queue of a tier.
#[derive(Debug)]
pub(super) struct TierQueue {
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

impl TierQueue {
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
    fn spent(weights: &[u32]) -> TierQueue {
        let mut queue = TierQueue::new(weights.iter().copied(), 1, Ns(MS));
        for tenant in 0..weights.len() as u32 {
            queue.charge(Ns::ZERO, TenantId(tenant), i64::MAX);
            queue.tenants[tenant as usize].deficit = 0;
        }
        queue
    }

    fn served(queue: &mut TierQueue, turns: usize) -> Vec<u64> {
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
        let mut queue = TierQueue::new([1].into_iter(), 1, Ns(MS));
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
}
