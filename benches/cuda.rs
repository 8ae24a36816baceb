//! The CUDA engine and the GPU's peak: one request of 32 documents, and batches that fill the GPU.
//!
//!     cargo bench --bench cuda --features cuda [-- --rounds 50] [--only "f16 L12 H384"]
//!
//! Models have the shapes of MiniLM, BERT-base, ModernBERT-base and Qwen3-0.6B. Weights are random, because speed does not
//! depend on them. Lengths are lognormal with a mean of 107 tokens. Reported
//! are medians of three times: wall time from packed ids to logits on the host, device time by events, and the time
//! from batch to batch if the next one is queued while one runs. The floor of a batch is its FLOPs (2 per parameter and
//! token for linear maps, plus attention, `flops`) at the rate of a square product of 8192 in the same half type,
//! measured in the same run.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Kind, bert, random_batch, random_plan};
use podium::backend::{Cuda, Scorer, has_fp8};
use podium::model::{Plan, Pool, Reach};
use podium::ops::cuda::{Array, Bucket, DeviceError, Half, Launcher, Linear, Nvidia, Rows};
use podium::token::Packed;
use rand_distr::{Distribution, LogNormal};
use rand_pcg::Pcg64;
use std::time::Instant;

/// The size of the matrix product that measures the peak.
const SIDE: usize = 8_192;
/// Tokens of a batch that fills a GPU.
const SATURATED_TOKENS: [usize; 4] = [4_096, 8_192, 16_384, 32_768];
/// The spread of lengths around their mean of 107.
const MEDIAN: f64 = 94.4;
const SPREAD: f64 = 0.5;

fn main() -> Result<(), DeviceError> {
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(place + 1).unwrap_or_else(|| panic!("{name} takes a value")))
    };
    let rounds = given("--rounds").map_or(50, |rounds| rounds.parse().expect("--rounds takes a number"));
    let only = given("--only");
    if let Err(error) = Nvidia::count() {
        println!("SKIPPED: {error}");
        return Ok(());
    }
    println!("{}", Nvidia::open(0)?.name()?);
    let models = [
        ("L2 H128", bert(2, 128, 2, 512).plan()),
        ("L12 H384", bert(12, 384, 12, 1536).plan()),
        ("L12 H768", bert(12, 768, 12, 3072).plan()),
        ("ModernBERT", modern_bert()),
        ("Qwen3", Kind::Qwen3.plan(28, [1024, 16, 128, 3072])),
    ];
    for (precision, half) in [("f16", Half::F16), ("bf16", Half::Bf16), ("fp8", Half::F16)] {
        let peak = peak(half, rounds)?;
        println!("\n{precision}: {:.0} TFLOP/s in a product of {SIDE} in {}", peak / 1e12, half.name());
        for (name, shape) in &models {
            let is_wanted = |only: &String| *only == format!("{precision} {name}");
            if !only.is_none_or(is_wanted) {
                continue;
            }
            if precision == "fp8" && !has_fp8(shape) {
                println!("    {name}: SKIPPED, it has no fp8");
                continue;
            }
            let plan = random_plan(shape.clone(), 1);
            let largest = SATURATED_TOKENS[SATURATED_TOKENS.len() - 1] as u64;
            let cuda = Cuda::new(Nvidia::open(0)?, &plan, half, largest);
            let mut cuda = cuda.and_then(Cuda::warmed).expect("the model fits");
            if precision == "fp8" {
                let lists = [random_batch(&lengths(64, usize::MAX), 2)];
                match cuda.to_fp8(Nvidia::open(0)?, &plan, &lists, largest) {
                    Ok((fp8, _)) => cuda = fp8,
                    Err(error) => {
                        println!("    {name}: SKIPPED, {error}");
                        continue;
                    }
                }
            }
            assert_eq!(cuda.device().recorded().1, 0, "every forward is recorded");
            let saturated = SATURATED_TOKENS.map(|tokens| lengths(10_000, tokens));
            for batch in [lengths(1, usize::MAX), lengths(32, usize::MAX)].into_iter().chain(saturated) {
                let packed = random_batch(&batch, 1);
                let (time, device) = time(&mut cuda, &packed, rounds);
                let queued = queued(&mut cuda, &packed, rounds);
                let tokens: usize = batch.iter().sum();
                println!(
                    "    {name:<10} {:>4} pairs, {tokens:>5} tokens: {:.3} ms ({:.3} on the device, {:.3} one behind another), {:.0} pairs/s, {:.1}% of the floor",
                    batch.len(),
                    time * 1e3,
                    device * 1e3,
                    queued * 1e3,
                    batch.len() as f64 / queued,
                    100.0 * flops(shape, &batch) / peak / queued
                );
            }
        }
    }
    Ok(())
}

