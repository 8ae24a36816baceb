//! The scheduler's main test: many requests under all faults, with its invariants checked after each step.

use super::*;
use crate::base::{DeviceNs, Tier};
use crate::rerank::{Policy, Priority, Served};
use crate::sched::{Ask, JobId, LaneId, Limits};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, LogNormal};
use rand_pcg::Pcg64;
use std::collections::HashMap;
use std::sync::Arc;

fn podium(scenario: &Scenario) -> Report {
    run(scenario, &mut Scheduler::new(&scenario.config()))
}

fn window(scenario: &Scenario, millis: u64, drop: bool) -> Report {
    let mut alone = scenario.clone();
    alone.devices.retain(|device| device.tier == Tier::Primary);
    run(&alone, &mut Window::new(&alone, Ns::from_millis(millis), drop))
}

/// Three tenants, all policies and priorities, small requests, all faults.
fn hard(seed: u64, requests: u64, load: f64) -> Scenario {
    let mut scenario = Scenario::mixed(seed, requests, load);
    scenario.candidates_mean = 6.0;
    let rate = load * scenario.capacity();
    scenario.arrivals = match seed % 2 {
        0 => Arrivals::Poisson { rate },
        _ => Arrivals::Bursts { rate, period: Ns::from_millis(300), on: 0.3 },
    };
    scenario.budgets.push((0.5, None));
    scenario.budgets.push((0.2, Some(Ns::from_millis(4))));
    scenario.policies =
        vec![(8.0, Policy::Auto), (1.0, Policy::Full), (1.0, Policy::TopK), (1.0, Policy::Fallback)];
    scenario.priorities = vec![(4.0, Priority::Normal), (1.0, Priority::High), (1.0, Priority::Low)];
    scenario.tenants =
        [(4.0, 1), (1.0, 1), (1.0, 3)].map(|(traffic, weight)| TenantMix { traffic, weight }).to_vec();
    scenario.devices.push(scenario.devices[0]);
    scenario.hardships = Hardships::ALL;
    scenario
}

#[test]
fn a_million_requests_keep_every_invariant_under_all_hardships() {
    for (seed, load) in (1..=8).zip([0.6, 1.0, 1.5, 3.0].into_iter().cycle()) {
        println!("seed {seed}, load {load}");
        let report = podium(&hard(seed, 125_000, load));
        let ended = report.full + report.top_k + report.fallback + report.refused + report.cancelled;
        assert_eq!(ended, 125_000);
        assert!(report.swaps > 20 && report.evictions > 5, "{} {}", report.swaps, report.evictions);
        assert!(report.top_k > 0 && report.fallback > 0 && report.late > 0 && report.refused > 0);
        assert!(report.discarded > DeviceNs::ZERO);
    }
}

#[test]
fn the_books_of_a_device_that_lanes_share_balance_under_all_hardships() {
    for (seed, load) in [(5, 0.8), (6, 2.0)] {
        println!("seed {seed}, load {load}");
        let scenario = Scenario { one_device: true, ..hard(seed, 50_000, load) };
        // `run` asserts that charged, discarded and idle are the time that passed.
        let report = podium(&scenario);
        let worked = report.busy.primary + report.busy.fallback;
        assert_eq!(worked + report.idle, DeviceNs(report.elapsed.0), "three lanes have one device's time");
        assert!(report.busy.primary > DeviceNs::ZERO && report.busy.fallback > DeviceNs::ZERO);
    }
}

/// A scheduler that takes each pair for as long as it is with its prefix.
struct Unaware(Scheduler);

impl Machine for Unaware {
    fn step(&mut self, now: Ns, mut event: Event, out: &mut Vec<Action>) {
        if let Event::Arrive(arrivals) = &mut event {
            for arrival in arrivals {
                for Ask { prefix, lengths, .. } in &mut arrival.primaries {
                    let prefix = std::mem::take(prefix);
                    *lengths = lengths.iter().map(|&length| prefix + length).collect();
                }
            }
        }
        self.0.step(now, event, out);
    }

