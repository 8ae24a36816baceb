//! Each step from a request's texts to its scores, with its reference and the machine's floor.
//!
//!     cargo bench --bench ops                  all of them
//!     cargo bench --bench ops -- attention     those whose name has it
//!
//! The shape is that of the bundled model: a chunk of 128 tokens, hidden size 128, 4 heads, feed-forward size 512. A
//! reference is the plain version that the tests compare an operation with, the `tokenizers` library, or candle's
//! forward. A floor is the time of the multiplications on register operands in the same dtype, or of a copy of the same
//! number of bytes. A table after criterion's figures gives the ratios of medians.

#[path = "../tests/common/mod.rs"]
mod common;
mod shared;

use common::{bert, random_batch, random_plan};
use criterion::Criterion;
use podium::backend::{Cpu, CpuModel, Precision, Reference, Scorer};
use podium::model::Forward;
use podium::ops::{
    AddTo, Dense, Dtype, F32, FirstScratch, FirstToken, Float, Gelu, Heads, Input, Int8, Keep, Linear, Norm,
    Operand, PAD, Projected, Reach, Scratch, Simd, SimdBf16, Table, attention, attention_reference, embed,
    first_token_attention, gelu_reference, layer_norm, layer_norm_reference, linear, linear_reference,
};
use podium::token::{Packed, Tokenizer};
use rand::RngExt;
use rand_pcg::Pcg64;
use serde_json::Value;
use shared::{Peak, lognormal};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const TOKENS: usize = 128;
const HIDDEN: usize = 128;
const INNER: usize = 512;
const HEADS: Heads = Heads { count: 4, size: 32 };

fn main() {
    let results = tempfile::tempdir().expect("there is a place for results");
    let mut criterion = Criterion::default()
        .output_directory(results.path())
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    tokens(&mut criterion);
    measure(&mut criterion);
    forward(&mut criterion);
    criterion.final_summary();
    ratios(results.path());
}

/// On the best processor that this machine is.
fn measure(criterion: &mut Criterion) {
    #[cfg(target_arch = "x86_64")]
    {
        use podium::ops::{Amx, Avx2, Avx512, Avx512Vnni, AvxVnni};
        if let Some(simd) = Amx::detect() {
            return with_bf16(criterion, simd);
        }
        if let Some(simd) = Avx512::detect() {
            return with_bf16(criterion, simd);
        }
        if let Some(simd) = Avx512Vnni::detect() {
            return without_bf16(criterion, simd);
        }
        if let Some(simd) = AvxVnni::detect() {
            return without_bf16(criterion, simd);
        }
        if let Some(simd) = Avx2::detect() {
            return without_bf16(criterion, simd);
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use podium::ops::{Neon, NeonBf16, NeonDot};
        if let Some(simd) = NeonBf16::detect() {
            return with_bf16(criterion, simd);
        }
        if let Some(simd) = NeonDot::detect() {
            return without_bf16(criterion, simd);
        }
        if let Some(simd) = Neon::detect() {
            return without_bf16(criterion, simd);
        }
    }
    without_bf16(criterion, podium::ops::Portable::default());
}

fn with_bf16<S: SimdBf16>(criterion: &mut Criterion, simd: S) {
    use podium::ops::Bf16;
    maps::<_, F32, F32>(criterion, simd, "f32");
    maps::<_, Bf16, Bf16>(criterion, simd, "bf16");
    maps::<_, Int8, Bf16>(criterion, simd, "int8");
    rest(criterion, simd);
}

fn without_bf16<S: Simd>(criterion: &mut Criterion, simd: S) {
    maps::<_, F32, F32>(criterion, simd, "f32");
    maps::<_, Int8, F32>(criterion, simd, "int8");
    rest(criterion, simd);
}

/// Text to ids, and pairs to a batch.
fn tokens(criterion: &mut Criterion) {
    let bytes = include_bytes!("../models/podium-student-L2-H128/tokenizer.json");
    let (ours, library) = (Tokenizer::parse(bytes), tokenizers::Tokenizer::from_bytes(bytes));
    let (ours, library) = (ours.expect("it is ours"), library.expect("it is the library's"));
    let words =
        ["rerank", "the", "candidates", "of", "2026's", "search", "unbelievably", "fast", "and", "well."];
    let text = |seed: usize| (0..70).map(|n| words[(n * n + seed * n) % 10]).collect::<Vec<_>>().join(" ");
    let texts: Vec<String> = (0..100).map(text).collect();
    let mut group = criterion.benchmark_group("tokenise");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| texts.iter().map(|text| ours.encode(text).expect("plain text").len()).sum::<usize>());
    });
    group.bench_function("reference", |bencher| {
        let encode = |text: &String| library.encode_fast(text.as_str(), false).expect("plain text").len();
        bencher.iter(|| texts.iter().map(encode).sum::<usize>());
    });
    group.finish();

    let pairs: Vec<Vec<u32>> = lognormal().into_iter().map(|tokens| (0..tokens as u32).collect()).collect();
    let mut group = criterion.benchmark_group("pack");
    let mut batch = Packed::default();
    group.bench_function("ours", |bencher| {
        bencher.iter(|| {
            batch.clear();
            for pair in &pairs {
                let (query, document) = pair.split_at(11.min(pair.len()));
                batch.extend(query, 0);
                batch.extend(document, 1);
                batch.finish();
            }
            batch.len()
        });
    });
    let (ids, types) = (pairs.concat(), vec![0_u8; pairs.concat().len()]);
    let (mut to_ids, mut to_types) = (ids.clone(), types.clone());
    group.bench_function("floor", |bencher| {
        bencher.iter(|| {
            to_ids.copy_from_slice(black_box(&ids));
            to_types.copy_from_slice(black_box(&types));
        });
    });
    group.finish();
}

fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Pcg64::new(seed.into(), 1);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn dense(seed: u64, outputs: usize, inputs: usize) -> Dense {
    Dense { outputs, inputs, weight: random(seed, outputs * inputs), bias: random(seed + 1, outputs) }
}

/// A number of multiplications on register operands.
fn floor<S: Simd, D: Dtype<S>>(
    group: &mut criterion::BenchmarkGroup<criterion::measurement::WallTime>,
    simd: S,
    multiplications: usize,
) {
    let steps = multiplications.div_ceil(Peak::<D>::multiplications::<S>());
    group.bench_function("floor", |bencher| bencher.iter(|| simd.launch(Peak::<D>::new(black_box(steps)))));
}

/// The steps that depend on the dtype: linear maps in `D`, attention in `A`.
fn maps<S: Simd, D: Dtype<S>, A: Float<S>>(criterion: &mut Criterion, simd: S, dtype: &str) {
    let x = random(1, TOKENS * HIDDEN);
    let (map, up) = (dense(2, HIDDEN, HIDDEN), dense(3, INNER, HIDDEN));
    let mut operand = Operand::default();
    operand.fill::<S, D>(simd, &x, HIDDEN);

    let mut group = criterion.benchmark_group(format!("linear {dtype}"));
    let packed = Linear::<S, D>::pack(&map, Input::Signed);
    let mut y = vec![0.0; TOKENS * HIDDEN];
    group.bench_function("ours", |bencher| {
        bencher.iter(|| linear(simd, operand.all(), &packed, AddTo::new(&mut y, HIDDEN)));
    });
    group.bench_function("reference", |bencher| bencher.iter(|| linear_reference(&x, &map)));
    floor::<S, D>(&mut group, simd, TOKENS * HIDDEN * HIDDEN);
    group.finish();

    let mut group = criterion.benchmark_group(format!("linear, gelu {dtype}"));
    let packed = Linear::<S, D>::pack(&up, Input::Signed);
    let (mut staging, mut inner) = (Operand::default(), Operand::default());
    group.bench_function("ours", |bencher| {
        bencher
            .iter(|| D::activate::<A>(simd, operand.all(), &packed, Gelu::Erf, (&mut staging, &mut inner)));
    });
    group.bench_function("reference", |bencher| {
        let gelu = |x| gelu_reference(x, Gelu::Erf);
        bencher.iter(|| linear_reference(&x, &up).into_iter().map(gelu).sum::<f32>());
    });
    floor::<S, D>(&mut group, simd, TOKENS * HIDDEN * INNER);
    group.finish();

    // A linear map makes queries, keys and values in the dtype of attention.
    let width = HEADS.width();
    let stride = 3 * width / A::GROUP + 16;
    let mut qkv = vec![0_u32; TOKENS * stride];
    let (maker, mut states) = (dense(4, 3 * width, HIDDEN), Operand::default());
    states.fill::<S, F32>(simd, &random(5, TOKENS * HIDDEN), HIDDEN);
    let packed = Linear::<S, F32>::pack(&maker, Input::Signed);
    linear(simd, states.all(), &packed, Keep::<A>::new(&mut qkv, stride));
    let (mut scratch, mut context) = (Scratch::default(), Operand::default());
    context.shape::<S, A>(TOKENS, width);
    let projected = Projected {
        words: &qkv,
        stride,
        tokens: TOKENS,
        before: &[],
        kv_heads: HEADS.count,
        reach: Reach::All,
        distances: None,
    };
    let mut group = criterion.benchmark_group(format!("attention {dtype}"));
    group.bench_function("ours", |bencher| {
        bencher.iter(|| attention::<S, A>(simd, projected, HEADS, &mut scratch, (&mut context, 0)));
    });
    let [query, key, value] = [6, 7, 8].map(|seed| random(seed, TOKENS * width));
    group.bench_function("reference", |bencher| {
        bencher.iter(|| attention_reference(&query, &key, &value, HEADS, Reach::All));
    });
    floor::<S, A>(&mut group, simd, 2 * TOKENS * TOKENS * width);
    group.finish();
}

