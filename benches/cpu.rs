//! The CPU engine, candle's forward and the machine's peak, interleaved in one run.
//!
//!     cargo bench --bench cpu                         all models, one thread and two
//!     cargo bench --bench cpu -- --rounds 21 L2H128   more rounds, one model
//!     cargo bench --bench cpu -- --python PYTHON      onnxruntime and PyTorch beside it, by a Python that
//!                                                     has them (`benches/peers`)
//!     cargo bench --bench cpu -- ModernBERT Mxbai70m Qwen3  the models that take long, by name
//!     cargo bench --bench cpu -- --quick              the engine alone, in bf16 and int8
//!     cargo bench --bench cpu -- Prefix               what a decoder saves where pairs share a prefix
//!     cargo bench --bench cpu -- --processor avx2     uses only these instructions: amx, avx512,
//!                                                     avx512vnni, avxvnni, avx2, neonbf16, neondot, neon
//!                                                     or portable
//!
//! W1 is 100 pairs with a query of 11 tokens and documents of lognormal length (median pair 90 tokens, at most 256). W2
//! is 100 pairs of 43 tokens. A short request is 2 pairs of 26 tokens (L12H384). Times are medians: CPU time on one
//! thread, wall time on two. The floor is the time for the linear maps at this machine's peak in their dtype, plus
//! attention at the peak in bf16 (f32 if the maps are f32). The second floor is the time to read the maps' weights once,
//! at the rate at which one thread reads as many bytes again and again. Peaks and rates are the best of the same rounds.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

#[path = "../tests/common/mod.rs"]
mod common;
mod shared;

use common::{Kind, bert, random_batch, random_plan};
use cpu_time::ProcessTime;
use podium::backend::{Cpu, CpuModel, Precision, Processor, Reference, Scorer};
use podium::model::{Attention, Block, FeedForward, Forward, Linear, Plan, Pool, Reach};
use podium::ops::{Bf16, Buffer, Dtype, F32, Int8, Simd, SimdBf16, multiply_on_tiles};
use podium::token::Packed;
use shared::{Peak, lognormal, median};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let rounds = arguments.iter().position(|argument| argument == "--rounds");
    let rounds = rounds.map_or(11, |place| arguments[place + 1].parse().expect("--rounds takes a number"));
    let python = arguments.iter().position(|argument| argument == "--python");
    let python = python.map(|place| arguments[place + 1].as_str());
    let here = Processor::here();
    let processor = arguments.iter().position(|argument| argument == "--processor");
    let processor = processor.map_or(here[0], |place| {
        let is_meant =
            |processor: &&Processor| format!("{processor:?}").to_lowercase() == arguments[place + 1];
        *here.iter().find(is_meant).unwrap_or_else(|| panic!("--processor is one of {here:?}, in lower case"))
    });
    println!("on {}, of {here:?}", processor.name());
    let bert = |layers, hidden, heads, inner| bert(layers, hidden, heads, inner).plan();
    // Those with `true` take long, and are measured if they are named.
    let models = [
        ("L2H128", false, bert(2, 128, 2, 512)),
        ("L4H256", false, bert(4, 256, 4, 1024)),
        ("L6H384", false, bert(6, 384, 12, 1536)),
        ("L12H384", true, bert(12, 384, 12, 1536)),
        ("L12H768", true, bert(12, 768, 12, 3072)),
        ("Ettin32m", true, modernbert(10, [384, 6, 64, 576])),
        ("ModernBERT", true, modernbert(22, [768, 12, 64, 1152])),
        ("Mxbai70m", true, deberta(12, [384, 6, 64, 1536])),
        ("DeBERTa", true, deberta(12, [768, 12, 64, 3072])),
        ("Qwen3", true, Kind::Qwen3.plan(28, [1024, 16, 128, 3072])),
        ("Prefix", true, Kind::Qwen3.plan(28, [1024, 16, 128, 3072])),
    ];
    let is_named = |name: &str| arguments.iter().any(|argument| argument == name);
    let any_named = models.iter().any(|(name, _, _)| is_named(name));
    for (name, takes_long, plan) in models {
        if if any_named { !is_named(name) } else { takes_long } {
            continue;
        }
        let plan = random_plan(plan, 1);
        if name == "Prefix" {
            share_prefixes(processor, &plan, rounds);
            continue;
        }
        let workloads = match name {
            // 20 documents of 128 tokens with a query of 16.
            "Qwen3" => vec![("20 x 144", vec![144; 20])],
            "L12H384" => vec![("W1", lognormal()), ("W2", vec![43; 100]), ("2 x 26", vec![26; 2])],
            _ => vec![("W1", lognormal()), ("W2", vec![43; 100])],
        };
        for (workload, lengths) in workloads {
            compare((name, workload), (processor, &plan), &lengths, rounds, python);
        }
    }
}