    fn next_wake(&mut self) -> Option<Ns> {
        self.0.next_wake()
    }

    fn check(&self) {
        self.0.check();
    }
}

#[test]
fn prefixes_are_predicted_and_every_invariant_holds_with_them() {
    for (seed, load) in [(21, 0.8), (22, 2.0)] {
        println!("seed {seed}, load {load}");
        let scenario = Scenario { prefix_tokens_max: 300, ..hard(seed, 50_000, load) };
        assert!(podium(&scenario).full > 0);
    }
    // Requests of few pairs, so that a prefix is a large part of each.
    let mut scenario = Scenario { prefix_tokens_max: 300, ..Scenario::mixed(23, 20_000, 1.0) };
    scenario.candidates_mean = 8.0;
    scenario.arrivals = Arrivals::Poisson { rate: 0.7 * scenario.capacity() };
    let scheduler = || Scheduler::new(&scenario.config());
    let (mut aware, mut unaware) = (scheduler(), Unaware(scheduler()));
    run(&scenario, &mut aware);
    run(&scenario, &mut unaware);
    // The devices' noise alone makes 4%.
    let errors =
        [&aware, &unaware.0].map(|scheduler| scheduler.predictor(Scenario::model(Tier::Primary)).error());
    assert!(errors[0] < 0.06 && errors[1] > 2.0 * errors[0], "{errors:?}");
}

