//! The quality of each precision: a model's rankings of judged candidates in f32, bf16 and int8, and on a GPU in f16,
//! bf16 and fp8 (feature `cuda`).
//!
//!     cargo bench --bench precision -- MODEL_DIR [SET[/N] ...]      SET/N uses every Nth query of a set
//!     cargo bench --bench precision --features cuda -- --gpu MODEL_DIR ...      only f32 and a GPU's precisions
//!
//! Sets are in `$PODIUM_DATA` or `../shared/data`. BM25's first hundred of each judged query are scored in every
//! precision. Printed are nDCG@10, the number of queries whose first ten are in f32's order, the error of the logits
//! relative to f32, and for a GPU the number of queries whose first ten stay the same if pairs have other neighbours in
//! the batch.

#[path = "../tests/common/mod.rs"]
mod common;

use podium::backend::{Cpu, CpuModel, Precision, Scorer};
use podium::eval::{Candidate, Judged, Measure};
use podium::model::Model;
use podium::token::{Packed, PairReader, Tokenizer};
#[cfg(feature = "cuda")]
use podium::{
    backend::Cuda,
    ops::cuda::{Half, Nvidia},
};
use std::path::Path;
use std::sync::Arc;

const SETS: [&str; 6] = ["cranfield", "cisi", "cacm", "liveqa_med", "vaswani_npl", "trecqa_dev"];
const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];
/// The depth of nDCG and of the compared rankings.
const DEPTH: usize = 10;

fn main() {
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(data) = common::data() else { return };
    let mut arguments = arguments.peekable();
    let on_cpu = if arguments.next_if_eq("--gpu").is_some() { &PRECISIONS[..1] } else { &PRECISIONS };
    let model = arguments.next().unwrap_or_else(|| "ms-marco-MiniLM-L-12-v2".to_owned());
    let place = if Path::new(&model).is_dir() { model.into() } else { data.join("models").join(model) };
    let model = Model::open(&place).expect("the model is whole");
    let tokenizer = Tokenizer::parse(&model.tokenizer).expect("the tokenizer is whole");
    let reader = PairReader::new(Arc::new(tokenizer), model.pair_tokens_max);
    let mut scorers = scorers(&model, on_cpu);
    let named: Vec<String> = arguments.collect();
    let sets = if named.is_empty() { SETS.map(str::to_owned).to_vec() } else { named };
    let names: Vec<&str> = scorers.iter().map(|(name, _)| *name).collect();
    println!("{:<12} {:>7}  nDCG@10 by BM25, {}", "set", "queries", names.join(", "));
    let (mut same, mut queries) = (vec![0; scorers.len()], 0);
    let mut apart = vec![Apart::default(); scorers.len()];
    let mut alike = vec![0; scorers.len()];
    for name in sets {
        let (folder, every) = name.split_once('/').unwrap_or((&name, "1"));
        let every = every.parse().expect("/N is a number");
        let set = Judged::read(&data.join("sets").join(folder)).expect("the set is whole");
        let run: Vec<(&String, &Vec<Candidate>)> = set.run.iter().step_by(every).collect();
        let mut sums = vec![0.0; scorers.len()];
        let (mut same_here, mut bm25) = (vec![0; scorers.len()], 0.0);
        for &(query, candidates) in &run {
            let mut batch = Packed::default();
            for found in candidates {
                let document = &set.documents[&found.document];
                reader.push(&set.queries[query], document, &mut batch).expect("it is cut to fit");
            }
            let ndcg = |ranked: &[&str]| Measure::Ndcg(DEPTH).of(ranked, &set.grades[query]);
            bm25 += ndcg(&candidates.iter().map(|found| found.document.as_str()).collect::<Vec<_>>());
            let (mut first, mut exact) = (Vec::new(), Vec::new());
            for (place, (name, scorer)) in scorers.iter_mut().enumerate() {
                let mut logits = vec![0.0; batch.len()];
                scorer.score(&batch, &mut logits).expect("the batch is the model's");
                let order = podium::rerank::order(&logits).expect("logits are numbers");
                sums[place] +=
                    ndcg(&order.iter().map(|&index| candidates[index].document.as_str()).collect::<Vec<_>>());
                let ten: Vec<usize> = order.into_iter().take(DEPTH).collect();
                if name.starts_with("gpu") {
                    let again = podium::rerank::order(&in_parts(&batch, &mut **scorer)).expect("likewise");
                    alike[place] += usize::from(again[..ten.len()] == ten);
                }
                if place == 0 {
                    first.clone_from(&ten);
                    exact.clone_from(&logits);
                }
                apart[place].add(&logits, &exact);
                same_here[place] += usize::from(ten == first);
            }
        }
        let count = run.len();
        let means: Vec<String> = sums.iter().map(|sum| format!("{:.4}", sum / count as f64)).collect();
        println!(
            "{name:<12} {count:>7}  {:.4}, {}; first ten as in f32: {same_here:?}",
            bm25 / count as f64,
            means.join(", ")
        );
        queries += count;
        same.iter_mut().zip(same_here).for_each(|(all, here)| *all += here);
    }
    for ((((name, _), same), apart), alike) in scorers.iter().zip(same).zip(apart).zip(alike) {
        let share = 100.0 * same as f64 / queries as f64;
        println!(
            "{name:<8} keeps f32's first ten in order on {same} of {queries} queries, {share:.1}%; logits are off by \
             {:.4} (root mean square), {:.4} at most",
            (apart.squares / apart.count.max(1) as f64).sqrt(),
            apart.most
        );
        if name.starts_with("gpu") {
            println!("         the same first ten with other neighbours on {alike} of {queries}");
        }
    }
}

