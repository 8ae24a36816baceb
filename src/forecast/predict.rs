//! Predicts the time of a batch on a device, with a margin.
//!
//! The time of a packed batch is `gain * (curve(tokens) + c2 * squares)`. The curve starts as `c0 + c1 * tokens`
//! (launches and weights, then linear layers; `c2` is attention) and is bent at each power of two, because small
//! batches leave a device partly idle and kernels change with size. Three parts learn from each batch, fast to slow:
//! the gain (clocks and neighbours slow all sizes alike), the bends, and, by recursive least squares, the three
//! coefficients. Errors are relative to the prediction, so that small batches count as much as large ones, and clipped,
//! so that a stall counts no more than any late batch. Consecutive batches that deviate in the same direction mean that
//! the device has changed, and are learned at once.
//!
//! An estimate is in doubt if no batch of about that size has confirmed it lately. [`Predictor::at_best`] is its optimistic
//! bound, by which the scheduler tries such work. Otherwise a pessimistic estimate would never be corrected, because work
//! that is predicted to be late does not run.

pub use super::load::{Load, Measured};
use super::surprise::Run;
use super::window::Window;
use crate::base::{DeviceNs, Ns};

/// The knots of the curve: 0 and each power of two from 16 to 524288 tokens.
const KNOTS: usize = 17;
/// The second knot in tokens, as a power of two.
const FIRST_POWER: usize = 4;
/// The assumed cost of a batch, a token and a squared token in nanoseconds before any measurement. After the first few
/// batches only the ratios matter: if the lengths do not determine both the second and the third coefficient, the error
/// goes to the second.
const UNITS: [f64; 3] = [1e6, 1e4, 5.0];
/// The weight of a batch relative to the next one. It decays slowly (half after 700 batches), because coefficients are
/// properties of the device; changes within a minute are the gain's.
const REMEMBER: f64 = 0.999;
/// The variance of a relative measurement: devices differ by 5% between equal batches.
const NOISE: f64 = 0.0025;
/// The variance of an unknown coefficient, so that seeds are fitted exactly.
const UNKNOWN: f64 = 1e6;
/// The variance of a guessed coefficient, and the limit of forgetting. With a wider one the noise of a few batches of
/// similar size would change coefficients that only batches of other sizes determine.
const GUESSED: f64 = 1.0;
/// The step of the gain. `0.97^200 < 0.3%`: it follows a doubling within 200 batches.
const GAIN_STEP: f64 = 0.03;
const GAIN_MIN: f64 = 1e-6;
const GAIN_MAX: f64 = 1e6;
/// The step of the bends on either side of a batch.
const BEND_STEP: f64 = 0.1;
/// The coefficients before any measurement.
const GUESS: [f64; 3] = [1.0, 1.0, 0.0];
/// The decay of a bend per batch. It moves what all bends have in common into the gain and the line.
const BEND_FADE: f64 = 0.998;
/// Bounds of a bend.
const BENDS: (f64, f64) = (-0.9, 4.0);
/// Larger relative errors are clipped to this.
const ERROR_MAX: f64 = 0.5;
/// The doubt of an estimate grows by one per this time without a batch of about its size: to 5 after a second.
const DOUBT: Ns = Ns::from_millis(250);
/// The largest doubt, and that of an estimate from warm-up alone, which other work at start-up has made ten times too long.
const DOUBT_MAX: f64 = 16.0;
/// Without seeds, this many measurements serve as seeds: the guess may be off by a factor of a thousand.
const FIRST: usize = 32;

/// Predicts the time of batches of one model on one kind of device, and learns from each.
#[derive(Clone, Debug)]
pub struct Predictor {
    gain: f64,
    /// `c0`, `c1` and `c2` in multiples of [`UNITS`]; not negative.
    coefficients: [f64; 3],
    covariance: [[f64; 3]; 3],
    /// The relative height of the curve above the line at each knot; none before the first batch near it.
    bends: [Option<f64>; KNOTS],
    /// The curve at each knot in nanoseconds without the gain; never falling.
    curve: [f64; KNOTS],
    /// Without seeds, the first measurements take their place.
    first: Vec<Measured>,
    window: Window,
    /// When the last batch ended whose size was nearest to each knot.
    confirmed: [Option<Ns>; KNOTS],
    /// The current runs of unexpected batches: at each knot, and over all sizes.
    runs: [Run; KNOTS],
    run: Run,
}