#[test]
fn equal_seeds_give_equal_runs() {
    let runs: [Report; 3] = [7, 7, 8].map(|seed| podium(&hard(seed, 5_000, 1.2)));
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[test]
fn past_capacity_more_answers_are_in_time_than_a_fifo_s_or_any_fixed_window_s() {
    let scenario = Scenario::mixed(11, 20_000, 1.5);
    let goodput = podium(&scenario).goodput();
    for drop in [false, true] {
        let fifo = window(&scenario, 0, drop).goodput();
        assert!(goodput >= 1.5 * fifo || drop, "{goodput} against FIFO's {fifo}");
        for millis in [0, 1, 2, 5, 10, 20] {
            let other = window(&scenario, millis, drop).goodput();
            assert!(goodput >= 1.3 * other, "{goodput} against {other} of {millis} ms, drop {drop}");
        }
    }
}

#[test]
fn below_capacity_nobody_waits_longer() {
    // The 99th percentile depends on the few worst bursts, so it needs many requests.
    let scenario = Scenario::mixed(12, 60_000, 0.7);
    let p99 = podium(&scenario).quantile(0.99);
    for millis in [0, 1, 2, 5, 10, 20] {
        let other = window(&scenario, millis, false).quantile(0.99);
        assert!(p99 <= other, "{p99:?} against {other:?} of {millis} ms");
    }
}

/// One tenant at 40% of capacity, which is within its half; another one at `flood` times the capacity.
fn beside(flood: f64) -> Scenario {
    let mut scenario = Scenario::mixed(13, 0, 1.0);
    let capacity = scenario.capacity();
    scenario.arrivals = Arrivals::Poisson { rate: (0.4 + flood) * capacity };
    scenario.tenants = [0.4, flood].map(|traffic| TenantMix { traffic, weight: 1 }).to_vec();
    scenario.requests = (20_000.0 * (0.4 + flood) / 0.4) as u64;
    scenario
}

#[test]
fn a_flood_of_one_tenant_moves_another_s_p99_by_less_than_a_batch() {
    let (calm, flood) = (podium(&beside(0.4)), podium(&beside(5.0)));
    let [before, after] = [&calm, &flood].map(|report| report.tenants[0].quantile(0.99));
    let batch = Scenario::mixed(13, 0, 1.0).limits.batch_ns_max;
    println!("p99 {before:?} alone, {after:?} beside the flood, a batch {batch:?}");
    assert!(after < before + batch, "{before:?} became {after:?}");
    let lost = flood.tenants[0].refused as f64 / 20_000.0;
    assert!(lost < 0.01, "{lost} of the calm tenant's requests were refused");
}

/// A machine that loses or repeats its hundredth answer.
struct Broken {
    sched: Scheduler,
    answers: u64,
    repeat: bool,
}

impl Machine for Broken {
    fn step(&mut self, now: Ns, event: Event, out: &mut Vec<Action>) {
        self.sched.step(now, event, out);
        let answer = out.iter().position(|action| matches!(action, Action::Answer { .. }));
        if let Some(place) = answer {
            self.answers += 1;
            if self.answers == 100 {
                let answer = out.remove(place);
                if self.repeat {
                    out.push(answer.clone());
                    out.push(answer);
                }
            }
        }
    }

    fn next_wake(&mut self) -> Option<Ns> {
        self.sched.next_wake()
    }

    fn check(&self) {
        self.sched.check();
    }
}

/// A scheduler that releases a lane of a model that is live.
struct Hasty(Scheduler);

impl Machine for Hasty {
    fn step(&mut self, now: Ns, event: Event, out: &mut Vec<Action>) {
        self.0.step(now, event, out);
        if now > Ns::from_millis(20) {
            out.push(Action::Release { lane: LaneId(1) });
        }
    }

    fn next_wake(&mut self) -> Option<Ns> {
        self.0.next_wake()
    }

    fn check(&self) {
        self.0.check();
    }
}

#[test]
#[should_panic(expected = "a live model keeps its lanes")]
fn a_lane_that_is_released_too_early_is_noticed() {
    let scenario = Scenario { policies: vec![(1.0, Policy::Full)], ..Scenario::mixed(14, 1_000, 0.5) };
    run(&scenario, &mut Hasty(Scheduler::new(&scenario.config())));
}

#[test]
fn a_swap_costs_no_answer() {
    let mut scenario = Scenario::mixed(41, 20_000, 0.6);
    scenario.policies = vec![(1.0, Policy::Auto), (1.0, Policy::Full)];
    let still = podium(&scenario);
    scenario.hardships.swap = 0.01;
    let swapped = podium(&scenario);
    assert!(swapped.swaps > 80, "{}", swapped.swaps);
    let in_budget = |report: &Report| report.tenants[0].in_budget;
    assert!(swapped.refused <= still.refused + 10, "{} and {}", swapped.refused, still.refused);
    let lost = in_budget(&still) as i64 - in_budget(&swapped) as i64;
    assert!(lost <= 20, "{lost} of {} in budget are lost to {} swaps", in_budget(&still), swapped.swaps);
    let degraded = |report: &Report| report.fallback + report.top_k;
    let more = degraded(&swapped) as i64 - degraded(&still) as i64;
    assert!(more <= 40, "{more} more are degraded than {}", degraded(&still));
}

fn broken(repeat: bool) {
    let scenario = Scenario::mixed(14, 1_000, 1.0);
    let mut machine = Broken { sched: Scheduler::new(&scenario.config()), answers: 0, repeat };
    run(&scenario, &mut machine);
}

#[test]
#[should_panic(expected = "each job is answered or refused")]
fn a_lost_answer_is_noticed() {
    broken(false);
}

#[test]
#[should_panic(expected = "each job is answered exactly once")]
fn a_second_answer_is_noticed() {
    broken(true);
}

#[test]
fn a_device_that_is_never_needed_costs_nothing_and_idles() {
    let mut scenario = Scenario::mixed(15, 200, 0.05);
    scenario.budgets = vec![(1.0, None)];
    let report = podium(&scenario);
    assert_eq!((report.full, report.busy.fallback), (200, DeviceNs::ZERO));
    let worked = report.busy.primary + report.idle;
    assert_eq!(worked, DeviceNs(2 * report.elapsed.0), "two lanes' time is worked or idle");
}

/// Requests without budgets whose numbers of candidates are heavy-tailed (Pareto, alpha 1.1, 1 to 10,000).
fn heavy_tailed(seed: u64, requests: u64, load: f64) -> Scenario {
    let mut scenario = Scenario::mixed(seed, requests, load);
    scenario.devices.retain(|device| device.tier == Tier::Primary);
    scenario.budgets = vec![(1.0, None)];
    let random = &mut Pcg64::seed_from_u64(seed);
    let tokens = LogNormal::new(scenario.tokens_median.ln(), scenario.tokens_sigma).unwrap();
    let request = |random: &mut Pcg64| -> Arc<[u32]> {
        let candidates = (2.0 * random.random::<f64>().powf(-1.0 / 1.1)).min(10_000.0) as usize;
        (0..candidates).map(|_| (tokens.sample(random) as u32).clamp(4, 512)).collect()
    };
    scenario.requests_seen = (0..20_000).map(|_| request(random)).collect();
    let pairs: usize = scenario.requests_seen.iter().map(|lengths| lengths.len()).sum();
    scenario.candidates_mean = pairs as f64 / 20_000.0;
    scenario.limits.pairs_max = u64::MAX;
    scenario.limits.jobs_max = usize::MAX;
    scenario.limits.wait_ns_max = Ns::MAX;
    scenario.arrivals = Arrivals::Poisson { rate: load * scenario.capacity() };
    scenario
}

/// A run's stretches and its largest requests in one line.
fn stretch_row(name: &str, load: f64, report: &Report) {
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| report.stretch(share));
    let mut largest: Vec<&Seen> = report.answers.iter().collect();
    largest.sort_unstable_by_key(|seen| seen.own);
    let largest = &largest[largest.len() * 999 / 1000..];
    let mean = largest.iter().map(|seen| seen.latency.0 as f64 / 1e6).sum::<f64>() / largest.len() as f64;
    let busy = report.busy.primary.0 as f64 / 1e9;
    println!(
        "load {load:.2} {name:8} stretch p50 {p50:6.1} p99 {p99:6.1} p99.9 {p999:6.1}, largest {mean:5.0} ms, busy {busy:.1} s"
    );
}

