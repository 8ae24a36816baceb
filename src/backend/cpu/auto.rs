//! What `precision = "auto"` is on this machine: the fastest of the precisions that keep the order, by measurement. bf16
//! on vectors is twice as fast as f32 on one processor and slower on another, so that its name decides nothing.

#![expect(clippy::disallowed_methods, reason = "speed is measured here")]

use super::{Precision, Processor};
use crate::model::Plan;
use crate::ops::{Bf16, Dense, F32, Float, Gelu, Input, Linear, Operand, PAD, SimdBf16};
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Rows of the measured map, its widths at most, and how often each dtype has its turn: 10 ms in all on a slow core.
const ROWS: usize = 64;
const INPUTS_MAX: usize = 384;
const OUTPUTS_MAX: usize = 1536;
const TURNS: usize = 5;
/// bf16 keeps all but near-ties in order, and f32 keeps all: it must be faster by this share.
const FASTER: f64 = 1.1;

/// A precision and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    pub precision: Precision,
    pub reason: Arc<str>,
}

/// What has been measured for: a processor, and the inputs and outputs of the map.
type Shape = (Processor, usize, usize);

/// Measured once for each processor and shape.
pub(super) fn choose(processor: Processor, plan: &Plan) -> Choice {
    static KNOWN: Mutex<Vec<(Shape, Choice)>> = Mutex::new(Vec::new());
    let width = |values: usize, most: usize| values.next_multiple_of(PAD).min(most);
    let shape = (processor, width(plan.hidden(), INPUTS_MAX), width(plan.intermediate(), OUTPUTS_MAX));
    // Others wait: two measurements at once would disturb each other.
    let mut known = KNOWN.lock().expect("no thread panics while it holds the lock");
    if let Some((_, choice)) = known.iter().find(|(other, _)| *other == shape) {
        return choice.clone();
    }
    let choice = judge(times(shape), shape);
    known.push((shape, choice.clone()));
    choice
}

/// f32's time and bf16's, where the processor has it in hardware.
fn times((processor, inputs, outputs): Shape) -> Option<[Duration; 2]> {
    match processor {
        #[cfg(target_arch = "x86_64")]
        Processor::Amx => Some(measure(crate::ops::Amx::detect()?, inputs, outputs)),
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512 => Some(measure(crate::ops::Avx512::detect()?, inputs, outputs)),
        _ => None,
    }
}

fn judge(times: Option<[Duration; 2]>, (_, inputs, outputs): Shape) -> Choice {
    let Some([f32_time, bf16_time]) = times.map(|times| times.map(|time| time.as_secs_f64())) else {
        let reason = "the processor has no bf16 in hardware".into();
        return Choice { precision: Precision::F32, reason };
    };
    let speedup = f32_time / bf16_time;
    let precision = if speedup > FASTER { Precision::Bf16 } else { Precision::F32 };
    let reason = format!(
        "bf16 has {speedup:.1} times the speed of f32 here, by a map of {inputs} by {outputs}; bf16 is used from {FASTER}"
    );
    Choice { precision, reason: reason.into() }
}

/// The least time of each dtype, in turns.
fn measure<S: SimdBf16>(simd: S, inputs: usize, outputs: usize) -> [Duration; 2] {
    let mut in_f32 = prepared::<S, F32>(simd, inputs, outputs);
    let mut in_bf16 = prepared::<S, Bf16>(simd, inputs, outputs);
    let mut best = [Duration::MAX; 2];
    // The first turn warms up.
    for turn in 0..=TURNS {
        for (best, time) in best.iter_mut().zip([in_f32(), in_bf16()]) {
            *best = if turn == 0 { *best } else { time.min(*best) };
        }
    }
    best
}

/// Runs a map with its activation, which is most of what an encoder does, and says how long that took.
fn prepared<S: SimdBf16, D: Float<S>>(simd: S, inputs: usize, outputs: usize) -> impl FnMut() -> Duration {
    let values =
        |count: usize| -> Vec<f32> { (0..count).map(|n| (n * 7 % 64) as f32 / 32.0 - 1.0).collect() };
    let dense = Dense { outputs, inputs, weight: values(outputs * inputs), bias: values(outputs) };
    let map = Linear::<S, D>::pack(&dense, Input::Signed);
    let (mut input, mut staging, mut output) = (Operand::default(), Operand::default(), Operand::default());
    input.fill::<S, D>(simd, &values(ROWS * inputs), inputs);
    move || {
        let started = Instant::now();
        D::activate::<D>(simd, input.all(), &map, Gelu::Erf, (&mut staging, &mut output));
        black_box(&output);
        started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_precision_is_taken_and_f32_where_they_are_alike() {
        let shape = (Processor::Portable, 384, 1536);
        let times = |f32_us: u64, bf16_us: u64| Some([f32_us, bf16_us].map(Duration::from_micros));
        for (times, precision, reason) in [
            (times(1000, 125), Precision::Bf16, "8.0 times"),
            (times(1000, 1200), Precision::F32, "0.8 times"),
            (times(1000, 1000), Precision::F32, "1.0 times"),
            (None, Precision::F32, "no bf16"),
        ] {
            let choice = judge(times, shape);
            assert_eq!(choice.precision, precision, "{times:?}");
            assert!(choice.reason.contains(reason), "{}", choice.reason);
        }
    }

    #[test]
    fn a_shape_is_measured_once() {
        let plan = crate::model::Model::bundled().plan;
        for processor in Processor::here() {
            let first = choose(processor, &plan);
            assert_eq!(choose(processor, &plan), first);
            assert!(processor.has_bf16() || first.precision == Precision::F32, "{processor:?}");
        }
    }
}