impl Predictor {
    /// Fits a predictor to warm-up runs. Without any it starts from a guess, which a few batches correct.
    pub fn new(seeds: &[Measured]) -> Self {
        let mut predictor = Self {
            gain: 1.0,
            coefficients: GUESS,
            covariance: diagonal(GUESSED),
            bends: [None; KNOTS],
            curve: [0.0; KNOTS],
            first: Vec::new(),
            window: Window::new(),
            confirmed: [None; KNOTS],
            runs: Default::default(),
            run: Run::default(),
        };
        predictor.bend();
        let seeds: Vec<_> = seeds.iter().filter(|seed| !seed.load.is_empty()).copied().collect();
        if !seeds.is_empty() {
            predictor.fit(&seeds);
            predictor.first = vec![seeds[0]; FIRST];
        }
        predictor
    }

    /// Starts over from these runs and forgets everything else.
    fn fit(&mut self, seeds: &[Measured]) {
        self.coefficients = GUESS;
        self.bends = [None; KNOTS];
        let took = |seed: &Measured| seed.took.0.max(1) as f64;
        let line: f64 = seeds.iter().map(|seed| self.line(&seed.load)).sum();
        self.gain = (seeds.iter().map(took).sum::<f64>() / line).clamp(GAIN_MIN, GAIN_MAX);
        self.covariance = diagonal(UNKNOWN);
        for seed in seeds {
            let shape = took(seed) / self.gain;
            self.regress(&seed.load, shape, shape - self.line(&seed.load));
        }
        // Coefficients that the seeds do not determine keep the variance of a guess.
        self.covariance = diagonal(GUESSED);
        seeds.iter().for_each(|seed| self.regress(&seed.load, took(seed) / self.gain, 0.0));
        self.bend();
        // The bends are few and overlap in pairs: a handful of passes suffices.
        for seed in seeds.iter().cycle().take(16 * seeds.len()) {
            let rest = took(seed) - self.nanos(&seed.load);
            self.lift(&seed.load, 0.5 * rest / self.gain);
            self.bend();
        }
    }

    /// The expected time of a batch: zero for an empty one, else at least a nanosecond, and never less for more pairs.
    pub fn predict(&self, load: &Load) -> Ns {
        if load.is_empty() { Ns::ZERO } else { whole(self.nanos(load)) }
    }

    /// The time within which 99 of 100 such batches end.
    pub fn p99(&self, load: &Load) -> Ns {
        if load.is_empty() { Ns::ZERO } else { whole(self.nanos(load) * self.window.p99()) }
    }

    /// A time that is almost never exceeded: twice the margin of [`Predictor::p99`].
    pub fn surely(&self, load: &Load) -> Ns {
        if load.is_empty() { Ns::ZERO } else { whole(self.nanos(load) * (2.0 * self.window.p99() - 1.0)) }
    }

    /// The time that some more load adds to a batch of any size; at least a nanosecond, unless it is empty.
    pub fn marginal(&self, added: &Load) -> Ns {
        let [_, tokens, squares] = terms(added);
        let [_, per_token, per_square] = self.coefficients;
        if added.is_empty() {
            Ns::ZERO
        } else {
            whole(self.gain * (per_token * tokens + per_square * squares))
        }
    }

    /// The fixed overhead of a batch.
    pub fn fixed(&self) -> Ns {
        whole(self.gain * self.coefficients[0] * UNITS[0])
    }

    /// The time that a batch may take if the device is as much faster than it was last seen as its estimate is in doubt.
    pub fn at_best(&self, load: &Load, now: Ns) -> Ns {
        if load.is_empty() { Ns::ZERO } else { whole(self.nanos(load) / self.doubt(load, now)) }
    }

    /// The factor by which an estimate may be wrong at `now`: 1 just after a batch of about that size.
    fn doubt(&self, load: &Load, now: Ns) -> f64 {
        let nearest = nearest_knot(load.tokens);
        // A load larger than any batch so far runs as several batches of the largest size.
        let is_in_reach = self.confirmed[nearest..].iter().any(Option::is_some);
        let largest = || self.confirmed[..nearest].iter().rev().find_map(|confirmed| *confirmed);
        let last = if is_in_reach { self.confirmed[nearest] } else { largest() };
        let age = last.map(|last| now.saturating_sub(last).0 as f64);
        age.map_or(DOUBT_MAX, |age| (1.0 + age / DOUBT.0 as f64).min(DOUBT_MAX))
    }