#[test]
fn a_request_waits_in_proportion_to_its_own_size() {
    for load in [0.5, 0.7, 0.8, 0.9, 0.95] {
        let scenario = heavy_tailed(21, 60_000, load);
        let report = podium(&scenario);
        stretch_row("podium", load, &report);
        let [fifo, sharing, _] =
            [Discipline::Fifo, Discipline::Sharing, Discipline::Shortest].map(|discipline| {
                let other = run(&scenario, &mut Window::unbounded(&scenario, discipline));
                stretch_row(&format!("{discipline:?}"), load, &other);
                other
            });
        let [work, least] = [&report, &fifo].map(|report| report.busy.primary.0 as f64);
        // Short batches for small requests: 1.7% at a load of 0.5, 3.1% at 0.95.
        assert!(work <= 1.04 * least, "device time for the same requests: {work}, a FIFO's {least}");
        let [ours, theirs] = [&report, &sharing].map(|report| report.stretch(0.99));
        assert!(ours <= theirs, "p99 of stretch {ours}, {theirs} under processor sharing");
    }
}

#[test]
fn one_document_behind_ten_thousand_waits_two_batches_at_most() {
    let mut scenario = heavy_tailed(22, 20_000, 0.3);
    let small = scenario.requests_seen.iter().filter(|lengths| lengths.len() <= 3).take(999).cloned();
    scenario.requests_seen = std::iter::once(vec![100; 10_000].into()).chain(small).collect();
    let capacity = 1e9 / (10_000.0 * 100.0 * 1_500.0);
    scenario.arrivals = Arrivals::Poisson { rate: 0.3 * 1000.0 * capacity };
    let fifo = run(&scenario, &mut Window::unbounded(&scenario, Discipline::Fifo));
    let report = podium(&scenario);
    let is_large = |seen: &&Seen| seen.own > Ns::from_millis(1_000);
    let mean = |report: &Report| {
        let large: Vec<u64> = report.answers.iter().filter(is_large).map(|seen| seen.latency.0).collect();
        large.iter().sum::<u64>() as f64 / large.len() as f64
    };
    let small = report.answers.iter().filter(|seen| !is_large(seen));
    let slowest = small.map(|seen| seen.latency.saturating_sub(seen.own)).max();
    let (ours, theirs) = (mean(&report) / 1e6, mean(&fifo) / 1e6);
    println!("large: {ours:.0} ms, FIFO {theirs:.0}; the slowest small one waits {slowest:?}");
    assert!(ours <= 1.15 * theirs, "a large request takes {ours} ms, {theirs} in a FIFO");
    // A batch at work and one queued behind it (each with its noise of 5%), then the small one's own, which is short.
    let wait = Ns(2 * scenario.limits.batch_ns_max.0 * 125 / 100) + Ns::from_millis(5);
    assert!(slowest < Some(wait), "{slowest:?}");
}

