//! `podium distill` from text to a served student, on a small random teacher.

mod common;

use common::{data, small_model};
use podium::backend::{Cpu, CpuModel, Precision, Scorer};
use podium::eval::{Judged, Measure};
use podium::model::{Forward, Model};
use podium::token::{Packed, PairReader, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

fn podium(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podium"));
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Sentences of a few short words, so that queries and passages have words in common.
fn text(random: &mut Pcg64, words: usize) -> String {
    let word = |random: &mut Pcg64| {
        ["ab", "cat", "dog", "fox", "gnu", "hen", "ibex", "jay"][random.random_range(0..8)]
    };
    let words: Vec<String> = (0..words)
        .map(|_| format!("{}{}", word(random), ["", "s", "er"][random.random_range(0..3)]))
        .collect();
    words.join(" ")
}

/// Queries, passages, a judged set and a teacher.
fn material(place: &Path) -> tempfile::TempDir {
    let mut random = Pcg64::seed_from_u64(1);
    let lines = |random: &mut Pcg64, count: usize, words: usize| {
        (0..count).map(|_| format!("web\t{}\n", text(random, words))).collect::<String>()
    };
    fs::write(place.join("queries.tsv"), lines(&mut random, 300, 3)).unwrap();
    fs::write(place.join("passages.tsv"), lines(&mut random, 300, 9)).unwrap();
    ["set", "other"].iter().for_each(|name| judged(&place.join(name), &mut random));
    small_model()
}

/// A judged set of 4 queries with 30 candidates each.
fn judged(set: &Path, random: &mut Pcg64) {
    fs::create_dir(set).unwrap();
    let entries = |random: &mut Pcg64, count: usize, words: usize| {
        (0..count)
            .map(|id| format!("{}\n", json!({"_id": id.to_string(), "text": text(random, words)})))
            .collect::<String>()
    };
    fs::write(set.join("queries.jsonl"), entries(random, 4, 3)).unwrap();
    fs::write(set.join("corpus.jsonl"), entries(random, 30, 9)).unwrap();
    let each = |line: &dyn Fn(usize, usize) -> String| {
        (0..4)
            .flat_map(|query| (0..30).map(move |document| (query, document)))
            .map(|(q, d)| line(q, d))
            .collect::<String>()
    };
    fs::write(set.join("qrels.tsv"), each(&|q, d| format!("{q}\t{d}\t{}\n", u8::from((q + d) % 5 == 0))))
        .unwrap();
    fs::write(set.join("bm25.run"), each(&|q, d| format!("{q} Q0 {d} {d} {} x\n", 100 - d))).unwrap();
}

/// The command's arguments for these files. The student's shape is given unless a student is.
fn arguments<'a>(place: &'a str, teacher: &'a Path, out: &'a str, more: &[&str]) -> Vec<String> {
    let teacher = teacher.to_str().unwrap();
    let shape = match more.contains(&"--student") {
        true => "",
        false => "--layers 2 --hidden 32 --heads 2 --intermediate 64",
    };
    let arguments = format!(
        "distill --teacher {teacher} --queries {place}/queries.tsv --passages {place}/passages.tsv \
         --tune {place}/set --report {place}/other --out {place}/{out} --work {place}/work {shape} \
         --lists 200 --candidates 8 --steps 120 --every 40 --rate 0.003"
    );
    let mut arguments: Vec<String> =
        arguments.split(' ').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    for pair in more.chunks(2) {
        // Replaces the value of a flag that is already there.
        if let Some(found) = arguments.iter().position(|argument| argument == pair[0]) {
            arguments.drain(found..found + 2);
        }
        arguments.extend(pair.iter().map(|&part| part.to_owned()));
    }
    arguments
}

fn distil(place: &Path, teacher: &Path, out: &str, more: &[&str]) -> (i32, String, String) {
    let arguments = arguments(place.to_str().unwrap(), teacher, out, more);
    podium(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_student_is_made_again_bit_for_bit_and_can_be_served() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    let teacher = material(place);
    let (code, printed, told) = distil(place, teacher.path(), "one", &[]);
    assert_eq!(code, 0, "{told}");
    assert!(printed.contains("other                  4"), "{printed}");
    let losses: Vec<f64> = told
        .lines()
        .filter_map(|line| {
            line.strip_prefix("train: ")?.split_once("loss ")?.1.split(',').next()?.parse().ok()
        })
        .collect();
    assert!(losses.last().unwrap() < &(0.7 * losses[0]), "{losses:?}");
    let papers = |out: &str| -> Value {
        serde_json::from_slice(&fs::read(place.join(out).join("podium.json")).unwrap()).unwrap()
    };
    let card = fs::read_to_string(place.join("one/README.md")).unwrap();
    for part in ["# one", "| other | 4 |", "\"seed\": 1", "queries | "] {
        assert!(card.contains(part), "{part} is missing: {card}");
    }
    assert!(papers("one")["calibration"]["scale"].as_f64().unwrap() > 0.0);

    // Runs again: once from the labels and checkpoint of the first run, and once from nothing.
    let work = || {
        fs::metadata(
            fs::read_dir(place.join("work"))
                .unwrap()
                .map(|e| e.unwrap().path())
                .find(|p| p.to_str().unwrap().contains("scores"))
                .unwrap(),
        )
        .unwrap()
        .len()
    };
    let labels = work();
    let (code, _, told) = distil(place, teacher.path(), "two", &["--name", "one"]);
    assert_eq!((code, work()), (0, labels), "{told}");
    assert!(!told.contains("train: "), "it was trained already: {told}");
    fs::remove_dir_all(place.join("work")).unwrap();
    assert_eq!(distil(place, teacher.path(), "three", &["--name", "one"]).0, 0);
    assert_eq!(papers("one"), papers("two"));
    assert_eq!(papers("one"), papers("three"));
    let (code, ..) = distil(place, teacher.path(), "four", &["--name", "one", "--seed", "2"]);
    assert_eq!(code, 0);
    assert_ne!(papers("one")["sha256"], papers("four")["sha256"]);
    // Plan `four` has its own checkpoint and did not replace that of the first.
    let (code, _, told) = distil(place, teacher.path(), "again", &["--name", "one"]);
    assert_eq!((code, told.contains("train: ")), (0, false), "{told}");

    // A trained student continues to learn. With 0 steps it is only calibrated and reported on, and its weights stay
    // the same.
    let one = place.join("one");
    let from = |out, steps, seed| {
        let more = ["--student", one.to_str().unwrap(), "--steps", steps, "--seed", seed];
        let (code, _, told) = distil(place, teacher.path(), out, &more);
        assert_eq!(code, 0, "{told}");
        told.contains("train: ")
    };
    assert!(!from("five", "0", "1"));
    assert_eq!(papers("one")["sha256"], papers("five")["sha256"]);
    assert!(from("six", "40", "3"));
    let card = fs::read_to_string(place.join("six/README.md")).unwrap();
    let parent = format!("It began as `one` (sha256 {})", papers("one")["sha256"].as_str().unwrap());
    assert!(card.contains(&parent), "{card}");
    // After blending, weights are the mean of both.
    let four = place.join("four");
    let more = ["--student", one.to_str().unwrap(), "--steps", "0", "--blend", four.to_str().unwrap()];
    assert_eq!(distil(place, teacher.path(), "seven", &more).0, 0);
    let [a, b, mean] =
        ["one", "four", "seven"].map(|name| Model::open(&place.join(name)).unwrap().plan.held());
    for ((a, b), mean) in a.tensors().into_iter().zip(b.tensors()).zip(mean.tensors()) {
        for ((a, b), mean) in a.values.iter().zip(&b.values).zip(&mean.values) {
            assert!(((a + b) / 2.0 - mean).abs() <= 1e-3 * mean.abs() + 1e-6, "{a}, {b}, {mean}");
        }
    }
    assert!(fs::read_to_string(place.join("seven/README.md")).unwrap().contains("are the mean of"));
    golden_pairs_hold(&Model::open(&one).unwrap(), &fs::read(one.join("golden.json")).unwrap());
    fs::write(place.join("lines"), "cat dog\nhen\n").unwrap();
    let lines = place.join("lines");
    let (code, printed, told) =
        podium(&["rank", "--model", one.to_str().unwrap(), "--query", "cats", lines.to_str().unwrap()]);
    assert_eq!((code, printed.lines().count()), (0, 2), "{told}");
}

#[test]
fn bad_input_is_named_before_any_work() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    let teacher = material(place);
    fs::write(place.join("bad.jsonl"), "{\"text\": 1}\n").unwrap();
    fs::write(place.join("few.tsv"), "web\tcat dog\n").unwrap();
    fs::write(place.join("file"), "").unwrap();
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/models/podium-student-L2-H128");
    let rows: [(&[&str], i32, &str); 14] = [
        (&["--heads", "3"], 64, "--heads: 3 does not divide --hidden 32"),
        (&["--rate", "2"], 64, "more than 0, up to 1"),
        (&["--candidates", "1"], 64, "1 is not in 4..=1000"),
        (&["--teacher", "/nowhere"], 64, "--teacher: there is no directory /nowhere; give a directory"),
        (&["--steps", "0"], 64, "--steps: 0 needs a trained --student"),
        (&["--student", bundled], 64, "its tokenizer is not the teacher's"),
        (&["--blend", bundled], 64, "the model to blend with has another shape"),
        (&["--student", bundled, "--hidden", "32"], 64, "cannot be used with '--hidden"),
        (&["--queries", &at("bad.jsonl")], 65, "bad.jsonl:1: "),
        (
            &["--queries", &at("few.tsv"), "--made-share", "0"],
            65,
            "the text gives 1 lists; at least 24 are needed",
        ),
        (&["--tune", &at("nowhere")], 66, "nowhere/corpus.jsonl"),
        (&["--report", &at("set")], 64, "set is in --tune too"),
        (&["--out", teacher.path().to_str().unwrap()], 64, "--out: is the directory of --teacher"),
        (&["--work", &at("file")], 74, "file: "),
    ];
    for (more, code, expected) in rows {
        let (found, _, told) = distil(place, teacher.path(), "out", more);
        assert!(found == code && told.contains(expected), "{more:?}: {found}, {told}");
    }
    assert!(!place.join("out").exists(), "what fails leaves nothing behind");
}

/// The reference and the CPU engine in f32 reproduce the logits stored beside a model.
fn golden_pairs_hold(model: &Model, golden: &[u8]) {
    let golden: Vec<Value> = serde_json::from_slice(golden).unwrap();
    let pairs: Vec<(&str, &str)> = golden
        .iter()
        .map(|pair| (pair["query"].as_str().unwrap(), pair["document"].as_str().unwrap()))
        .collect();
    let batch = pack(model, pairs);
    let mut logits = Forward::new(&model.plan).unwrap().logits(&batch).unwrap();
    let mut cpu = Cpu::new(CpuModel::new(&model.plan, Precision::F32).unwrap(), 1);
    for _ in 0..2 {
        for (pair, logit) in golden.iter().zip(&logits) {
            let expected = pair["logit"].as_f64().unwrap() as f32;
            assert!((logit - expected).abs() < 1e-3, "{pair}: {logit}");
        }
        cpu.score(&batch, &mut logits).unwrap();
    }
}

fn pack<'a>(model: &Model, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Packed {
    let tokenizer = Arc::new(Tokenizer::parse(&model.tokenizer).unwrap());
    let reader = PairReader::new(tokenizer, model.pair_tokens_max);
    let mut batch = Packed::default();
    pairs.into_iter().for_each(|(query, document)| reader.push(query, document, &mut batch).unwrap());
    batch
}

