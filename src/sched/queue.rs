//! What waits for a tier: earliest deadline first inside a tenant, deficit round robin over
//! tenants (Shreedhar and Varghese 1995) in predicted device time.

use super::event::JobId;
use super::horizon::{Bucket, Horizon};
use crate::base::{Ns, TenantId};
use std::collections::{BTreeMap, VecDeque};

/// A job's place in a queue; what it needs to leave it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    due: Ns,
    seq: u64,
    bucket: Bucket,
}

/// One tier's queue.
#[derive(Debug)]
pub(super) struct TierQueue {
    tenants: Vec<TenantQueue>,
    /// Tenants that have work waiting, the one whose turn it is in front.
    ring: VecDeque<TenantId>,
    /// Device time that a tenant of weight 1 gets in a turn.
    quantum: i64,
    seq: u64,
    work: Ns,
    tokens: u64,
    jobs: usize,
}

#[derive(Debug)]
struct TenantQueue {
    weight: i64,
    deficit: i64,
    waiting: BTreeMap<(Ns, u64), JobId>,
    horizon: Horizon,
}

impl TierQueue {
    pub fn new(weights: impl Iterator<Item = u32>, quantum: Ns) -> Self {
        let tenants = weights
            .map(|weight| TenantQueue {
                weight: i64::from(weight.max(1)),
                deficit: 0,
                waiting: BTreeMap::new(),
                horizon: Horizon::default(),
            })
            .collect();
        Self {
            tenants,
            ring: VecDeque::new(),
            quantum: quantum.0.max(1) as i64,
            seq: 0,
            work: Ns::ZERO,
            tokens: 0,
            jobs: 0,
        }
    }

    /// Puts a job in line.
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

    /// Takes some of a waiting job's work; the job keeps its place.
    pub fn take(&mut self, tenant: TenantId, ticket: Ticket, (tokens, work): (u64, Ns)) {
        let queue = &mut self.tenants[tenant.0 as usize];
        queue.horizon.remove(ticket.bucket, work);
        self.work -= work;
        self.tokens -= tokens;
    }

    /// Takes a job out of the line, with what work it had left.
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

    /// The job whose turn it is. With one tenant in line there is nothing to be fair about.
    pub fn front(&mut self) -> Option<(TenantId, JobId)> {
        while self.ring.len() > 1 {
            let tenant = self.ring[0];
            let queue = &mut self.tenants[tenant.0 as usize];
            if queue.deficit > 0 {
                break;
            }
            queue.deficit += self.quantum * queue.weight;
            self.ring.rotate_left(1);
        }
        let tenant = *self.ring.front()?;
        let (_, &job) = self.tenants[tenant.0 as usize].waiting.first_key_value()?;
        Some((tenant, job))
    }

    /// Predicted device time that a tenant may take before its turn ends.
    pub fn allowance(&self, tenant: TenantId) -> Ns {
        if self.ring.len() <= 1 {
            return Ns::MAX;
        }
        Ns(self.tenants[tenant.0 as usize].deficit.max(0) as u64)
    }

    /// Charges a tenant for predicted device time, or gives back (negative) what was predicted
    /// too much. A debt is bounded, so that one bad prediction silences nobody for long.
    pub fn charge(&mut self, tenant: TenantId, device_ns: i64) {
        let queue = &mut self.tenants[tenant.0 as usize];
        let bound = 4 * self.quantum * queue.weight;
        queue.deficit = (queue.deficit - device_ns).clamp(-bound, bound);
    }

    /// Predicted device time that will be spent before a new job of this tenant, due at `due`
    /// and taking `own`, is through: its own tenant's more urgent work, and as much of the
    /// others' as their shares let pass meanwhile.
    pub fn ahead(&self, now: Ns, tenant: TenantId, due: Ns, own: Ns) -> Ns {
        let queue = &self.tenants[tenant.0 as usize];
        let mine = queue.ahead(now, due);
        let others = self.work.saturating_sub(queue.horizon.total());
        let rivals: i64 = (self.ring.iter().filter(|&&listed| listed != tenant))
            .map(|listed| self.tenants[listed.0 as usize].weight)
            .sum();
        let turn = Ns((self.quantum * rivals) as u64);
        let share = (u128::from(mine.0 + own.0) * rivals as u128 / queue.weight as u128) as u64;
        mine + others.min(Ns(share).saturating_add(turn))
    }

    /// Predicted device time of everything in line.
    pub fn work(&self) -> Ns {
        self.work
    }

    /// Tokens of everything in line.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Jobs in line.
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    /// When the most urgent job is due.
    pub fn first_due(&self) -> Option<Ns> {
        self.ring
            .iter()
            .filter_map(|tenant| self.tenants[tenant.0 as usize].waiting.keys().next())
            .map(|&(due, _)| due)
            .min()
    }

    /// Every job in line, for the rare moments when all of them must be told something.
    pub fn all(&self) -> Vec<JobId> {
        self.tenants.iter().flat_map(|tenant| tenant.waiting.values().copied()).collect()
    }
}

impl TenantQueue {
    fn ahead(&self, now: Ns, due: Ns) -> Ns {
        match self.waiting.first_key_value() {
            None => Ns::ZERO,
            // So long overdue that the horizon has forgotten: the line is hopelessly behind.
            Some((&(first, _), _)) if Horizon::forgotten(now, first) => self.horizon.total(),
            Some(_) => self.horizon.before(now, due),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn served(queue: &mut TierQueue, turns: usize) -> Vec<u64> {
        let mut order = Vec::new();
        for _ in 0..turns {
            let Some((tenant, job)) = queue.front() else { break };
            queue.charge(tenant, MS as i64);
            let ((due, seq), _) = queue.tenants[tenant.0 as usize].waiting.first_key_value().unwrap();
            let ticket = Ticket { due: *due, seq: *seq, bucket: Horizon::bucket(Ns::ZERO, *due) };
            queue.remove(tenant, ticket, (1, Ns(MS)));
            order.push(job.0);
        }
        order
    }

    #[test]
    fn a_tenant_s_own_jobs_go_by_deadline() {
        let mut queue = TierQueue::new([1].into_iter(), Ns(MS));
        for (job, due) in [(1, 30), (2, 10), (3, 20), (4, 10)] {
            queue.push(Ns::ZERO, (TenantId(0), JobId(job)), Ns(due * MS), (1, Ns(MS)));
        }
        assert_eq!(served(&mut queue, 9), [2, 4, 3, 1]);
        assert_eq!((queue.work(), queue.tokens(), queue.jobs()), (Ns::ZERO, 0, 0));
    }

    #[test]
    fn tenants_share_by_weight_however_much_one_sends() {
        let mut queue = TierQueue::new([1, 3].into_iter(), Ns(MS));
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
    fn a_flood_hides_at_most_a_share_of_the_others() {
        let mut queue = TierQueue::new([1, 1].into_iter(), Ns(MS));
        for job in 0..1000 {
            queue.push(Ns::ZERO, (TenantId(0), JobId(job)), Ns(50 * MS), (1, Ns(MS)));
        }
        assert_eq!(queue.ahead(Ns::ZERO, TenantId(1), Ns(50 * MS), Ns(2 * MS)), Ns(3 * MS));
        assert_eq!(queue.ahead(Ns::ZERO, TenantId(0), Ns(60 * MS), Ns(2 * MS)), Ns(1000 * MS));
    }
}
