//! Requests of 100 documents on the CPU: from text to scores in process, and over HTTP. Also the cost of the bundled
//! student relative to its teacher, the teacher's CPU seconds on 32 long documents, and the student's load time.
//!
//!     cargo bench --bench path
//!
//! Documents are passages of `$PODIUM_DATA` or `../shared/data`, cut to W1's lengths (`benches/cpu.rs`). Each round has
//! other documents, so that no cache holds them. The model is the bundled student, in int8 and bf16. Medians.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

#[path = "../tests/common/mod.rs"]
mod common;
mod shared;

use common::{Options, Reply, TestServer, bert, post, random_batch, random_plan, setup};
use cpu_time::ProcessTime;
use podium::backend::{Cpu, CpuModel, Precision, Scorer, Scripted};
use podium::model::{Model, Plan};
use podium::token::{Cut, Fit, Packed, Pair, Tokenizer};
use rand_distr::{Distribution, LogNormal};
use rand_pcg::Pcg64;
use serde_json::json;
use shared::median;
use std::io::{BufReader, Write};
use std::sync::Arc;
use std::time::Instant;

const QUERY: &str = "what do cells need to make proteins?";
const ROUNDS: usize = 60;
const DOCUMENTS: usize = 100;
const PRECISIONS: [Precision; 2] = [Precision::Int8, Precision::Bf16];

fn main() {
    let Some(data) = common::data() else { return };
    let student = Model::bundled();
    let tokenizer = Arc::new(Tokenizer::parse(&student.tokenizer).expect("the tokenizer is whole"));
    let passages = std::fs::read_to_string(data.join("distill/passages.tsv")).expect("there are passages");
    let passages: Vec<&str> = passages.lines().filter_map(|line| line.split('\t').nth(1)).collect();
    let rounds: Vec<Vec<String>> = (0..ROUNDS).map(|round| documents(&passages, &tokenizer, round)).collect();
    for precision in PRECISIONS {
        let Ok(model) = CpuModel::new(&student.plan, precision) else { continue };
        for threads in [1, 2] {
            let mut scorer = Cpu::new(model.clone(), threads);
            let (mut reading, mut whole) = (Vec::new(), Vec::new());
            for documents in &rounds {
                let started = Instant::now();
                let batch = pack(&tokenizer, documents);
                reading.push(started.elapsed().as_secs_f64() * 1e3);
                scorer.score(&batch, &mut vec![0.0; batch.len()]).expect("the batch is the model's");
                whole.push(started.elapsed().as_secs_f64() * 1e3);
            }
            let served = over_http(&model, threads, &tokenizer, &rounds);
            println!(
                "{} on {threads} thread(s): {:.2} ms from text to scores ({:.2} ms of it tokens), {served:.2} ms over HTTP",
                precision.name(),
                median(whole),
                median(reading)
            );
        }
    }
    let teacher = random_plan(bert(12, 384, 12, 1536).plan(), 1);
    cheaper(&student, &teacher, &pack(&tokenizer, &rounds[0]));
    long_documents(&teacher);
    load();
}

/// CPU time of the same pairs on one core, by the student and by a model of the teacher's shape, in turns.
fn cheaper(student: &Model, teacher: &Plan, batch: &Packed) {
    for precision in PRECISIONS {
        let Ok(large) = CpuModel::new(teacher, precision) else { continue };
        let small = CpuModel::new(&student.plan, precision).expect("as the large one");
        let (mut large, mut small) = (Cpu::new(large, 1), Cpu::new(small, 1));
        let (mut large_ms, mut small_ms) = (Vec::new(), Vec::new());
        for _ in 0..7 {
            large_ms.push(cpu_ms(&mut large, batch));
            small_ms.extend((0..9).map(|_| cpu_ms(&mut small, batch)));
        }
        let (large, small) = (median(large_ms), median(small_ms));
        let pairs = batch.len();
        println!(
            "{}: {pairs} pairs take the teacher {large:.1} CPU ms and the student {small:.2}, {:.0} times less",
            precision.name(),
            large / small
        );
    }
}