#[test]
fn the_bundled_student_is_the_one_on_its_card() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/podium-student-L2-H128");
    let model = Model::bundled();
    golden_pairs_hold(&model, &fs::read(folder.join("golden.json")).unwrap());
    let size: u64 =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 12 << 20, "{size} bytes are more than 12 MiB");
    let Some(data) = data() else { return };
    // A set with few candidates; the card states its figure.
    let set = Judged::read(&data.join("sets/trecqa_dev")).unwrap();
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    let row = card.lines().find(|line| line.starts_with("| trecqa_dev |")).unwrap();
    let expected: f64 = row.split('|').nth(5).unwrap().trim().parse().unwrap();
    let mut cpu = Cpu::new(CpuModel::new(&model.plan, Precision::F32).unwrap(), 2);
    let mut sum = 0.0;
    for (query, candidates) in &set.run {
        let documents = candidates
            .iter()
            .map(|found| (set.queries[query].as_str(), set.documents[&found.document].as_str()));
        let batch = pack(&model, documents);
        let mut logits = vec![0.0; batch.len()];
        cpu.score(&batch, &mut logits).unwrap();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let ranked: Vec<&str> = order.into_iter().map(|place| candidates[place].document.as_str()).collect();
        sum += Measure::Ndcg(10).of(&ranked, &set.grades[query]);
    }
    let mean = sum / set.run.len() as f64;
    assert!((mean - expected).abs() < 2e-3, "nDCG@10 is {mean:.4}, and the card says {expected}");
}

