//! The whole path of a request of 100 documents on the CPU: from text to scores, and over HTTP; and
//! the CPU seconds of the teacher's shape on 32 long documents; and how long a small model loads.
//!
//!     cargo bench --bench path
//!
//! Documents are passages of `$PODIUM_DATA` or `../shared/data`, cut to W1's lengths (`benches/cpu.rs`),
//! others in each round, so that no cache knows them. The model has 2 layers of 128, in int8 and bf16,
//! with random weights and the teacher's tokenizer. Medians.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{
    Options, Reply, TestServer, bert, post, random_batch, random_weights, setup, small_model_beside,
};
use cpu_time::ProcessTime;
use podium::backend::{Cpu, CpuModel, Precision, Scorer, Scripted};
use podium::model::{Encoder, Model};
use podium::token::{Cut, Fit, Packed, Pair, Tokenizer};
use rand_distr::{Distribution, LogNormal};
use rand_pcg::Pcg64;
use serde_json::json;
use std::io::{BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const QUERY: &str = "what do cells need to make proteins?";
const ROUNDS: usize = 60;
const DOCUMENTS: usize = 100;

fn main() {
    let Some(data) = common::data() else { return };
    let tokenizer = data.join("models/ms-marco-MiniLM-L-12-v2/tokenizer.json");
    let tokenizer = Arc::new(Tokenizer::from_file(&tokenizer).expect("the tokenizer is whole"));
    let passages = std::fs::read_to_string(data.join("distill/passages.tsv")).expect("there are passages");
    let passages: Vec<&str> = passages.lines().filter_map(|line| line.split('\t').nth(1)).collect();
    let rounds: Vec<Vec<String>> = (0..ROUNDS).map(|round| documents(&passages, &tokenizer, round)).collect();
    let encoder = bert(2, 128, 2, 512);
    for precision in [Precision::Int8, Precision::Bf16] {
        let Ok(model) = CpuModel::new(&encoder, &random_weights(&encoder, 1), precision) else { continue };
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
    teacher();
    load(&data.join("models/ms-marco-MiniLM-L-12-v2"), &encoder);
}

/// From a directory to a scorer, its files in the page cache.
fn load(beside: &Path, encoder: &Encoder) {
    let folder = small_model_beside(beside, encoder);
    let (mut model, mut tokenizer) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        let started = Instant::now();
        let opened = Model::open(folder.path()).expect("the model is whole");
        let packed = CpuModel::new(&opened.encoder, &opened.weights, Precision::Int8);
        model.push(started.elapsed().as_secs_f64() * 1e3);
        let started = Instant::now();
        Tokenizer::from_file(&opened.tokenizer).expect("the tokenizer is whole");
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
    let fit = Fit { limit: 512, document_max: None, cut: Cut::DocumentOnly };
    for document in documents {
        let pair =
            Pair::fit(query.clone(), ids(document), tokenizer.template(), &fit).expect("it is cut to fit");
        pair.push_into(&mut batch, tokenizer.template());
    }
    batch
}

fn over_http(model: &CpuModel, threads: usize, tokenizer: &Arc<Tokenizer>, rounds: &[Vec<String>]) -> f64 {
    let mut setup = setup(Scripted::default(), None);
    let tier = setup.tiers.primary.as_mut().expect("there is a primary");
    (tier.tokenizer, tier.pair_tokens_max) = (tokenizer.clone(), 512);
    let model = model.clone();
    setup.lanes[0].batch_tokens_max = 16_384;
    setup.lanes[0].make = Arc::new(move || Ok(Box::new(Cpu::new(model.clone(), threads))));
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
fn teacher() {
    let mut lengths: Vec<usize> = (0..32).map(|place| 23 + place * place * 384 / 961).collect();
    let rest = 4_360_usize.saturating_sub(lengths.iter().sum());
    lengths[1..31].iter_mut().for_each(|length| *length += rest / 30);
    let encoder = bert(12, 384, 12, 1536);
    let (weights, batch) = (random_weights(&encoder, 1), random_batch(&lengths, 1));
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let Ok(model) = CpuModel::new(&encoder, &weights, precision) else { continue };
        let mut scorer = Cpu::new(model, 1);
        let times = (0..7).map(|_| {
            let started = ProcessTime::now();
            scorer.score(&batch, &mut vec![0.0; batch.len()]).expect("the batch is the model's");
            started.elapsed().as_secs_f64()
        });
        let tokens = batch.tokens().0;
        println!(
            "12 layers of 384, {tokens} tokens, {}: {:.3} CPU s",
            precision.name(),
            median(times.collect())
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