/// The steps that are in f32 for every dtype.
fn rest<S: Simd>(criterion: &mut Criterion, simd: S) {
    let states = random(1, TOKENS * HIDDEN);
    let width = HEADS.width();
    let maps = [dense(2, width, HIDDEN), dense(3, width, HIDDEN), dense(4, width, HIDDEN)];
    let layer = FirstToken::new(HEADS, &maps);
    let (mut scratch, mut contexts) = (FirstScratch::default(), Vec::new());
    let mut group = criterion.benchmark_group("first token");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| {
            contexts.clear();
            first_token_attention(simd, &layer, (&states, &[0, TOKENS]), &mut scratch, &mut contexts);
        });
    });
    group.bench_function("reference", |bencher| {
        bencher.iter(|| {
            let [query, key, value] = [0, 1, 2].map(|map| linear_reference(&states, &maps[map]));
            attention_reference(&query, &key, &value, HEADS, Reach::All)
        });
    });
    floor::<S, F32>(&mut group, simd, 2 * TOKENS * HEADS.count * HIDDEN + 3 * width * HIDDEN);
    group.finish();

    let (gain, bias) = (random(5, HIDDEN), random(6, HIDDEN));
    let (norm, mut rows, mut copy) = (Norm::new(&gain, &bias, 1e-12), states.clone(), states.clone());
    let mut group = criterion.benchmark_group("layer norm");
    group.bench_function("ours", |bencher| bencher.iter(|| layer_norm(simd, &norm, &mut rows)));
    group.bench_function("reference", |bencher| {
        bencher.iter(|| layer_norm_reference(&gain, &bias, 1e-12, &states));
    });
    group.bench_function("floor", |bencher| bencher.iter(|| copy.copy_from_slice(black_box(&states))));
    group.finish();

    let table = |seed, count| Table::new(&random(seed, count * HIDDEN), HIDDEN);
    let tables = (table(7, 1_000), table(8, 512), table(9, 2));
    let ids: Vec<u32> = (0..TOKENS as u32).map(|n| n * 37 % 1_000).collect();
    let types = vec![0_u8; TOKENS];
    let mut to = vec![0.0; TOKENS * HIDDEN.next_multiple_of(PAD)];
    let mut group = criterion.benchmark_group("embed");
    group.bench_function("ours", |bencher| {
        bencher
            .iter(|| embed(simd, (&tables.0, Some(&tables.1), Some(&tables.2)), (&ids, &types), 0, &mut to));
    });
    group.bench_function("floor", |bencher| bencher.iter(|| copy.copy_from_slice(black_box(&states))));
    group.finish();
}

/// 100 pairs through the whole model on one core.
fn forward(criterion: &mut Criterion) {
    let shape = bert(2, HIDDEN, HEADS.count, INNER);
    let (plan, batch) = (random_plan(shape.plan(), 1), random_batch(&lognormal(), 1));
    let mut logits = vec![0.0; batch.len()];
    let mut group = criterion.benchmark_group("forward");
    group.sample_size(10);
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        if let Ok(model) = CpuModel::new(&plan, precision) {
            let mut scorer = Cpu::new(model, 1);
            group.bench_function(format!("ours {}", precision.name()), |bencher| {
                bencher.iter(|| scorer.score(&batch, &mut logits).expect("the batch is the model's"));
            });
        }
    }
    let mut candle = Reference::new(Arc::new(Forward::new(&plan).expect("weights are whole")));
    group.bench_function("reference", |bencher| {
        bencher.iter(|| candle.score(&batch, &mut logits).expect("the batch is the model's"));
    });
    group.finish();
}

/// The ratios of criterion's medians, read from its files.
fn ratios(results: &Path) {
    let median = |folder: &Path| -> Option<f64> {
        let text = std::fs::read_to_string(folder.join("new/estimates.json")).ok()?;
        serde_json::from_str::<Value>(&text).ok()?["median"]["point_estimate"].as_f64()
    };
    let folders = |of: &Path| {
        let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        found.sort();
        found
    };
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    println!("{:<22} {:>12} {:>16} {:>15}", "", "microseconds", "reference / ours", "floor / ours");
    for group in folders(results) {
        for ours in folders(&group).into_iter().filter(|path| name(path).starts_with("ours")) {
            let Some(time) = median(&ours) else { continue };
            let ratio = |of: &str, digits: usize, factor: f64, unit: &str| match median(&group.join(of)) {
                Some(other) => format!("{:.digits$}{unit}", factor * other / time),
                None => String::new(),
            };
            println!(
                "{:<22} {:>12.2} {:>16} {:>15}",
                format!("{}{}", name(&group), name(&ours).trim_start_matches("ours")),
                time / 1e3,
                ratio("reference", 1, 1.0, ""),
                ratio("floor", 0, 100.0, "%")
            );
        }
    }
}