/// Lengths up to a number of pairs and of tokens.
fn lengths(count: usize, tokens_max: usize) -> Vec<usize> {
    let (mut random, lengths) = (Pcg64::new(42, 0), LogNormal::new(MEDIAN.ln(), SPREAD).expect("finite"));
    let mut tokens = 0;
    (0..count)
        .map(|_| (lengths.sample(&mut random).round() as usize).clamp(16, 512))
        .take_while(|length| {
            tokens += length;
            tokens <= tokens_max
        })
        .collect()
}

/// ModernBERT-base: every third layer sees all tokens, the others 64 to either side.
fn modern_bert() -> Plan {
    let mut plan = Kind::ModernBert(Pool::First).plan(22, [768, 12, 64, 1152]);
    let windows = plan.blocks.iter_mut().filter(|block| block.attention.reach != Reach::All);
    windows.for_each(|block| block.attention.reach = Reach::Window(64));
    plan
}

/// FLOPs of a whole forward; the last layer counts as all others.
fn flops(shape: &Plan, lengths: &[usize]) -> f64 {
    let tokens: f64 = lengths.iter().map(|&length| length as f64).sum();
    let seen = |reach: Reach| -> f64 {
        let keys =
            |length: usize| (0..length).map(|query| reach.keys(query, length).len() as f64).sum::<f64>();
        lengths.iter().map(|&length| keys(length)).sum()
    };
    let layers = shape.blocks.iter().map(|block| {
        let maps: f64 = block.maps().map(|map| 2.0 * (map.outputs() * map.inputs()) as f64).sum();
        let attention = &block.attention;
        maps * tokens + 4.0 * (attention.heads * attention.head_dim) as f64 * seen(attention.reach)
    });
    layers.sum()
}

/// Seconds of a batch from ids to logits, and the device's part; medians.
fn time(cuda: &mut Cuda<Nvidia>, batch: &Packed, rounds: usize) -> (f64, f64) {
    let mut logits = vec![0.0; batch.len()];
    let times = (0..rounds + 5).map(|_| {
        let started = Instant::now();
        cuda.score(batch, &mut logits).expect("the batch is the model's");
        let wall = started.elapsed().as_secs_f64();
        (wall, cuda.device_time().expect("a GPU tells").0 as f64 * 1e-9)
    });
    let (wall, device): (Vec<f64>, Vec<f64>) = times.skip(5).unzip();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    (median(wall), median(device))
}

/// Seconds from batch to batch if the next one is queued while one runs; a median.
fn queued(cuda: &mut Cuda<Nvidia>, batch: &Packed, rounds: usize) -> f64 {
    let mut logits = vec![0.0; batch.len()];
    let submit = |cuda: &mut Cuda<Nvidia>| assert_eq!(cuda.submit(batch), Ok(true));
    submit(cuda);
    let mut before = Instant::now();
    let times = (0..rounds + 5).map(|_| {
        submit(cuda);
        cuda.collect(&mut logits).expect("the batch is the model's");
        std::mem::replace(&mut before, Instant::now()).elapsed().as_secs_f64()
    });
    let times = times.skip(5).collect();
    cuda.collect(&mut vec![0.0; batch.len()]).expect("the batch is the model's");
    median(times)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// FLOP/s of a large square product.
fn peak(half: Half, rounds: usize) -> Result<f64, DeviceError> {
    let gpu = Nvidia::open(0)?;
    let bucket = Bucket { tokens: SIDE as u32, sequences: 1 };
    let values: Vec<f32> = (0..SIDE * SIDE).map(|place| (place % 251) as f32 / 251.0 - 0.5).collect();
    let batch = Array::new(&gpu, 4 * bucket.words())?;
    let (x, y) = (Array::of_halves(&gpu, half, &values)?, Array::new(&gpu, 2 * SIDE * SIDE)?);
    let weight = Array::of_halves(&gpu, half, &values)?;
    let map = Linear { weight, scales: None, bias: None, outputs: SIDE, inputs: SIDE };
    let launcher = Launcher { device: &gpu, half, bucket, batch: &batch };
    let mut best = f64::MAX;
    for _ in 0..rounds.min(20) {
        let started = Instant::now();
        launcher.linear(Rows::Tokens, &map, &x, &y)?;
        y.read(&gpu, &mut [0; 2])?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIDE as f64).powi(3) / best)
}