    /// Learns at `now` how long a batch took.
    pub fn observe(&mut self, load: &Load, took: Ns, now: Ns) {
        if load.is_empty() {
            return;
        }
        let (predicted, took) = (self.nanos(load), took.0.max(1) as f64);
        let ratio = took / predicted;
        let (low, high) = self.window.surprises(self.run.len());
        self.window.push(now, ratio);
        let knot = nearest_knot(load.tokens);
        let is_confirmed = self.confirmed[knot].is_some();
        // An unexpectedly fast batch refutes the estimate, which stays in doubt, so that the next try follows at once.
        if !is_confirmed || ratio >= low {
            self.confirmed[knot] = Some(now);
        }
        if self.first.len() < FIRST {
            self.first.push(Measured { load: *load, took: DeviceNs(took as u64) });
            if self.first.len().is_power_of_two() {
                let first = std::mem::take(&mut self.first);
                self.fit(&first);
                self.first = first;
            }
            return;
        }
        let is_surprise = ratio < low || ratio > high;
        self.run.push(ratio, is_surprise);
        self.runs[knot].push(ratio, is_surprise);
        if let Some(change) = self.runs[knot].change(is_confirmed) {
            self.change(change, knot, is_confirmed);
            return;
        }
        let error = (ratio - 1.0).clamp(-ERROR_MAX, ERROR_MAX);
        let shape = predicted / self.gain;
        self.gain = (self.gain * (1.0 + GAIN_STEP * error)).clamp(GAIN_MIN, GAIN_MAX);
        self.regress(load, shape, error * shape);
        self.lift(load, BEND_STEP * error * shape);
        self.bend();
    }

    /// Applies a change of the device by this factor: to all sizes if batches of other sizes deviate too, else to this size.
    fn change(&mut self, change: f64, knot: usize, is_confirmed: bool) {
        self.window.pop(self.runs[knot].len());
        if is_confirmed && self.run.change(is_confirmed).is_some() {
            self.gain = (self.gain * change).clamp(GAIN_MIN, GAIN_MAX);
            self.runs.iter_mut().for_each(Run::clear);
        } else {
            let bend = self.curve[knot] * change / self.line_at(knot).max(1.0) - 1.0;
            self.bends[knot] = Some(bend.clamp(BENDS.0, BENDS.1));
            self.runs[knot].clear();
            self.bend();
        }
        self.run.clear();
    }

    /// The mean relative error of the predictions for the last 256 batches; 0 before the first.
    pub fn error(&self) -> f64 {
        self.window.mean_error()
    }

    fn nanos(&self, load: &Load) -> f64 {
        let (knot, after) = place(load.tokens);
        let curve = if knot + 1 < KNOTS {
            let (low, high) = (self.curve[knot], self.curve[knot + 1]);
            // Rounding must not lift the end of a piece above the start of the next.
            (low + (high - low) * after).min(high)
        } else {
            self.curve[knot] + after * self.coefficients[1] * UNITS[1]
        };
        (self.gain * (curve + self.coefficients[2] * UNITS[2] * load.squares as f64)).max(1.0)
    }

    fn line(&self, load: &Load) -> f64 {
        let terms = terms(load);
        (0..3).map(|i| self.coefficients[i] * terms[i]).sum()
    }

    /// One step of recursive least squares with forgetting, relative to `scale`.
    fn regress(&mut self, load: &Load, scale: f64, error: f64) {
        let inputs = terms(load).map(|term| term / scale);
        let spread: [f64; 3] =
            std::array::from_fn(|i| (0..3).map(|j| self.covariance[i][j] * inputs[j]).sum());
        let certainty = NOISE + (0..3).map(|i| inputs[i] * spread[i]).sum::<f64>();
        for i in 0..3 {
            self.coefficients[i] += spread[i] * (error / scale) / certainty;
            for j in 0..3 {
                self.covariance[i][j] -= spread[i] * spread[j] / certainty;
            }
        }
        self.keep_positive();
        self.forget();
    }

    /// Sets a negative coefficient to zero and fits the others again.
    fn keep_positive(&mut self) {
        for i in [2, 0, 1] {
            let below = self.coefficients[i].min(0.0);
            let variance = self.covariance[i][i];
            for j in (0..3).filter(|_| below < 0.0 && variance > 0.0) {
                self.coefficients[j] -= self.covariance[j][i] / variance * below;
            }
        }
        self.coefficients = self.coefficients.map(|value| if value > 0.0 { value.min(1e9) } else { 0.0 });
    }

