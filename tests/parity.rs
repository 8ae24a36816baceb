//! The reference forward against Python's `transformers`, on small random models; `tests/fixtures/make_encoders.py` makes
//! them.

mod common;

use common::FIXTURES;
use podium::model::{Forward, Plan};
use podium::token::Packed;
use proptest::prelude::*;
use serde::Deserialize;
use std::path::{Path, PathBuf};

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
    for name in FIXTURES {
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

/// `transformers` 5 saves it with `gte` in place of `new`, as `make_encoders.py` has it before it renames.
#[test]
fn mgte_as_transformers_saves_it_scores_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let weights = std::fs::read(place("new").join("model.safetensors")).unwrap();
    let (length, rest) = weights.split_at(8);
    let (header, values) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let header = std::str::from_utf8(header).unwrap().replace("\"new.", "\"gte.");
    let weights = [length, header.as_bytes(), values].concat();
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    let config = serde_json::json!({
        "architectures": ["GteForSequenceClassification"], "model_type": "gte", "hidden_act": "gelu",
        "hidden_size": 32, "id2label": {"0": "LABEL_0"}, "intermediate_size": 40, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 8192, "num_attention_heads": 2, "num_hidden_layers": 2,
        "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}, "type_vocab_size": 1,
        "vocab_size": 100,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let forward = Forward::new(&Plan::open(folder.path()).unwrap()).unwrap();
    for case in cases("new") {
        let logit = forward.logits(&case.alone()).unwrap()[0];
        assert!((logit - case.logit).abs() < TOLERANCE, "{logit} and {}", case.logit);
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
    fn any_batch_scores_as_in_transformers(model in 0..FIXTURES.len(), picked in prop::collection::vec(any::<prop::sample::Index>(), 1..90)) {
        let (forward, cases) = load(FIXTURES[model]);
        let (mut batch, mut expected) = (Packed::default(), Vec::new());
        for case in picked.iter().map(|place| place.get(&cases)) {
            if batch.is_empty() || batch.ids().len() + case.ids.len() <= BATCH_TOKENS {
                case.push_into(&mut batch);
                expected.push(case.logit);
            }
        }
        for (logit, expected) in forward.logits(&batch).unwrap().into_iter().zip(expected) {
            prop_assert!((logit - expected).abs() < TOLERANCE, "{}: {logit} and {expected}", FIXTURES[model]);
        }
    }
}