/// A batch's logits, scored in batches of 1, 2, 4, ... of its sequences.
fn in_parts(batch: &Packed, scorer: &mut dyn Scorer) -> Vec<f32> {
    let mut logits = vec![0.0; batch.len()];
    let mut first = 0;
    while first < batch.len() {
        let end = (2 * first + 1).min(batch.len());
        let mut part = Packed::default();
        for bounds in batch.starts()[first..=end].windows(2) {
            let tokens = bounds[0] as usize..bounds[1] as usize;
            let (ids, types) = (&batch.ids()[tokens.clone()], &batch.types()[tokens]);
            part.push(std::iter::zip(ids.iter().copied(), types.iter().copied()));
        }
        scorer.score(&part, &mut logits[first..end]).expect("the batch is the model's");
        first = end;
    }
    logits
}

/// The error of logits relative to exact ones.
#[derive(Clone, Copy, Default)]
struct Apart {
    squares: f64,
    most: f64,
    count: usize,
}

impl Apart {
    fn add(&mut self, logits: &[f32], exact: &[f32]) {
        for (logit, exact) in logits.iter().zip(exact) {
            let difference = f64::from((logit - exact).abs());
            self.squares += difference * difference;
            self.most = self.most.max(difference);
            self.count += 1;
        }
    }
}

/// A scorer for each precision that this machine has; f32 is the first.
fn scorers(model: &Model, on_cpu: &[Precision]) -> Vec<(&'static str, Box<dyn Scorer>)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut scorers: Vec<(&str, Box<dyn Scorer>)> = Vec::new();
    for &precision in on_cpu {
        if let Ok(packed) = CpuModel::new(&model.plan, precision) {
            scorers.push((precision.name(), Box::new(Cpu::new(packed, threads))));
        }
    }
    #[cfg(feature = "cuda")]
    for (name, half, is_eight) in
        [("gpu f16", Half::F16, false), ("gpu bf16", Half::Bf16, false), ("gpu fp8", Half::F16, true)]
    {
        const TOKENS: u64 = 16_384;
        let gpu = match Nvidia::open(0) {
            Ok(gpu) => gpu,
            Err(error) => {
                eprintln!("SKIPPED {name}: {error}");
                continue;
            }
        };
        let mut cuda = Cuda::new(gpu, &model.plan, half, TOKENS).expect("the model fits the GPU");
        if is_eight {
            let lists = podium::backend::sample(model).expect("the model reads the sample");
            let gpu = Nvidia::open(0).expect("it was just opened");
            match cuda.to_fp8(gpu, &model.plan, &lists, TOKENS) {
                Ok((fp8, agreement)) => {
                    println!(
                        "fp8 keeps {:.1}% of the pairs of the sample's first tens in order",
                        100.0 * agreement
                    );
                    cuda = fp8;
                }
                Err(error) => {
                    eprintln!("SKIPPED {name}: {error}");
                    continue;
                }
            }
        }
        scorers.push((name, Box::new(cuda)));
    }
    scorers
}
