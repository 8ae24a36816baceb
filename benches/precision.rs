//! What a precision costs in quality: a model's orders of judged candidates in f32, bf16 and int8.
//!
//!     cargo bench --bench precision -- MODEL_DIR [SET[/N] ...]      of a set with /N every Nth query
//!
//! Sets are those of `$PODIUM_DATA` or `../shared/data`: BM25's first hundred of each judged query are
//! scored in every precision. Printed are nDCG@10, and on how many queries the first ten stand in f32's order.

#[path = "../tests/common/mod.rs"]
mod common;

use podium::backend::{Cpu, CpuModel, Precision, Scorer};
use podium::eval::{Candidate, Judged, Measure};
use podium::model::Model;
use podium::token::{Cut, Fit, Packed, Pair, Tokenizer};
use std::path::Path;

const SETS: [&str; 6] = ["cranfield", "cisi", "cacm", "liveqa_med", "vaswani_npl", "trecqa_dev"];
const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];
/// Depth of nDCG, and of the order that is compared.
const DEPTH: usize = 10;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(data) = common::data() else { return };
    let model = arguments.next().unwrap_or_else(|| "ms-marco-MiniLM-L-12-v2".to_owned());
    let place = if Path::new(&model).is_dir() { model.into() } else { data.join("models").join(model) };
    let model = Model::open(&place).expect("the model is whole");
    let tokenizer = Tokenizer::parse(&model.tokenizer).expect("the tokenizer is whole");
    let mut scorers: Vec<Cpu> = PRECISIONS
        .iter()
        .filter_map(|&precision| CpuModel::new(&model.encoder, &model.weights, precision).ok())
        .map(|packed| Cpu::new(packed, 2))
        .collect();
    let named: Vec<String> = arguments.collect();
    let sets = if named.is_empty() { SETS.map(str::to_owned).to_vec() } else { named };
    println!(
        "{:<12} {:>7}  nDCG@10 by BM25, {}",
        "set",
        "queries",
        PRECISIONS.map(Precision::name).join(", ")
    );
    let (mut same, mut queries) = (vec![0; scorers.len()], 0);
    for name in sets {
        let (folder, every) = name.split_once('/').unwrap_or((&name, "1"));
        let every = every.parse().expect("/N is a number");
        let set = Judged::read(&data.join("sets").join(folder)).expect("the set is whole");
        let run: Vec<(&String, &Vec<Candidate>)> = set.run.iter().step_by(every).collect();
        let mut sums = vec![0.0; scorers.len()];
        let (mut same_here, mut bm25) = (vec![0; scorers.len()], 0.0);
        for &(query, candidates) in &run {
            let documents: Vec<&str> =
                candidates.iter().map(|found| set.documents[&found.document].as_str()).collect();
            let batch = pack(&model, &tokenizer, &set.queries[query], &documents);
            let ndcg = |ranked: &[&str]| Measure::Ndcg(DEPTH).of(ranked, &set.grades[query]);
            bm25 += ndcg(&candidates.iter().map(|found| found.document.as_str()).collect::<Vec<_>>());
            let mut first = Vec::new();
            for (place, scorer) in scorers.iter_mut().enumerate() {
                let mut logits = vec![0.0; batch.len()];
                scorer.score(&batch, &mut logits).expect("the batch is the model's");
                let mut order: Vec<usize> = (0..logits.len()).collect();
                order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
                sums[place] +=
                    ndcg(&order.iter().map(|&index| candidates[index].document.as_str()).collect::<Vec<_>>());
                let ten: Vec<usize> = order.into_iter().take(DEPTH).collect();
                if place == 0 {
                    first.clone_from(&ten);
                }
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
    for (precision, same) in PRECISIONS.iter().zip(same) {
        let share = 100.0 * same as f64 / queries as f64;
        println!(
            "{:<5} keeps f32's first ten in order on {same} of {queries} queries, {share:.1}%",
            precision.name()
        );
    }
}

/// Candidates of a query, packed.
fn pack(model: &Model, tokenizer: &Tokenizer, query: &str, documents: &[&str]) -> Packed {
    let fit = Fit { limit: model.encoder.pair_tokens_max(), document_max: None, cut: Cut::LongestFirst };
    let ids = |text: &str| tokenizer.encode(text).expect("text is text");
    let query = ids(query);
    let mut batch = Packed::default();
    for document in documents {
        let pair =
            Pair::fit(query.clone(), ids(document), tokenizer.template(), &fit).expect("it is cut to fit");
        pair.push_into(&mut batch, tokenizer.template());
    }
    batch
}