    /// Forgets old batches, up to the variance of a guess.
    fn forget(&mut self) {
        let trace: f64 = (0..3).map(|i| self.covariance[i][i]).sum();
        let is_sound = trace.is_finite() && (0..3).all(|i| self.covariance[i][i] > 0.0);
        if !is_sound {
            self.covariance = diagonal(NOISE);
        } else if trace < 3.0 * GUESSED {
            self.covariance = self.covariance.map(|row| row.map(|value| value / REMEMBER));
        }
    }

    /// Raises the curve by some nanoseconds around a batch's size.
    fn lift(&mut self, load: &Load, nanos: f64) {
        let (knot, after) = place(load.tokens);
        let lift = |bend: f64, line: f64| (bend * BEND_FADE + nanos / line.max(1.0)).clamp(BENDS.0, BENDS.1);
        let near = if knot + 1 < KNOTS { 1.0 - after } else { 1.0 };
        for (knot, share) in [(knot, near), (knot + 1, 1.0 - near)] {
            if share > 0.0 {
                let line = self.line_at(knot);
                let bend = self.bends[knot].unwrap_or_else(|| self.curve[knot] / line.max(1.0) - 1.0);
                self.bends[knot] = Some(bend + share * (lift(bend, line) - bend));
            }
        }
    }

    /// Recomputes the curve. A knot without batches near it takes the bend of the nearest smaller one.
    fn bend(&mut self) {
        let mut bend = self.bends.iter().find_map(|bend| *bend).unwrap_or(0.0);
        let mut floor = 0.0_f64;
        for knot in 0..KNOTS {
            bend = self.bends[knot].unwrap_or(bend);
            let line = self.line_at(knot);
            floor = floor.max(line * (1.0 + bend));
            self.curve[knot] = floor;
            // Where the curve is flat, a bend below it has no effect and would sink without bound.
            if let Some(bend) = &mut self.bends[knot] {
                *bend = floor / line.max(1.0) - 1.0;
            }
        }
    }

    fn line_at(&self, knot: usize) -> f64 {
        self.coefficients[0] * UNITS[0] + self.coefficients[1] * UNITS[1] * tokens_at(knot)
    }
}

fn terms(load: &Load) -> [f64; 3] {
    [UNITS[0], UNITS[1] * load.tokens as f64, UNITS[2] * load.squares as f64]
}

/// The knot at or before a number of tokens, and the position towards the next, 0 to 1; past the last knot, the number
/// of tokens.
fn place(tokens: u64) -> (usize, f64) {
    match (tokens >> FIRST_POWER).checked_ilog2() {
        None => (0, tokens as f64 / tokens_at(1)),
        Some(power) if (power as usize) + 2 < KNOTS => {
            let knot = power as usize + 1;
            (knot, tokens as f64 / tokens_at(knot) - 1.0)
        }
        Some(_) => (KNOTS - 1, tokens as f64 - tokens_at(KNOTS - 1)),
    }
}

fn nearest_knot(tokens: u64) -> usize {
    let (knot, after) = place(tokens);
    if knot + 1 < KNOTS && after > 0.5 { knot + 1 } else { knot }
}

fn tokens_at(knot: usize) -> f64 {
    if knot == 0 { 0.0 } else { (1_u64 << (FIRST_POWER + knot - 1)) as f64 }
}

fn whole(nanos: f64) -> Ns {
    // Rounds half up; `f64::round` is a library call.
    Ns(((nanos + 0.5) as u64).max(1))
}

