//! The cost of a decision: scheduler steps per second on one core, with few and many queued jobs.
//!
//!     cargo bench --bench scheduler        the floor is a million steps per second
//!
//! Jobs of 16 candidates arrive one by one while a primary and a fallback lane work. Each step is an arrival or the end
//! of a batch. The number of queued jobs is held at that of the row.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

use podium::base::{DeviceId, DeviceNs, Ns, PerTier, TenantId, Tier};
use podium::forecast::predict::{Load, Measured};
use podium::rerank::{Policy, Priority};
use podium::sched::{
    Action, Arrival, Config, Done, Event, JobId, LaneConfig, LaneId, Limits, Scheduler, TenantConfig,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAIRS: usize = 16;
const STEPS: u64 = 1_000_000;
const ROUNDS: usize = 5;

fn main() {
    let mut results = Vec::new();
    for queued in [10, 100, 1_000, 10_000, 100_000] {
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| steps_per_second(queued)).collect();
        rounds.sort_by(f64::total_cmp);
        results.push((queued, rounds[ROUNDS / 2]));
    }
    let (_, first) = results[0];
    for (queued, rate) in results {
        let (ns, ratio) = (1e9 / rate, first / rate);
        println!("{queued:>7} queued: {rate:>9.0} steps/s, {ns:>5.0} ns a step, {ratio:.2} times that of 10");
    }
}

/// Steps per second with about this many queued jobs.
fn steps_per_second(queued: u64) -> f64 {
    let mut world = World::new();
    while world.sched.len() < queued as usize {
        world.arrive();
    }
    let (started, before) = (Instant::now(), world.steps);
    while world.steps < before + STEPS {
        match world.sched.len() as u64 > queued {
            true => world.finish(),
            false => world.arrive(),
        }
    }
    STEPS as f64 / started.elapsed().as_secs_f64()
}

struct World {
    sched: Scheduler,
    now: Ns,
    jobs: u64,
    steps: u64,
    lengths: Arc<[u32]>,
    running: VecDeque<Done>,
    actions: Vec<Action>,
}

impl World {
    fn new() -> Self {
        let lane = |tier| LaneConfig { tier, on: DeviceId(tier as u32), batch_tokens_max: 16_384, depth: 2 };
        let seeds = |pair_ns: u64| {
            let measured = |power: u64| {
                let load = Load::of(vec![100; 1 << power]);
                Measured { load, took: DeviceNs(pair_ns << power) }
            };
            (0..8).map(measured).collect()
        };
        let config = Config {
            lanes: vec![lane(Tier::Primary), lane(Tier::Fallback)],
            tenants: vec![TenantConfig::default(); 4],
            seeds: PerTier { primary: seeds(150_000), fallback: seeds(15_000) },
            limits: Limits { jobs_max: 1 << 20, wait_ns_max: Ns::MAX, ..Limits::default() },
        };
        let mut world = Self {
            sched: Scheduler::new(&config),
            now: Ns::ZERO,
            jobs: 0,
            steps: 0,
            lengths: vec![100; PAIRS].into(),
            running: VecDeque::new(),
            actions: Vec::new(),
        };
        for lane in 0..2 {
            world.step(Event::LaneUp { lane: LaneId(lane) });
        }
        world
    }

    fn step(&mut self, event: Event) {
        self.steps += 1;
        self.sched.step(self.now, event, &mut self.actions);
        for action in self.actions.drain(..) {
            if let Action::Dispatch(dispatch) = action {
                let (lane, batch) = (dispatch.lane, dispatch.batch);
                self.running.push_back(Done {
                    lane,
                    batch,
                    device: DeviceNs(20_000_000),
                    took: Ns(20_000_000),
                    result: Ok(()),
                });
            }
        }
    }

    fn arrive(&mut self) {
        self.jobs += 1;
        // Deadlines are far away, so that the queue is measured and not the hedges.
        let deadline = Some(self.now + Ns::from_millis(3_600_000 + self.jobs % 1_000));
        self.step(Event::Arrive(vec![Arrival {
            job: JobId(self.jobs),
            tenant: TenantId((self.jobs % 4) as u32),
            priority: Priority::Normal,
            policy: Policy::Auto,
            arrived: self.now,
            deadline,
            top_k: None,
            prefixes: PerTier::default(),
            lengths: PerTier { primary: self.lengths.clone(), fallback: self.lengths.clone() },
        }]));
    }

    fn finish(&mut self) {
        self.now += Ns::from_millis(20);
        let done = self.running.pop_front().expect("there is work, so a lane works");
        self.step(Event::Done(done));
    }
}