/// A teacher and a student on CPUs, and requests of two short documents: 33 ms of the teacher's time in budgets of 80 ms.
fn on_cpus(seed: u64, seconds: u64, load: f64) -> Scenario {
    let mut scenario = Scenario::mixed(seed, 1, load);
    let device = |tier, c0, c1| Device {
        tier,
        place: 0,
        c0,
        c1,
        c2: 0.0,
        noise: 0.1,
        batch_tokens_max: 4_096,
        depth: 1,
    };
    scenario.devices = vec![device(Tier::Primary, 2e6, 600e3), device(Tier::Fallback, 1e5, 7e3)];
    scenario.requests_seen = vec![vec![26, 26].into()];
    scenario.budgets = vec![(1.0, Some(Ns::from_millis(80)))];
    scenario.limits = Limits::default();
    let rate = load * 1e9 / scenario.alone(&[26, 26]).0 as f64;
    scenario.arrivals = Arrivals::Poisson { rate };
    scenario.requests = (rate * seconds as f64) as u64;
    scenario
}

/// Of the requests that arrived from a time on: the share answered in full, and the share not answered in time.
fn from(report: &Report, at: Ns) -> (f64, f64) {
    let seen: Vec<&Seen> = report.answers.iter().filter(|seen| seen.arrived >= at).collect();
    let first = seen.iter().map(|seen| seen.job.0).min().expect("requests arrive after the spell");
    let requests = (report.requests - first) as f64;
    let full = seen.iter().filter(|seen| seen.served == Served::Full && !seen.is_late).count() as f64;
    let in_time = seen.iter().filter(|seen| !seen.is_late).count() as f64;
    (full / requests, 1.0 - in_time / requests)
}

#[test]
fn five_seconds_after_a_slow_spell_a_server_answers_as_one_that_never_saw_it() {
    let second = |second: u64| Ns::from_millis(1_000 * second);
    let spell = |from, until| Spell::of_all(second(from), second(until), 5.0);
    let waves: Vec<Spell> = (0..5).map(|wave| spell(5 + 4 * wave, 7 + 4 * wave)).collect();
    let sizes = |tokens| vec![Spell { tokens, ..spell(5, 15) }];
    let spells = [
        ("at the start", vec![spell(0, 10)], 10),
        ("in mid-life", vec![spell(10, 20)], 20),
        ("in waves", waves, 23),
        ("small batches", sizes((0, 80)), 15),
        ("large batches", sizes((2_000, 1 << 20)), 15),
        ("one lane", vec![Spell { lane: Some(0), ..spell(5, 15) }], 15),
    ];
    let mut two_lanes = on_cpus(31, 60, 0.4);
    two_lanes.devices.push(two_lanes.devices[0]);
    let servers = [
        ("idle CPU", on_cpus(32, 240, 0.05)),
        ("CPU", on_cpus(33, 60, 0.5)),
        ("two lanes", two_lanes),
        ("GPU", Scenario::mixed(34, 5_000, 0.5)),
    ];
    for (server, scenario) in servers {
        let calm = podium(&scenario);
        for (name, spells, over) in &spells {
            let slow = Scenario { spells: spells.clone(), ..scenario.clone() };
            let at = second(over + 5);
            let runs = [podium(&slow), calm.clone(), window(&slow, 0, false)].map(|run| from(&run, at));
            let [(full, missed), (full_calm, missed_calm), (_, missed_fifo)] = runs;
            println!(
                "{server:9} {name:13} in full {full:.3}, never slow {full_calm:.3}; \
                 missed {missed:.4}, never slow {missed_calm:.4}, FIFO {missed_fifo:.4}"
            );
            assert!(full >= full_calm - 0.01, "{server}, {name}: {full} in full");
            assert!(missed <= missed_calm + 0.001, "{server}, {name}: {missed} missed");
        }
    }
}