fn is_quick() -> bool {
    std::env::args().any(|argument| argument == "--quick")
}

/// All precisions; f32 takes longest, and is left out with `--quick`.
fn precisions() -> &'static [Precision] {
    &[Precision::F32, Precision::Bf16, Precision::Int8][usize::from(is_quick())..]
}

/// A request of 20 documents of 128 tokens in Qwen3-Reranker's prompt, with a query of 16, on one core: against pairs of
/// the same lengths that have nothing in common, the saving in time beside the share of tokens that are not computed.
fn share_prefixes(processor: Processor, plan: &Plan, rounds: usize) {
    let [documents, template, query, rest] = [20, 61, 16, 128 + 9];
    let pair = template + query + rest;
    let request = |fixed: u64, number: u64| {
        let part = |length: usize, seed: u64| random_batch(&[length], seed).ids().to_vec();
        let before = [part(template, fixed), part(query, number)].concat();
        let mut batch = Packed::default();
        for document in 0..documents as u64 {
            let ids = [before.clone(), part(rest, (number << 8) + document)].concat();
            batch.push(ids.into_iter().map(|id| (id, 0)));
        }
        batch
    };
    for &precision in precisions() {
        let Ok(model) = CpuModel::on(processor, plan, precision) else { continue };
        let mut scorer = Cpu::new(model, 1);
        let (mut apart, mut first, mut next) = (Vec::new(), Vec::new(), Vec::new());
        // The first round warms up.
        for round in 0..=rounds as u64 {
            let pairs = random_batch(&vec![pair; documents], 10_000 + round);
            let times = [pairs, request(20_000 + round, 2 * round), request(20_000 + round, 2 * round + 1)]
                .map(|batch| timed(&mut scorer, &batch).0);
            if round > 0 {
                apart.push(times[0]);
                first.push(1.0 - times[1] / times[0]);
                next.push(1.0 - times[2] / times[0]);
            }
        }
        let share = |computed: usize| 100.0 * (1.0 - computed as f64 / (documents * pair) as f64);
        println!(
            "Qwen3 {documents} x ({template} + {query} + {rest}), {}: {:.0} ms without a prefix; a shared prefix saves \
             {:.1}%, of the tokens {:.1}%; the next request {:.1}%, of the tokens {:.1}%",
            precision.name(),
            median(apart),
            100.0 * median(first),
            share(template + query + documents * rest),
            100.0 * median(next),
            share(query + documents * rest),
        );
    }
}

/// ModernBERT's layers and head (Warner et al. 2024): every third layer is global, the others reach 64 tokens.
fn modernbert(layers: usize, sizes: [usize; 4]) -> Plan {
    let mut plan = Kind::ModernBert(Pool::First).plan(layers, sizes);
    for block in &mut plan.blocks {
        if let Reach::Window(places) = &mut block.attention.reach {
            *places = 64;
        }
    }
    plan
}

/// The layers of DeBERTa-v3 (He et al. 2021) as mxbai-rerank-v1 has them: distances go through the maps of queries and keys.
fn deberta(layers: usize, sizes: [usize; 4]) -> Plan {
    let mut plan = Kind::Deberta.plan(layers, sizes);
    for relative in plan.blocks.iter_mut().filter_map(|block| block.attention.relative.as_mut()) {
        relative.own = None;
    }
    let relative = plan.relative.as_mut().expect("it has one");
    (relative.buckets, relative.distance_max) = (256, 512);
    relative.table.shape[0] = 2 * relative.buckets;
    plan
}