#[test]
fn labels_that_a_gpu_made_serve_without_one() {
    #[cfg(feature = "cuda")]
    if podium::ops::cuda::Nvidia::count().is_ok() {
        return eprintln!("SKIPPED: there is a GPU");
    }
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    let teacher = material(place);
    let (code, _, told) = distil(place, teacher.path(), "one", &["--precision", "f32"]);
    assert_eq!(code, 0, "{told}");
    // Renames the cached labels and scores as if a GPU had made them.
    let work = place.join("work");
    let scores: Vec<_> = fs::read_dir(&work)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("scores-"))
        .collect();
    // scores-MODEL-DTYPE-TRUNCATION.bin: all scores of one truncation, as the teacher's in another dtype.
    let parts = |path: &Path| -> Vec<String> {
        path.file_name().unwrap().to_str().unwrap().splitn(4, '-').map(str::to_owned).collect()
    };
    let labels = scores.iter().find(|path| parts(path)[2] == "float32").unwrap();
    let model = parts(labels)[1].clone();
    let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for path in &scores {
        all.entry(parts(path)[3].clone()).or_default().extend(fs::read(path).unwrap());
        fs::remove_file(path).unwrap();
    }
    for (truncation, bytes) in all {
        fs::write(work.join(format!("scores-{model}-float16-{truncation}")), bytes).unwrap();
    }
    let (code, _, told) = distil(place, teacher.path(), "two", &["--precision", "f16"]);
    assert_eq!(code, 0, "{told}");
    let weights = |out: &str| fs::read(place.join(out).join("model.safetensors")).unwrap();
    assert!(weights("one") == weights("two"));
    let (code, _, told) = distil(place, teacher.path(), "three", &["--precision", "f16", "--seed", "2"]);
    assert!(code != 0 && told.contains("no device of this machine computes in float16"), "{code} {told}");
}