fn diagonal(value: f64) -> [[f64; 3]; 3] {
    std::array::from_fn(|i| std::array::from_fn(|j| if i == j { value } else { 0.0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::{Distribution, LogNormal};
    use rand_pcg::Pcg64Mcg;

    /// A device whose small batches cost as much as medium ones.
    #[derive(Clone, Copy)]
    struct Device {
        floor: f64,
        per_token: f64,
        per_square: f64,
        noise: f64,
    }

    const DEVICE: Device = Device { floor: 2e6, per_token: 1_800.0, per_square: 1.2, noise: 0.05 };

    impl Device {
        fn mean(&self, load: &Load) -> f64 {
            let work = self.per_token * load.tokens as f64 + self.per_square * load.squares as f64;
            3e5 + work.max(self.floor)
        }

        fn run(&self, load: &Load, rng: &mut Pcg64Mcg) -> Ns {
            let noise = LogNormal::new(0.0, self.noise).unwrap().sample(rng);
            Ns((self.mean(load) * noise) as u64)
        }

        fn seeds(&self) -> Vec<Measured> {
            (5..15)
                .map(|power| {
                    let load = Load::of(vec![32; 1 << (power - 5)]);
                    Measured { load, took: DeviceNs(self.mean(&load) as u64) }
                })
                .collect()
        }
    }

    fn random_load(rng: &mut Pcg64Mcg) -> Load {
        let pairs = 1_u32 << rng.random_range(0..7);
        let mean = rng.random_range(20.0..250.0_f64);
        Load::of((0..pairs).map(|_| (mean * rng.random_range(0.5..1.5)) as u32))
    }

    #[test]
    fn an_unexpectedly_fast_batch_leaves_the_estimate_in_doubt() {
        let load = Load::of([40; 10]);
        let slow = DEVICE.mean(&load);
        let mut predictor = Predictor::new(&DEVICE.seeds());
        let at = |batch: u64| Ns::from_millis(10 * batch);
        for batch in 0..100 {
            predictor.observe(&load, Ns(slow as u64), at(batch));
        }
        let is_certain =
            |predictor: &Predictor, now: Ns| predictor.at_best(&load, now) >= predictor.predict(&load);
        assert!(is_certain(&predictor, at(99)));
        let later = Ns::from_millis(2_000);
        assert!(!is_certain(&predictor, later), "nothing has confirmed it for a second");
        predictor.observe(&load, Ns(slow as u64 / 10), later);
        assert!(!is_certain(&predictor, later), "a batch of a tenth of the time does not confirm it");
        predictor.observe(&load, predictor.predict(&load), later);
        assert!(is_certain(&predictor, later));
    }

    #[test]
    fn a_change_is_learned_at_once_from_two_sizes_in_turn() {
        let sizes = [Load::of([40; 10]), Load::of([40; 100])];
        for factor in [0.5, 2.0] {
            let mut predictor = Predictor::new(&DEVICE.seeds());
            let mut run = |batches: u64, factor: f64| {
                for batch in 0..batches {
                    let load = &sizes[batch as usize % 2];
                    predictor.observe(load, Ns((DEVICE.mean(load) * factor) as u64), Ns::ZERO);
                }
                sizes.each_ref().map(|load| predictor.predict(load).0 as f64 / DEVICE.mean(load))
            };
            run(400, 1.0);
            // Three of each size.
            let found = run(6, factor);
            assert!(found.iter().all(|found| (found / factor - 1.0).abs() < 0.05), "{factor}: {found:?}");
        }
    }

    #[test]
    fn bounds_are_multiples_of_the_prediction() {
        let predictor = Predictor::new(&DEVICE.seeds());
        let load = Load::of([40; 10]);
        let predicted = predictor.predict(&load).0 as f64;
        // Before any batch the margin is a tenth.
        for (found, factor) in [(predictor.p99(&load), 1.1), (predictor.surely(&load), 1.2)] {
            assert!((found.0 as f64 / predicted / factor - 1.0).abs() < 1e-5, "{found:?}");
        }
    }

    #[test]
    fn overhead_and_squares_are_told_apart_from_tokens() {
        let took = |load: &Load| 3_000_000 + 2_000 * load.tokens + 40 * load.squares;
        let seeds: Vec<_> =
            [(16, 1), (16, 8), (16, 64), (100, 1), (100, 8), (100, 64), (500, 1), (500, 8), (500, 64)]
                .map(|(length, pairs)| Load::of(vec![length; pairs]))
                .map(|load| Measured { load, took: DeviceNs(took(&load)) })
                .into();
        let predictor = Predictor::new(&seeds);
        let is_near = |found: Ns, expected: f64| (found.0 as f64 / expected - 1.0).abs() < 0.02;
        assert!(is_near(predictor.fixed(), 3e6), "{:?}", predictor.fixed());
        for length in [16, 100, 500] {
            let squares = 40.0 * f64::from(length) * f64::from(length);
            let found = predictor.marginal(&Load::of([length]));
            assert!(is_near(found, 2_000.0 * f64::from(length) + squares), "{length}: {found:?}");
        }
        // All parts follow the gain.
        let (mut faster, one) = (predictor.clone(), Load::of([16]));
        faster.gain /= 3.0;
        assert!(
            is_near(faster.fixed(), 1e6)
                && is_near(faster.marginal(&one), predictor.marginal(&one).0 as f64 / 3.0)
        );
    }

    #[test]
    fn doubt_grows_from_one_with_the_time_since_a_batch_of_about_that_size() {
        let mut predictor = Predictor::new(&DEVICE.seeds());
        let sizes = [10, 100, 1_000].map(|pairs| Load::of(vec![40; pairs]));
        let doubts =
            |predictor: &Predictor, now| sizes.map(|load| predictor.doubt(&load, Ns::from_millis(now)));
        assert_eq!(doubts(&predictor, 9), [DOUBT_MAX; 3], "warm-up confirms nothing");
        predictor.observe(&sizes[1], predictor.predict(&sizes[1]), Ns::from_millis(1_000));
        // A larger load runs as several of the largest batches; a smaller one is not known.
        assert_eq!(doubts(&predictor, 1_000), [DOUBT_MAX, 1.0, 1.0]);
        assert_eq!(doubts(&predictor, 1_250), [DOUBT_MAX, 2.0, 2.0]);
        assert_eq!(doubts(&predictor, 2_000), [DOUBT_MAX, 5.0, 5.0]);
        assert_eq!(doubts(&predictor, 9_000), [DOUBT_MAX; 3]);
        predictor.observe(&sizes[2], predictor.predict(&sizes[2]), Ns::from_millis(9_000));
        assert_eq!(doubts(&predictor, 9_250), [DOUBT_MAX, DOUBT_MAX, 2.0]);
        let best = predictor.at_best(&sizes[2], Ns::from_millis(9_250));
        assert!(best.0.abs_diff(predictor.predict(&sizes[2]).0 / 2) <= 1);
    }

    #[test]
    fn a_change_is_learned_at_once_by_one_size_or_by_all() {
        let sizes = [4, 64].map(|pairs| Load::of(vec![64; pairs]));
        let means = sizes.map(|load| DEVICE.mean(&load));
        // Factors of both sizes, the batches of the small one after which it is known, and whether the other size
        // runs in between.
        for (factors, batches, alternates) in
            [([4.0, 1.0], 3, true), ([0.25, 0.25], 2, true), ([0.25, 0.25], 2, false)]
        {
            let mut predictor = Predictor::new(&DEVICE.seeds());
            for (load, mean) in sizes.iter().zip(means).cycle().take(200) {
                predictor.observe(load, Ns(mean as u64), Ns::ZERO);
            }
            for _ in 0..batches {
                for size in [0, 1].into_iter().take(if alternates { 2 } else { 1 }) {
                    predictor.observe(&sizes[size], Ns((means[size] * factors[size]) as u64), Ns::ZERO);
                }
            }
            for size in [0, 1] {
                let off = predictor.predict(&sizes[size]).0 as f64 / (means[size] * factors[size]) - 1.0;
                assert!(off.abs() < 0.25, "{factors:?}, size {size}: off by {off}");
            }
            assert!(predictor.p99(&sizes[0]).0 as f64 / predictor.predict(&sizes[0]).0 as f64 <= 1.11);
        }
    }

    #[test]
    fn a_load_beyond_the_last_knot_takes_longer() {
        let predictor = Predictor::new(&DEVICE.seeds());
        let tokens = |tokens: u64| predictor.predict(&Load { tokens, squares: 0, pairs: 1 }).0 as f64;
        let last = tokens_at(KNOTS - 1) as u64;
        let more = (tokens(2 * last) - tokens(last)) / (last as f64 * DEVICE.per_token);
        assert!((0.5..1.5).contains(&more), "{more}");
    }

    #[test]
    fn the_curve_never_falls_and_bends_lie_on_it() {
        // A device on which small batches take longer than medium ones.
        let seeds: Vec<_> = (4..12)
            .map(|power| Load { tokens: 1 << power, squares: 0, pairs: 1 })
            .map(|load| Measured {
                load,
                took: DeviceNs(if load.tokens < 256 { 5_000_000 } else { 3_000_000 }),
            })
            .collect();
        let mut predictor = Predictor::new(&seeds);
        for seed in seeds.iter().cycle().take(500) {
            predictor.observe(&seed.load, Ns(seed.took.0), Ns::ZERO);
        }
        assert!(predictor.curve.is_sorted(), "{:?}", predictor.curve);
        for knot in 0..KNOTS {
            if let Some(bend) = predictor.bends[knot] {
                let line = predictor.line_at(knot);
                assert!((line * (1.0 + bend) - predictor.curve[knot]).abs() < 1.0, "{knot}");
            }
        }
    }

    #[test]
    fn sizes_belong_to_the_nearest_knot() {
        for (tokens, knot) in [
            (0, 0),
            (8, 0),
            (9, 1),
            (16, 1),
            (24, 1),
            (25, 2),
            (48, 2),
            (49, 3),
            (524_288, 16),
            (u64::MAX, 16),
        ] {
            assert_eq!(nearest_knot(tokens), knot, "{tokens}");
        }
        assert_eq!(place(24), (1, 0.5));
        assert_eq!(place(262_144), (KNOTS - 2, 0.0));
        assert_eq!(place(524_289), (KNOTS - 1, 1.0));
    }

    fn train(predictor: &mut Predictor, device: Device, batches: usize, rng: &mut Pcg64Mcg) {
        for _ in 0..batches {
            let load = random_load(rng);
            predictor.observe(&load, device.run(&load, rng), Ns::ZERO);
        }
    }

    /// The mean relative error against the noiseless time.
    fn bias(predictor: &Predictor, device: Device, rng: &mut Pcg64Mcg) -> f64 {
        let off = |load: Load| (predictor.predict(&load).0 as f64 / device.mean(&load) - 1.0).abs();
        (0..500).map(|_| off(random_load(rng))).sum::<f64>() / 500.0
    }

    #[test]
    fn an_empty_batch_takes_no_time() {
        let predictor = Predictor::new(&[]);
        assert_eq!(predictor.predict(&Load::default()), Ns::ZERO);
        assert_eq!(predictor.p99(&Load::default()), Ns::ZERO);
    }

    #[test]
    fn a_predictor_without_seeds_still_predicts_something() {
        let predictor = Predictor::new(&[]);
        assert!(predictor.predict(&Load::of([100])) > Ns(100_000));
        assert!(predictor.p99(&Load::of([100])) > predictor.predict(&Load::of([100])));
        assert!(predictor.marginal(&Load::of([100])) > Ns(1_000));
    }

    #[test]
    fn seeds_of_a_line_are_predicted_to_the_nanosecond() {
        let seed = |pairs: usize| {
            let load = Load::of(vec![100; pairs]);
            Measured { load, took: DeviceNs(1_000_000 * pairs as u64) }
        };
        let predictor = Predictor::new(&[1, 2, 4, 8, 16, 32, 64].map(seed));
        for pairs in 1..100 {
            assert_eq!(predictor.predict(&seed(pairs).load), Ns(1_000_000 * pairs as u64));
        }
        assert!(predictor.marginal(&Load::of([100])).0.abs_diff(1_000_000) < 2_000);
    }

    #[test]
    fn seeds_with_a_floor_are_met_on_both_sides_of_it() {
        let predictor = Predictor::new(&DEVICE.seeds());
        for seed in DEVICE.seeds() {
            let off = predictor.predict(&seed.load).0 as f64 / seed.took.0 as f64 - 1.0;
            assert!(off.abs() < 0.02, "{off} at {} tokens", seed.load.tokens);
        }
    }

    #[test]
    fn a_device_a_thousand_times_slower_than_the_guess_is_learned_in_fifty_batches() {
        let rng = &mut Pcg64Mcg::seed_from_u64(7);
        let mut predictor = Predictor::new(&[]);
        let slow = Device { floor: 2e9, per_token: 1e7, per_square: 1e3, noise: 0.05 };
        train(&mut predictor, slow, 50, rng);
        assert!(bias(&predictor, slow, rng) < 0.15);
    }

    #[test]
    fn it_converges_to_the_truth_under_noise() {
        for (seed, seeded) in (0..200).flat_map(|seed| [(seed, true), (seed, false)]) {
            let rng = &mut Pcg64Mcg::seed_from_u64(seed);
            let mut predictor = Predictor::new(if seeded { DEVICE.seeds() } else { Vec::new() }.as_slice());
            train(&mut predictor, DEVICE, 1000, rng);
            let bias = bias(&predictor, DEVICE, rng);
            // The corner of the floor lies between two knots. Of 3,000 seeds all but three stay within 3.5% with warm-up
            // runs, and within 4.5% without, where rare sizes are learned late.
            assert!(bias < if seeded { 0.045 } else { 0.08 }, "seed {seed}, {seeded}: off by {bias}");
            assert!((0.02..0.08).contains(&predictor.error()), "seed {seed}: error {}", predictor.error());
        }
    }

    #[test]
    fn it_follows_a_drift_within_two_hundred_batches() {
        for seed in 0..200 {
            let rng = &mut Pcg64Mcg::seed_from_u64(seed);
            let factor = rng.random_range(0.5..2.0_f64);
            let mut predictor = Predictor::new(&DEVICE.seeds());
            train(&mut predictor, DEVICE, 500, rng);
            let drifted = Device {
                floor: DEVICE.floor * factor,
                per_token: DEVICE.per_token * factor,
                per_square: DEVICE.per_square * factor,
                ..DEVICE
            };
            train(&mut predictor, drifted, 200, rng);
            let bias = bias(&predictor, drifted, rng);
            assert!(bias < 0.06, "seed {seed}, factor {factor}: off by {bias}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_stall_teaches_next_to_nothing(seed: u64) {
            let rng = &mut Pcg64Mcg::seed_from_u64(seed);
            let mut predictor = Predictor::new(&DEVICE.seeds());
            train(&mut predictor, DEVICE, 300, rng);
            let load = random_load(rng);
            let (before, p99) = (predictor.predict(&load), predictor.p99(&load));
            predictor.observe(&load, Ns(50 * before.0), Ns::ZERO);
            prop_assert!(predictor.predict(&load).0 as f64 / (before.0 as f64) < 1.1);
            prop_assert!(predictor.p99(&load).0 as f64 / (p99.0 as f64) < 1.2);
        }

        #[test]
        fn its_p99_covers_ninety_nine_of_a_hundred(seed: u64, noise in 0.01..0.3_f64) {
            let rng = &mut Pcg64Mcg::seed_from_u64(seed);
            let device = Device { noise, ..DEVICE };
            let mut predictor = Predictor::new(&device.seeds());
            train(&mut predictor, device, 500, rng);
            let mut covered = 0;
            for _ in 0..4000 {
                let load = random_load(rng);
                let took = device.run(&load, rng);
                covered += u32::from(took <= predictor.p99(&load));
                predictor.observe(&load, took, Ns::ZERO);
            }
            let share = f64::from(covered) / 4000.0;
            prop_assert!(share >= 0.98, "covers {share}");
        }

        #[test]
        fn more_pairs_never_take_less(
            seed: u64,
            lengths in prop::collection::vec(1_u32..3000, 1..300),
        ) {
            let rng = &mut Pcg64Mcg::seed_from_u64(seed);
            let mut predictor = Predictor::new(&[]);
            train(&mut predictor, DEVICE, (seed % 100) as usize, rng);
            let (mut load, mut last, mut last_p99) = (Load::default(), Ns::ZERO, Ns::ZERO);
            for length in lengths {
                load.add(length);
                let (now, p99) = (predictor.predict(&load), predictor.p99(&load));
                prop_assert!(now >= last && p99 >= last_p99 && p99 >= now && now > Ns::ZERO);
                (last, last_p99) = (now, p99);
            }
        }

        #[test]
        fn no_history_makes_it_absurd(
            history in prop::collection::vec((any::<u32>(), 0_u32..5, any::<u64>()), 0..200),
            seeded: bool,
        ) {
            let measured: Vec<_> = history
                .iter()
                .map(|&(length, pairs, took)| {
                    let load = Load::of(vec![length; pairs as usize]);
                    Measured { load, took: DeviceNs(took >> (length % 64)) }
                })
                .collect();
            let mut predictor = Predictor::new(if seeded { &measured } else { &[] });
            for batch in &measured {
                predictor.observe(&batch.load, Ns(batch.took.0), Ns(batch.load.tokens));
                let load = Load::of([1]);
                prop_assert!(predictor.predict(&load) > Ns::ZERO && predictor.marginal(&Load::of([1])) > Ns::ZERO);
                prop_assert!(predictor.p99(&load) >= predictor.predict(&load));
                prop_assert!(predictor.gain.is_finite() && predictor.error().is_finite());
                prop_assert!(predictor.curve.iter().all(|value| value.is_finite() && *value >= 0.0));
                prop_assert!(predictor.covariance.as_flattened().iter().all(|value| value.is_finite()));
            }
        }
    }
}
