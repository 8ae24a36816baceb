//! How fast each precision is on this machine, by measurement: bf16 on vectors is twice as fast as f32 on one processor and
//! slower on another, so that its name decides nothing.

#![expect(clippy::disallowed_methods, reason = "speed is measured here")]

use super::{Precision, Processor};
use crate::model::Plan;
use crate::ops::{Bf16, Dense, Dtype, F32, Gelu, Input, Int8, Linear, Operand, PAD, Simd, SimdBf16};
use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Rows of the measured map, its widths at most, and how often each dtype has its turn: 15 ms in all on a slow core.
const ROWS: usize = 64;
const INPUTS_MAX: usize = 384;
const OUTPUTS_MAX: usize = 1536;
const TURNS: usize = 5;
/// bf16 keeps all but near-ties in order, and f32 keeps all: it must be faster by this share.
const BF16_FASTER: f64 = 1.1;

/// The fastest precision that keeps a model's order, and why it is that.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    pub precision: Precision,
    pub reason: String,
    /// The speeds by which it was chosen, where there is anything to choose.
    pub speeds: Option<Speeds>,
}

/// Products of a map's values and weights a second, on one thread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Speeds {
    /// In the chosen precision.
    pub float: f64,
    /// In int8.
    pub int8: f64,
}

/// What has been measured for: a processor, and the inputs and outputs of the map.
type Shape = (Processor, usize, usize);

/// The least time of each precision.
#[derive(Clone, Copy, Debug)]
struct Times {
    f32: Duration,
    /// None without bf16 in hardware.
    bf16: Option<Duration>,
    int8: Duration,
}

/// f32 or bf16. Measured once for each processor and shape.
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

/// The times of the precisions that the processor has instructions for; none if it has none for bytes.
fn times((processor, inputs, outputs): Shape) -> Option<Times> {
    match processor {
        #[cfg(target_arch = "x86_64")]
        Processor::Amx => Some(with_bf16(crate::ops::Amx::detect()?, inputs, outputs)),
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512 => Some(with_bf16(crate::ops::Avx512::detect()?, inputs, outputs)),
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512Vnni => Some(without_bf16(crate::ops::Avx512Vnni::detect()?, inputs, outputs)),
        #[cfg(target_arch = "x86_64")]
        Processor::AvxVnni => Some(without_bf16(crate::ops::AvxVnni::detect()?, inputs, outputs)),
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 => Some(without_bf16(crate::ops::Avx2::detect()?, inputs, outputs)),
        #[cfg(target_arch = "aarch64")]
        Processor::NeonBf16 => Some(with_bf16(crate::ops::NeonBf16::detect()?, inputs, outputs)),
        #[cfg(target_arch = "aarch64")]
        Processor::NeonDot => Some(without_bf16(crate::ops::NeonDot::detect()?, inputs, outputs)),
        #[cfg(target_arch = "aarch64")]
        Processor::Neon => Some(without_bf16(crate::ops::Neon::detect()?, inputs, outputs)),
        _ => None,
    }
}

fn judge(times: Option<Times>, (_, inputs, outputs): Shape) -> Choice {
    let no_bf16 = "the processor has no bf16 in hardware".to_owned();
    let Some(Times { f32, bf16, int8 }) = times else {
        return Choice { precision: Precision::F32, reason: no_bf16, speeds: None };
    };
    let products = (ROWS * inputs * outputs) as f64;
    let speed = |time: Duration| products / time.as_secs_f64().max(1e-9);
    let (precision, reason, float) = match bf16 {
        None => (Precision::F32, no_bf16, f32),
        Some(bf16) => {
            let speedup = speed(bf16) / speed(f32);
            let (precision, float) =
                if speedup > BF16_FASTER { (Precision::Bf16, bf16) } else { (Precision::F32, f32) };
            let reason = format!(
                "bf16 has {speedup:.1} times the speed of f32 here, by a map of {inputs} by {outputs}; bf16 is used from \
                 {BF16_FASTER}"
            );
            (precision, reason, float)
        }
    };
    Choice { precision, reason, speeds: Some(Speeds { float: speed(float), int8: speed(int8) }) }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn with_bf16<S: SimdBf16>(simd: S, inputs: usize, outputs: usize) -> Times {
    let [f32, bf16, int8] = least([
        &mut map::<S, F32>(simd, inputs, outputs),
        &mut map::<S, Bf16>(simd, inputs, outputs),
        &mut map::<S, Int8>(simd, inputs, outputs),
    ]);
    Times { f32, bf16: Some(bf16), int8 }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn without_bf16<S: Simd>(simd: S, inputs: usize, outputs: usize) -> Times {
    let [f32, int8] =
        least([&mut map::<S, F32>(simd, inputs, outputs), &mut map::<S, Int8>(simd, inputs, outputs)]);
    Times { f32, bf16: None, int8 }
}

/// The least time of each, in turns.
fn least<const N: usize>(mut runs: [&mut dyn FnMut() -> Duration; N]) -> [Duration; N] {
    let mut least = [Duration::MAX; N];
    // The first turn warms up.
    for turn in 0..=TURNS {
        for (least, run) in least.iter_mut().zip(&mut runs) {
            let time = run();
            *least = if turn == 0 { *least } else { time.min(*least) };
        }
    }
    least
}

/// Runs a map with its activation, which is most of what an encoder does, and says how long that took.
fn map<S: Simd, D: Dtype<S>>(simd: S, inputs: usize, outputs: usize) -> impl FnMut() -> Duration {
    let values =
        |count: usize| -> Vec<f32> { (0..count).map(|n| (n * 7 % 64) as f32 / 32.0 - 1.0).collect() };
    let dense = Dense { outputs, inputs, weight: values(outputs * inputs), bias: values(outputs) };
    let map = Linear::<S, D>::pack(&dense, Input::Signed);
    let (mut input, mut staging, mut output) = (Operand::default(), Operand::default(), Operand::default());
    input.fill::<S, D>(simd, &values(ROWS * inputs), inputs);
    move || {
        let started = Instant::now();
        D::activate::<F32>(simd, input.all(), &map, Gelu::Erf, (&mut staging, &mut output));
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
        let us = Duration::from_micros;
        let times =
            |f32: u64, bf16: Option<u64>| Some(Times { f32: us(f32), bf16: bf16.map(us), int8: us(500) });
        for (times, precision, reason, int8) in [
            (times(1000, Some(125)), Precision::Bf16, "8.0 times", Some(0.25)),
            (times(1000, Some(1200)), Precision::F32, "0.8 times", Some(2.0)),
            (times(1000, Some(1000)), Precision::F32, "1.0 times", Some(2.0)),
            (times(1000, None), Precision::F32, "no bf16", Some(2.0)),
            (None, Precision::F32, "no bf16", None),
        ] {
            let choice = judge(times, shape);
            assert_eq!(choice.precision, precision, "{times:?}");
            assert!(choice.reason.contains(reason), "{}", choice.reason);
            let speedup = choice.speeds.map(|speeds| (speeds.int8 / speeds.float * 100.0).round() / 100.0);
            assert_eq!(speedup, int8, "{times:?}");
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
