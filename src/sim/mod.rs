//! Floor 5: the simulated server. It runs the engine's scheduler against simulated devices, clients and faults, all
//! drawn from a seed, and checks the scheduler's invariants after every step.
//!
//! | file | contents |
//! |---|---|
//! | `scenario` | the inputs of a run: traffic, devices, faults; plain data |
//! | `traffic` | arrival times, requests and cancellations |
//! | `world` | virtual time and devices; runs one machine through one scenario |
//! | `client` | a client that waits for its answer |
//! | `models` | its models, and how other versions take their place |
//! | `prefixes` | what a device computes once for the pairs of a request |
//! | `baselines` | FIFO and fixed-window batchers with the same `step`, for comparison |
//! | `report` | the results of a run: goodput, percentiles, tiers, waste |

mod baselines;
mod client;
mod models;
mod prefixes;
mod report;
mod scenario;
#[cfg(test)]
mod tests;
mod traffic;
mod world;

pub use baselines::{Discipline, Window};
pub use report::{Report, Seen, Tenant, quantile};
pub use scenario::{Arrivals, Device, Hardships, Scenario, Spell, TenantMix};
pub use world::run;

use crate::base::Ns;
use crate::sched::{Action, Event, Scheduler};

/// A machine that the world drives: the scheduler or a baseline.
pub trait Machine {
    /// Handles one event and appends its actions.
    fn step(&mut self, now: Ns, event: Event, out: &mut Vec<Action>);
    /// When to send [`Event::Tick`] if no other event comes before.
    fn next_wake(&mut self) -> Option<Ns>;
    /// Asserts its invariants.
    fn check(&self);
}

impl Machine for Scheduler {
    fn step(&mut self, now: Ns, event: Event, out: &mut Vec<Action>) {
        Self::step(self, now, event, out);
    }

    fn next_wake(&mut self) -> Option<Ns> {
        Self::next_wake(self)
    }

    fn check(&self) {
        Self::check(self);
    }
}
