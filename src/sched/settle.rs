//! The end of a batch: charges, learns and answers, or recovers from a fault.

use super::Scheduler;
use super::event::{Action, BatchId, Done, Fault, JobId};
use super::lane::{Batch, Member};
use crate::base::{DeviceId, DeviceNs, LaneId, ModelId, Tier, split};
use std::collections::BTreeSet;

impl Scheduler {
    pub(super) fn settle(&mut self, done: &Done, out: &mut Vec<Action>) {
        // A batch that was given up was booked at that time, and its lane may be released.
        let Some(lane) = self.lanes.get_mut(done.lane) else { return };
        let Some(batch) = lane.finish(done.batch) else { return };
        lane.busy += done.device;
        match done.result {
            Ok(()) => self.succeeded(done, &batch, out),
            Err(fault) => self.faulted(done.lane, fault, done.device, batch, out),
        }
        self.follows(done.lane);
    }

    fn succeeded(&mut self, done: &Done, batch: &Batch, out: &mut Vec<Action>) {
        let lane = &mut self.lanes[done.lane];
        let (model, on) = (lane.model, lane.on);
        lane.succeeded(batch);
        self.models[model].predictor.observe(&batch.load, done.took, self.now);
        let weights: Vec<u64> = batch.members.iter().map(|member| member.work.0).collect();
        for (member, charge) in batch.members.iter().zip(split(done.device, &weights)) {
            self.pay((model, on), member, charge, out);
        }
        // Answers come after all charges, so that each has its full price.
        for member in &batch.members {
            self.came_back(member, out);
        }
    }

    fn pay(
        &mut self,
        (model, on): (ModelId, DeviceId),
        member: &Member,
        charge: DeviceNs,
        out: &mut Vec<Action>,
    ) {
        // Corrects the predicted charge to the measured one.
        self.models[model].queue.charge(self.now, member.tenant, charge.0 as i64 - member.work.0 as i64);
        self.quotas[member.tenant.0 as usize].spend(charge);
        match self.jobs.get_mut(&member.slice.job) {
            Some(job) => job.charged.add(member.tier, on, charge),
            None => self.discard(Some(member.tenant), (member.tier, model, on), charge, out),
        }
    }

    fn came_back(&mut self, member: &Member, out: &mut Vec<Action>) {
        if self.leave_batch(member) {
            let (id, tier) = (member.slice.job, member.tier);
            self.job(id).parts[tier].done.push(member.slice.range.clone());
            self.scored(id, tier, out);
        }
    }

    /// Books the end of a batch for one of its jobs. Returns false if the job is gone.
    fn leave_batch(&mut self, member: &Member) -> bool {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&member.slice.job) else { return false };
        job.parts[member.tier].running -= member.slice.range.end - member.slice.range.start;
        job.batches -= 1;
        if job.batches == 0 {
            job.compute += now.saturating_sub(job.busy_since);
        }
        true
    }

    fn faulted(&mut self, id: LaneId, fault: Fault, device: DeviceNs, batch: Batch, out: &mut Vec<Action>) {
        self.stats.faults += 1;
        let lane = &self.lanes[id];
        let (model, on) = (lane.model, lane.on);
        self.discard(None, (batch.tier(), model, on), device, out);
        let lane = &mut self.lanes[id];
        let may_shrink = fault == Fault::OutOfMemory && batch.load.pairs > 1;
        let mut lost = vec![batch];
        if fault == Fault::OutOfMemory {
            lane.out_of_memory(lost[0].load.tokens);
        } else {
            lane.failed(self.now, &self.limits);
            // Batches that waited behind it on the lane are lost too.
            lost.extend(lane.running.drain(..));
            out.push(Action::Restart { lane: id, fault });
        }
        for member in lost.iter().flat_map(|batch| &batch.members) {
            if self.leave_batch(member) {
                self.put_back(member);
            }
        }
        if !may_shrink {
            // Only the oldest batch failed. Several slices of a job in it are one failure of that job.
            let jobs: BTreeSet<(JobId, Tier)> =
                lost[0].members.iter().map(|member| (member.slice.job, member.tier)).collect();
            jobs.into_iter().for_each(|(id, tier)| self.tier_failed(id, tier, out));
        }
        if !self.is_available(model) {
            self.model_went_down(model, out);
        }
    }

    pub(super) fn stalled(&mut self, id: LaneId, batch: BatchId, out: &mut Vec<Action>) {
        // A lane that was released meanwhile has none.
        let Some(lane) = self.lanes.get_mut(id) else { return };
        let Some(batch) = lane.finish(batch) else { return };
        // The ledger computes the device time of the batch.
        out.push(Action::GaveUp { lane: id, tier: batch.tier() });
        self.faulted(id, Fault::Stalled, DeviceNs::ZERO, batch, out);
    }

    /// Puts a member's pairs back in front of the job's other work.
    fn put_back(&mut self, member: &Member) {
        let tier = member.tier;
        let job = self.job(member.slice.job);
        if job.stage.works(tier) {
            let part = &mut job.parts[tier];
            part.todo.insert(0, member.slice.range.clone());
            // A lane that is restarted has lost the prefix.
            part.lanes.clear();
            self.requeue(member.slice.job, tier);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::TenantId;
    use crate::rerank::Policy;
    use crate::sched::tests::{PRIMARY, TEACHER, World, config};

    #[test]
    fn a_queue_is_charged_for_the_measured_time_instead_of_the_predicted() {
        let mut world = World::new(config());
        world.arrive(9, 10, None, Policy::Full);
        for tenant in 0..2 {
            world.arrive_of(TenantId(tenant), u64::from(tenant), 10, (None, Policy::Full));
        }
        let member = world.sched.lanes[PRIMARY].running[0].members.pop().unwrap();
        let member = Member { tenant: TenantId(1), ..member };
        let left = |world: &World| world.sched.models[TEACHER].queue.allowance(TenantId(1)).0;
        let before = left(&world);
        let charge = DeviceNs(member.work.0 + 3);
        world.sched.pay((TEACHER, DeviceId(0)), &member, charge, &mut Vec::new());
        assert_eq!(before - left(&world), 3);
    }
}
