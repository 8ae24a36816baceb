//! The cost of a decision: scheduler steps per second on one core, with few and many queued jobs.
//!
//!     cargo bench --bench scheduler        the floor is a million steps per second
//!
//! Jobs of 16 candidates arrive one by one while a primary and a fallback lane work, or those of 25 routes. Each step is
//! an arrival or the end of a batch. The number of queued jobs is held at that of the row.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

use podium::base::{DeviceId, DeviceNs, ModelId, Ns, TenantId};
use podium::forecast::predict::{Load, Measured};
use podium::rerank::{Policy, Priority};
use podium::sched::{
    Action, Arrival, Ask, Config, Done, Event, JobId, LaneConfig, LaneId, Limits, Scheduler, TenantConfig,
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
    let mut first = None;
    for (routes, queued) in
        [(1, 10), (1, 100), (1, 1_000), (1, 10_000), (1, 100_000), (25, 100), (25, 1_000), (25, 10_000)]
    {
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| steps_per_second(routes, queued)).collect();
        rounds.sort_by(f64::total_cmp);
        let rate = rounds[ROUNDS / 2];
        let (models, ns, ratio) = (2 * routes, 1e9 / rate, *first.get_or_insert(rate) / rate);
        println!(
            "{models:>2} models, {queued:>6} queued: {rate:>9.0} steps/s, {ns:>5.0} ns a step, {ratio:.2} times that of 10"
        );
    }
}

/// Steps per second with about this many queued jobs, on as many routes.
fn steps_per_second(routes: u32, queued: u64) -> f64 {
    let mut world = World::new(routes);
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
    routes: u32,
    now: Ns,
    jobs: u64,
    steps: u64,
    lengths: Arc<[u32]>,
    running: VecDeque<Done>,
    actions: Vec<Action>,
}

impl World {
    fn new(routes: u32) -> Self {
        let lane = |model| LaneConfig {
            model: ModelId(model),
            on: DeviceId(model),
            batch_tokens_max: 16_384,
            depth: 2,
        };
        let seeds = |pair_ns: u64| {
            let measured = |power: u64| {
                let load = Load::of(vec![100; 1 << power]);
                Measured { load, took: DeviceNs(pair_ns << power) }
            };
            (0..8).map(measured).collect()
        };
        let config = Config {
            lanes: (0..2 * routes).map(lane).collect(),
            tenants: vec![TenantConfig::default(); 4],
            seeds: (0..routes).flat_map(|_| [seeds(150_000), seeds(15_000)]).collect(),
            limits: Limits { jobs_max: 1 << 20, wait_ns_max: Ns::MAX, ..Limits::default() },
        };
        let mut world = Self {
            sched: Scheduler::new(&config),
            routes,
            now: Ns::ZERO,
            jobs: 0,
            steps: 0,
            lengths: vec![100; PAIRS].into(),
            running: VecDeque::new(),
            actions: Vec::new(),
        };
        for lane in 0..2 * routes {
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
        let primary = 2 * (self.jobs % u64::from(self.routes)) as u32;
        let ask = |model| Ask { model: ModelId(model), prefix: 0, lengths: self.lengths.clone() };
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
            pairs: PAIRS as u32,
            primaries: [ask(primary)].into(),
            fallback: Some(ask(primary + 1)),
        }]));
    }

    fn finish(&mut self) {
        self.now += Ns::from_millis(20);
        let done = self.running.pop_front().expect("there is work, so a lane works");
        self.step(Event::Done(done));
    }
}