#[test]
fn few_answers_are_degraded_for_which_the_budget_was_twice_the_need() {
    for (place, load) in [("idle", 0.05), ("half load", 0.5)] {
        for (server, base) in [("CPU", on_cpus(41, 600, load)), ("GPU", Scenario::mixed(42, 10_000, load))] {
            // The need is the latency with the primary alone and without budgets.
            let mut alone = Scenario { budgets: vec![(1.0, None)], ..base.clone() };
            alone.devices.retain(|device| device.tier == Tier::Primary);
            let alone = run(&alone, &mut Window::unbounded(&alone, Discipline::Fifo));
            let needs: HashMap<JobId, Ns> =
                alone.answers.iter().map(|seen| (seen.job, seen.latency)).collect();
            let own = alone.answers.iter().map(|seen| seen.own.0).sum::<u64>() / base.requests;
            for times in [1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0] {
                let budget = Ns((own as f64 * times) as u64);
                let told = budget + base.limits.answer_ns_margin;
                let report = podium(&Scenario { budgets: vec![(1.0, Some(told))], ..base.clone() });
                let degraded: Vec<Ns> = (report.answers.iter())
                    .filter(|seen| seen.served != Served::Full)
                    .map(|seen| needs[&seen.job])
                    .collect();
                let share = |beyond: u64| {
                    let needless = degraded.iter().filter(|need| beyond * need.0 <= budget.0).count();
                    needless as f64 / base.requests as f64
                };
                let full = report.full as f64 / base.requests as f64;
                println!(
                    "{server}, {place:9}, budget {times:4.1} times the mean: in full {full:.3}, \
                     degraded beyond the need {:.4}, beyond twice {:.4}",
                    share(1),
                    share(2)
                );
                assert!(share(2) < 0.01, "{server}, {place}, {times}: {} without need", share(2));
            }
        }
    }
}

/// A middle model beside the primary: four times as fast, on a device of its own.
fn with_middle(scenario: &Scenario) -> Scenario {
    let mut with = scenario.clone();
    let primary = scenario.devices[0];
    with.devices.push(Device { place: 1, c1: primary.c1 / 4.0, c2: primary.c2 / 4.0, ..primary });
    with
}

#[test]
fn a_second_primary_answers_where_the_first_is_late_and_every_invariant_holds() {
    for (seed, load) in [(31, 0.7), (32, 1.5), (33, 3.0)] {
        println!("seed {seed}, load {load}");
        let report = podium(&with_middle(&hard(seed, 50_000, load)));
        assert!(report.full > 0 && report.swaps > 5);
    }
    let scenario = Scenario::mixed(34, 20_000, 2.0);
    let (pair, route) = (podium(&scenario), podium(&with_middle(&scenario)));
    let without_fallback = |report: &Report| report.full as f64 / report.requests as f64;
    assert!(without_fallback(&pair) < 0.6, "{}", without_fallback(&pair));
    assert!(without_fallback(&route) > 0.9, "{}", without_fallback(&route));
    assert!(route.tenants[0].in_budget >= pair.tenants[0].in_budget);
}
