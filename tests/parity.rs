//! The reference forward and the CPU engine against Python's `transformers`, on small random models;
//! `tests/fixtures/make_encoders.py` makes them.

use podium::backend::{Cpu, CpuModel, Precision, Scorer, Unsupported};
use podium::model::{Forward, Plan};
use podium::token::Packed;
use proptest::prelude::*;
use serde::Deserialize;
use std::path::{Path, PathBuf};

const MODELS: [&str; 18] = [
    "bert",
    "bert_tanh",
    "bert_f16",
    "bert_gamma",
    "roberta",
    "xlm_roberta",
    "modernbert_cls",
    "modernbert_mean",
    "modernbert_biases",
    "ettin",
    "new",
    "new_ntk",
    "qwen3",
    "qwen3_untied",
    "qwen3_classifier",
    "qwen2",
    "deberta_v2",
    "deberta_v2_far",
];
const TOLERANCE: f32 = 1e-4;
/// Most tokens of a batch with several sequences.
const BATCH_TOKENS: usize = 3_000;

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    types: Vec<u8>,
    #[serde(default)]
    logit: f32,
    /// Of a model with several labels.
    #[serde(default)]
    logits: Vec<f32>,
}

impl Case {
    fn push_into(&self, batch: &mut Packed) {
        batch.push(self.ids.iter().copied().zip(self.types.iter().copied()));
    }

    fn alone(&self) -> Packed {
        let mut batch = Packed::default();
        self.push_into(&mut batch);
        batch
    }
}

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders").join(name)
}

fn cases(name: &str) -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(place(name).join("cases.json")).unwrap()).unwrap()
}

fn load(name: &str) -> (Forward, Vec<Case>) {
    (Forward::new(&Plan::open(&place(name)).unwrap()).unwrap(), cases(name))
}

#[test]
fn each_sequence_alone_scores_as_in_transformers() {
    for name in MODELS {
        let (forward, cases) = load(name);
        let mut worst: f32 = 0.0;
        for case in cases {
            let logit = forward.logits(&case.alone()).unwrap()[0];
            let error = (logit - case.logit).abs();
            assert!(error < TOLERANCE, "{name}, {} tokens: {logit} and {}", case.ids.len(), case.logit);
            worst = worst.max(error);
        }
        println!("{name}: at most {worst:.1e} off");
    }
}

#[test]
fn the_cpu_engine_scores_as_in_transformers() {
    for name in MODELS {
        let plan = Plan::open(&place(name)).unwrap();
        let model = match CpuModel::new(&plan, Precision::F32) {
            Ok(model) => model,
            Err(error @ Unsupported::Plan { .. }) => {
                println!("{name}: {error}");
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        };
        let mut worst: f32 = 0.0;
        for case in cases(name) {
            let mut logit = [f32::NAN];
            Cpu::new(model.clone(), 1).score(&case.alone(), &mut logit).unwrap();
            let error = (logit[0] - case.logit).abs();
            assert!(error < TOLERANCE, "{name}, {} tokens: {} and {}", case.ids.len(), logit[0], case.logit);
            worst = worst.max(error);
        }
        println!("{name}: the CPU engine is at most {worst:.1e} off");
    }
}

#[test]
fn each_label_that_podium_json_names_scores_as_in_transformers() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(place("bert_labels").join(file), folder.path().join(file)).unwrap();
    }
    let labels = [r#""contradiction""#, r#""entailment""#, "2"];
    for (place, label) in labels.into_iter().enumerate() {
        std::fs::write(folder.path().join("podium.json"), format!(r#"{{"label": {label}}}"#)).unwrap();
        let forward = Forward::new(&Plan::open(folder.path()).unwrap()).unwrap();
        for case in cases("bert_labels") {
            let (logit, expected) = (forward.logits(&case.alone()).unwrap()[0], case.logits[place]);
            assert!((logit - expected).abs() < TOLERANCE, "{label}: {logit} and {expected}");
        }
    }
}

#[test]
fn a_sequence_past_the_positions_is_an_error() {
    for (name, limit) in [("bert", 64), ("roberta", 64)] {
        let (forward, _) = load(name);
        let mut batch = Packed::default();
        batch.push((0..limit + 1).map(|_| (5, 0)));
        let error = forward.logits(&batch).unwrap_err().to_string();
        assert_eq!(error, "a sequence has 65 tokens, and the model reads 64");
    }
}

#[test]
fn an_id_of_another_model_is_an_error() {
    let (forward, _) = load("bert");
    let mut batch = Packed::default();
    batch.push([(100, 0)]);
    assert_eq!(forward.logits(&batch).unwrap_err().to_string(), "token id 100 is not among the model's 100");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_batch_scores_as_in_transformers(model in 0..MODELS.len(), picked in prop::collection::vec(any::<prop::sample::Index>(), 1..90)) {
        let (forward, cases) = load(MODELS[model]);
        let (mut batch, mut expected) = (Packed::default(), Vec::new());
        for case in picked.iter().map(|place| place.get(&cases)) {
            if batch.is_empty() || batch.ids().len() + case.ids.len() <= BATCH_TOKENS {
                case.push_into(&mut batch);
                expected.push(case.logit);
            }
        }
        for (logit, expected) in forward.logits(&batch).unwrap().into_iter().zip(expected) {
            prop_assert!((logit - expected).abs() < TOLERANCE, "{}: {logit} and {expected}", MODELS[model]);
        }
    }
}