fn compare(
    (name, workload): (&str, &str),
    (processor, plan): (Processor, &Plan),
    lengths: &[usize],
    rounds: usize,
    python: Option<&str>,
) {
    let batch = random_batch(lengths, 1);
    let model = |precision| CpuModel::on(processor, plan, precision).ok();
    let mut ours: Vec<(Precision, Cpu, Cpu)> = precisions()
        .iter()
        .copied()
        .filter_map(|precision| Some((precision, model(precision)?)))
        .map(|(precision, model)| (precision, Cpu::new(model.clone(), 1), Cpu::new(model, 2)))
        .collect();
    let mut candle = Reference::new(Arc::new(Forward::new(plan).expect("weights are whole")));
    let (mut one, mut two) = (vec![Vec::new(); ours.len()], vec![Vec::new(); ours.len()]);
    let mut peers: Vec<Peer> = match python {
        Some(python) => PEERS.iter().filter_map(|peer| Peer::start(python, *peer, plan, lengths)).collect(),
        None => Vec::new(),
    };
    let (mut theirs, mut peaks) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    let weights: Vec<Buffer> = ours
        .iter()
        .map(|(precision, _, _)| {
            Buffer::in_huge_pages(weight_bytes(processor, *precision, plan) / size_of::<u32>())
        })
        .collect();
    let mut rates = vec![0.0_f64; ours.len()];
    for round in 0..=rounds {
        // The first round warms up. Candle is many times slower and runs every fifth round.
        for (place, (_, single, double)) in ours.iter_mut().enumerate() {
            let (cpu, _) = timed(single, &batch);
            let (_, wall) = timed(double, &batch);
            if round > 0 {
                one[place].push(cpu);
                two[place].push(wall);
                // Twice: the first one may bring them from memory, as the forward's time is that of weights in a cache.
                let rate = (0..2).map(|_| read_rate(&weights[place])).fold(0.0, f64::max);
                rates[place] = rates[place].max(rate);
            }
        }
        peers.iter_mut().for_each(Peer::run);
        if round % 5 == 1 && !is_quick() {
            theirs.push(timed(&mut candle, &batch).0);
        }
        if round > 0 {
            for (peaks, peak) in peaks.iter_mut().zip(peak_rates(processor)) {
                peaks.push(peak);
            }
        }
    }
    let [f32_peak, bf16_peak, int8_peak] = peaks.map(|rates| rates.into_iter().fold(0.0, f64::max));
    let (linear, attention) = multiplications(plan, lengths);
    let candle = if is_quick() { f64::NAN } else { median(theirs) };
    let tokens: usize = lengths.iter().sum();
    println!(
        "{name} {workload}: {tokens} tokens; peaks f32 {:.0}, bf16 {:.0}, int8 {:.0} G multiplications/s{}",
        f32_peak / 1e9,
        bf16_peak / 1e9,
        int8_peak / 1e9,
        if is_quick() { String::new() } else { format!("; candle {candle:.1} ms") }
    );
    for peer in &peers {
        println!("    {} in batches of {}: {:.2} ms on one core", peer.name, peer.batch, peer.median());
    }
    let measured = one.into_iter().zip(two).zip(weights.iter().zip(rates));
    for ((precision, _, _), ((one, two), (weights, rate))) in ours.iter().zip(measured) {
        let (one, two) = (median(one), median(two));
        let (linear_peak, attention_peak) = match precision {
            Precision::F32 => (f32_peak, f32_peak),
            Precision::Auto | Precision::Float | Precision::F16 | Precision::Fp8 | Precision::Bf16 => {
                (bf16_peak, bf16_peak)
            }
            Precision::Int8 => (int8_peak, bf16_peak),
        };
        let floor = (linear / linear_peak + attention / attention_peak) * 1e3;
        let bytes = size_of_val(weights.words()) as f64;
        println!(
            "    {:<5} {one:8.2} ms on one core, {:4.1}% of the floor's {floor:.2} ms; weights {:.1} MB, read once at \
             {:.1} GB/s {:.2} ms; two threads {two:8.2} ms, {:.2} times one{}{}",
            precision.name(),
            floor / one * 100.0,
            bytes / 1e6,
            rate / 1e9,
            bytes / rate * 1e3,
            one / two,
            if is_quick() { String::new() } else { format!("; candle takes {:.1} times", candle / one) },
            peers
                .iter()
                .map(|peer| format!(", {} {:.1}", peer.name, peer.median() / one))
                .collect::<String>()
        );
    }
}

/// The peers' workers, their dtypes, and the kinds of models that they run here.
const PEERS: [(&str, &str, &[&str]); 3] = [
    ("onnxruntime", "fp32", &["bert", "modernbert"]),
    ("onnxruntime", "int8", &["bert", "modernbert"]),
    ("torch", "bf16", &["modernbert", "deberta-v2", "qwen3"]),
];

