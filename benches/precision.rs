//! What a precision costs in quality: a model's orders of judged candidates in f32, bf16 and int8.
//!
//!     cargo bench --bench precision -- MODEL_DIR [SET[/N] ...]      of a set with /N every Nth query
//!
//! Sets are those of `$PODIUM_DATA` or `../shared/data`: BM25's first hundred of each judged query are
//! scored in every precision. Printed are nDCG@10 (Järvelin and Kekäläinen 2002; the gain is the grade,
//! as in trec_eval), and on how many queries the first ten stand in f32's order.

#[path = "../tests/common/mod.rs"]
mod common;

use podium::backend::{Cpu, CpuModel, Precision, Scorer};
use podium::model::Model;
use podium::token::{Cut, Fit, Packed, Pair, Tokenizer};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

const SETS: [&str; 6] = ["cranfield", "cisi", "cacm", "liveqa_med", "vaswani_npl", "trecqa_dev"];
const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];
/// Pairs scored at once.
const PAIRS: usize = 100;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(data) = common::data() else { return };
    let model = arguments.next().unwrap_or_else(|| "ms-marco-MiniLM-L-12-v2".to_owned());
    let place = if Path::new(&model).is_dir() { model.into() } else { data.join("models").join(model) };
    let model = Model::open(&place).expect("the model is whole");
    let tokenizer = Tokenizer::from_file(&model.tokenizer).expect("the tokenizer is whole");
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
        let mut set = Set::read(&data.join("sets").join(folder));
        set.runs = set.runs.into_iter().step_by(every).collect();
        let mut sums = vec![0.0; scorers.len()];
        let (mut same_here, mut bm25) = (vec![0; scorers.len()], 0.0);
        for (query, candidates) in &set.runs {
            let batch = set.batch(&model, &tokenizer, query, candidates);
            bm25 += set.ndcg(query, candidates);
            let mut first = Vec::new();
            for (place, scorer) in scorers.iter_mut().enumerate() {
                let mut logits = vec![0.0; batch.len()];
                scorer.score(&batch, &mut logits).expect("the batch is the model's");
                let mut order: Vec<usize> = (0..logits.len()).collect();
                order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
                let ranked: Vec<String> = order.iter().map(|&index| candidates[index].clone()).collect();
                sums[place] += set.ndcg(query, &ranked);
                let ten: Vec<usize> = order.into_iter().take(10).collect();
                if place == 0 {
                    first.clone_from(&ten);
                }
                same_here[place] += usize::from(ten == first);
            }
        }
        let count = set.runs.len();
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

/// A judged set with BM25's candidates.
struct Set {
    texts: HashMap<String, String>,
    queries: HashMap<String, String>,
    grades: HashMap<String, HashMap<String, i32>>,
    runs: BTreeMap<String, Vec<String>>,
}

impl Set {
    fn read(place: &Path) -> Self {
        let lines = |file: &str| {
            let text = std::fs::read_to_string(place.join(file)).expect("a set has this file");
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let texts = |file: &str| {
            let pair = |line: &String| {
                let value: Value = serde_json::from_str(line).expect("a line is JSON");
                let field = |name: &str| value[name].as_str().unwrap_or_default();
                (field("_id").to_owned(), format!("{} {}", field("title"), field("text")).trim().to_owned())
            };
            lines(file).iter().map(pair).collect::<HashMap<_, _>>()
        };
        let mut grades: HashMap<String, HashMap<String, i32>> = HashMap::new();
        for line in lines("qrels.tsv") {
            let fields: Vec<&str> = line.split('\t').collect();
            // A heading, where there is one, has no grade.
            let (Some(grade), [query, document, ..]) =
                (fields.last().and_then(|f| f.parse().ok()), &fields[..])
            else {
                continue;
            };
            grades.entry((*query).to_owned()).or_default().insert((*document).to_owned(), grade);
        }
        let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in lines("bm25.run") {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if grades.get(fields[0]).is_some_and(|grades| grades.values().any(|&grade| grade > 0)) {
                runs.entry(fields[0].to_owned()).or_default().push(fields[2].to_owned());
            }
        }
        Self { texts: texts("corpus.jsonl"), queries: texts("queries.jsonl"), grades, runs }
    }

    fn batch(&self, model: &Model, tokenizer: &Tokenizer, query: &str, candidates: &[String]) -> Packed {
        assert!(candidates.len() <= PAIRS);
        let fit = Fit { limit: model.encoder.pair_tokens_max(), document_max: None, cut: Cut::LongestFirst };
        let ids = |text: &str| tokenizer.encode(text).expect("text is text");
        let query = ids(&self.queries[query]);
        let mut batch = Packed::default();
        for candidate in candidates {
            let document = ids(&self.texts[candidate]);
            let pair =
                Pair::fit(query.clone(), document, tokenizer.template(), &fit).expect("it is cut to fit");
            pair.push_into(&mut batch, tokenizer.template());
        }
        batch
    }

    fn ndcg(&self, query: &str, ranked: &[String]) -> f64 {
        let grades = &self.grades[query];
        let gain = |grade: i32| f64::from(grade.max(0));
        let discounted = |gains: &[f64]| -> f64 {
            gains.iter().zip(2..).take(10).map(|(gain, place)| gain / f64::from(place).log2()).sum()
        };
        let found: Vec<f64> = ranked.iter().map(|id| gain(grades.get(id).copied().unwrap_or(0))).collect();
        let mut ideal: Vec<f64> = grades.values().map(|&grade| gain(grade)).collect();
        ideal.sort_by(|a, b| b.total_cmp(a));
        discounted(&found) / discounted(&ideal)
    }
}
