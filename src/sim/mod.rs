//! Floor 5: the simulated server. The same scheduler as the running one, on devices, clients and
//! hardships that are made up from a seed; its invariants are checked after every step.
//!
//! | file | what it holds |
//! |---|---|
//! | `scenario` | what is simulated: traffic, devices, hardships; all data |
//! | `traffic` | who comes when, with what |
//! | `world` | virtual time and devices; runs one machine through one scenario |
//! | `baselines` | FIFO and fixed-window batchers, opponents with the same `step` |
//! | `report` | what came of a run: goodput, percentiles, tiers, waste |

mod baselines;
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

/// What the world drives: the scheduler, or an opponent.
pub trait Machine {
    /// Takes one event and appends what has to be done about it.
    fn step(&mut self, now: Ns, event: Event, out: &mut Vec<Action>);
    /// When to send a tick if nothing happens before.
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