/// A peer on the same lengths, in its own process.
struct Peer {
    name: String,
    batch: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    times: Vec<f64>,
}

impl Peer {
    fn start(
        python: &str,
        (engine, dtype, kinds): (&str, &str, &[&str]),
        plan: &Plan,
        lengths: &[usize],
    ) -> Option<Self> {
        let config = config(plan);
        if !kinds.contains(&config["model_type"].as_str()?) {
            return None;
        }
        let worker = format!("{}/benches/peers/{engine}_worker.py", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(python)
            .arg(worker)
            .args([&config.to_string(), dtype])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is such a Python");
        writeln!(child.stdin.as_mut().expect("it is piped"), "{lengths:?}").expect("the worker reads");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let ready =
            lines.next().expect("the worker starts: see its first lines for what it needs").expect("text");
        let batch = ready.strip_prefix("ready ").expect("it says so").to_owned();
        Some(Self { name: format!("{engine} {dtype}"), batch, child, lines, times: Vec::new() })
    }

    fn run(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("it is piped")).expect("the worker reads");
        let line = self.lines.next().expect("the worker answers").expect("text");
        self.times.push(line.parse().expect("a number"));
    }

    fn median(&self) -> f64 {
        median(self.times.clone())
    }
}

/// The `config.json` of a plan, as far as the workers read it.
fn config(plan: &Plan) -> serde_json::Value {
    let Block { attention, feed_forward, .. } = &plan.blocks[0];
    let kind = match (attention.rope, plan.head.at) {
        (None, _) if attention.relative.is_some() => "deberta-v2",
        (None, _) => "bert",
        (Some(_), Pool::Last) => "qwen3",
        (Some(_), Pool::First | Pool::Mean) => "modernbert",
    };
    serde_json::json!({
        "model_type": kind,
        "num_hidden_layers": plan.blocks.len(),
        "hidden_size": plan.hidden(),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": feed_forward.up.outputs(),
        // Of a decoder two rows are multiplied; the rest takes memory only.
        "vocab_size": match kind {
            "qwen3" => 2_000,
            // With the padding id of its configuration.
            "modernbert" => 50_368,
            _ => plan.vocabulary(),
        },
        "layer_norm_eps": 1e-12,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "relative_attention": true,
        "position_buckets": 256,
        "max_relative_positions": -1,
        "max_position_embeddings": 512,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": true,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": false,
        "pooler_hidden_size": plan.hidden(),
    })
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU and wall time in milliseconds.
fn timed(scorer: &mut dyn Scorer, batch: &Packed) -> (f64, f64) {
    let mut logits = vec![0.0; batch.len()];
    let (cpu, wall) = (ProcessTime::now(), Instant::now());
    scorer.score(batch, &mut logits).expect("the batch is the model's");
    let times = (cpu.elapsed().as_secs_f64() * 1e3, wall.elapsed().as_secs_f64() * 1e3);
    assert!(logits.iter().all(|logit| logit.is_finite()));
    times
}

/// Multiplications of linear maps and attention that the forward needs. Where the head reads one token, the last layer
/// attends from that one only, and absorbs keys and values into its query if that is less. With relative positions a score is
/// three products.
fn multiplications(plan: &Plan, lengths: &[usize]) -> (f64, f64) {
    let size = |map: &Linear| (map.outputs() * map.inputs()) as f64;
    let tokens: f64 = lengths.iter().map(|&length| length as f64).sum();
    let (mut linear, mut attention) = (0.0, 0.0);
    for (place, Block { attention: own, feed_forward, .. }) in plan.blocks.iter().enumerate() {
        let Attention { heads, head_dim, query, key, value, out, reach, rope, relative, .. } = own;
        let products = if relative.is_some() { 4.0 } else { 2.0 };
        let FeedForward { gate, up, down, .. } = feed_forward;
        let rest = size(out) + gate.as_ref().map_or(0.0, size) + size(up) + size(down);
        let keys = |length: usize| (0..length).map(move |token| reach.keys(token, length).len() as f64);
        let width = (heads * head_dim) as f64;
        if place + 1 < plan.blocks.len() || plan.head.at == Pool::Mean {
            linear += tokens * (size(query) + size(key) + size(value) + rest);
            attention += products * width * lengths.iter().flat_map(|&length| keys(length)).sum::<f64>();
        } else if rope.is_none() && relative.is_none() {
            linear += lengths.len() as f64 * (size(query) + size(key) + size(value) + rest);
            attention += tokens * 2.0 * *heads as f64 * plan.hidden() as f64;
        } else {
            linear += tokens * (size(key) + size(value)) + lengths.len() as f64 * (size(query) + rest);
            attention += products * width * tokens;
        }
    }
    let dense = plan.head.dense.as_ref().map_or(0.0, |(dense, _)| size(dense));
    (linear + lengths.len() as f64 * dense, attention)
}

/// Bytes of the linear maps' weights.
fn weight_bytes(processor: Processor, precision: Precision, plan: &Plan) -> usize {
    let weight = match precision {
        Precision::F32 => 4,
        // Two values of 16 bits to a word where there are no byte products.
        Precision::Int8 if processor != Processor::Avx2 => 1,
        _ => 2,
    };
    let maps = plan.blocks.iter().flat_map(|Block { attention, feed_forward, .. }| {
        let Attention { query, key, value, out, .. } = attention;
        let FeedForward { gate, up, down, .. } = feed_forward;
        [query, key, value, out, up, down].into_iter().chain(gate)
    });
    maps.map(|map| map.outputs() * map.inputs() * weight).sum()
}

/// Bytes per second at which one thread reads memory, in four streams.
fn read_rate(memory: &Buffer) -> f64 {
    const STREAMS: usize = 4;
    let started = ProcessTime::now();
    let lines = memory.words().as_chunks::<16>().0;
    let stream = lines.len() / STREAMS;
    let mut sums = [[0_u32; 16]; STREAMS];
    for line in 0..stream {
        for (place, sums) in sums.iter_mut().enumerate() {
            sums.iter_mut()
                .zip(&lines[place * stream + line])
                .for_each(|(sum, &word)| *sum = sum.wrapping_add(word));
        }
    }
    std::hint::black_box(sums);
    (STREAMS * stream * size_of::<[u32; 16]>()) as f64 / started.elapsed().as_secs_f64()
}

/// Multiplications per second in f32, bf16 and int8: on register operands, for tiles on the L1 cache.
fn peak_rates(processor: Processor) -> [f64; 3] {
    #[cfg(target_arch = "x86_64")]
    use podium::ops::{Amx, Avx2, Avx512, Avx512Vnni, AvxVnni};
    #[cfg(target_arch = "aarch64")]
    use podium::ops::{Neon, NeonBf16, NeonDot};
    let here = "the processor is among those that are here";
    match processor {
        #[cfg(target_arch = "x86_64")]
        Processor::Amx => rates(Amx::detect().expect(here)),
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512 => rates(Avx512::detect().expect(here)),
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512Vnni => rates_without_bf16(Avx512Vnni::detect().expect(here)),
        #[cfg(target_arch = "x86_64")]
        Processor::AvxVnni => rates_without_bf16(AvxVnni::detect().expect(here)),
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 => rates_without_bf16(Avx2::detect().expect(here)),
        #[cfg(target_arch = "aarch64")]
        Processor::NeonBf16 => rates(NeonBf16::detect().expect(here)),
        #[cfg(target_arch = "aarch64")]
        Processor::NeonDot => rates_without_bf16(NeonDot::detect().expect(here)),
        #[cfg(target_arch = "aarch64")]
        Processor::Neon => rates_without_bf16(Neon::detect().expect(here)),
        Processor::Portable | Processor::Emulated => rates(podium::ops::Portable::default()),
        _ => unreachable!("{here}"),
    }
}

fn rates<S: SimdBf16>(simd: S) -> [f64; 3] {
    [rate::<_, F32>(simd), rate::<_, Bf16>(simd), rate::<_, Int8>(simd)]
}

fn rates_without_bf16<S: Simd>(simd: S) -> [f64; 3] {
    let in_f32 = rate::<_, F32>(simd);
    [in_f32, in_f32, rate::<_, Int8>(simd)]
}

fn rate<S: Simd, D: Dtype<S>>(simd: S) -> f64 {
    const STEPS: usize = 500_000;
    let started = ProcessTime::now();
    if let Some(multiplications) = multiply_on_tiles::<S, D>(STEPS / 24) {
        return multiplications as f64 / started.elapsed().as_secs_f64();
    }
    let started = ProcessTime::now();
    let sum = simd.launch(Peak::<D>::new(STEPS));
    let seconds = started.elapsed().as_secs_f64();
    std::hint::black_box(sum);
    (STEPS * Peak::<D>::multiplications::<S>()) as f64 / seconds
}