fn cpu_ms(scorer: &mut Cpu, batch: &Packed) -> f64 {
    let started = ProcessTime::now();
    scorer.score(batch, &mut vec![0.0; batch.len()]).expect("the batch is the model's");
    started.elapsed().as_secs_f64() * 1e3
}

/// From the model's bytes in the program to a scorer.
fn load() {
    let (mut model, mut tokenizer) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        let started = Instant::now();
        let opened = Model::bundled();
        let packed = CpuModel::new(&opened.plan, Precision::Int8);
        model.push(started.elapsed().as_secs_f64() * 1e3);
        let started = Instant::now();
        Tokenizer::parse(&opened.tokenizer).expect("the tokenizer is whole");
        tokenizer.push(started.elapsed().as_secs_f64() * 1e3);
        drop(packed);
    }
    println!("load: {:.1} ms the model, {:.1} ms its tokenizer", median(model), median(tokenizer));
}

/// A round's passages, cut to W1's lengths in tokens.
fn documents(passages: &[&str], tokenizer: &Tokenizer, round: usize) -> Vec<String> {
    let (mut random, lengths) = (Pcg64::new(42, 0), LogNormal::new(90.0_f64.ln(), 0.5).expect("finite"));
    let cut = |place: usize| {
        let tokens = (lengths.sample(&mut random).round() as usize).clamp(8, 256);
        let mut text = String::new();
        for passage in passages.iter().cycle().skip(round * 211 + place * 7) {
            for word in passage.split(' ') {
                text.push_str(word);
                text.push(' ');
                if text.len() > 3 * tokens && tokenizer.encode(&text).expect("text is text").len() >= tokens {
                    return text;
                }
            }
        }
        unreachable!("the passages are many")
    };
    (0..DOCUMENTS).map(cut).collect()
}

fn pack(tokenizer: &Tokenizer, documents: &[String]) -> Packed {
    let ids = |text: &str| tokenizer.encode(text).expect("text is text");
    let (query, mut batch) = (ids(QUERY), Packed::default());
    let fit = Fit::new(512, Cut::DocumentOnly);
    for document in documents {
        let pair =
            Pair::fit(query.clone(), ids(document), tokenizer.template(), &fit).expect("it is cut to fit");
        pair.push_into(&mut batch, tokenizer.template());
    }
    batch
}

fn over_http(model: &CpuModel, threads: usize, tokenizer: &Arc<Tokenizer>, rounds: &[Vec<String>]) -> f64 {
    let mut setup = setup(Scripted::default(), None);
    let tier = &mut setup.models[0];
    (tier.tokenizer, tier.pair_tokens_max) = (tokenizer.clone(), 512);
    let model = model.clone();
    let lane = &mut setup.models[0].lanes[0];
    lane.batch_tokens_max = 16_384;
    lane.make = Arc::new(move || Ok(Box::new(Cpu::new(model.clone(), threads))));
    let server = TestServer::start(setup, Options::default());
    let mut stream = BufReader::new(server.connect());
    let mut times = Vec::new();
    for documents in rounds {
        let request = post("/v1/rank", "", json!({"query": QUERY, "documents": documents}).to_string());
        let started = Instant::now();
        stream.get_mut().write_all(&request).expect("the server reads");
        let reply = Reply::read(&mut stream).expect("the server answers");
        times.push(started.elapsed().as_secs_f64() * 1e3);
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    median(times)
}

/// 32 documents of 23 to 407 tokens, 4,360 in all.
fn long_documents(teacher: &Plan) {
    let mut lengths: Vec<usize> = (0..32).map(|place| 23 + place * place * 384 / 961).collect();
    let rest = 4_360_usize.saturating_sub(lengths.iter().sum());
    lengths[1..31].iter_mut().for_each(|length| *length += rest / 30);
    let batch = random_batch(&lengths, 1);
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let Ok(model) = CpuModel::new(teacher, precision) else { continue };
        let mut scorer = Cpu::new(model, 1);
        let times = (0..7).map(|_| cpu_ms(&mut scorer, &batch) / 1e3).collect();
        let tokens = batch.tokens().0;
        println!("12 layers of 384, {tokens} tokens, {}: {:.3} CPU s", precision.name(), median(times));
    }
}
