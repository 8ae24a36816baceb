//! The reference forward against Python's `transformers`, on small random models;
//! `tests/fixtures/make_encoders.py` makes them.

use podium::model::{Forward, describe};
use podium::token::Packed;
use proptest::prelude::*;
use serde::Deserialize;
use std::path::PathBuf;

const MODELS: [&str; 4] = ["bert", "bert_tanh", "roberta", "xlm_roberta"];
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    types: Vec<u8>,
    logit: f32,
}

impl Case {
    fn push_into(&self, batch: &mut Packed) {
        batch.push(self.ids.iter().copied().zip(self.types.iter().copied()));
    }
}

fn load(name: &str) -> (Forward, Vec<Case>) {
    let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders").join(name);
    let mut plan = describe(&std::fs::read(place.join("config.json")).unwrap(), &place).unwrap();
    plan.fill(&std::fs::read(place.join("model.safetensors")).unwrap()).unwrap();
    let cases = serde_json::from_slice(&std::fs::read(place.join("cases.json")).unwrap()).unwrap();
    (Forward::new(&plan).unwrap(), cases)
}

#[test]
fn each_sequence_alone_scores_as_in_transformers() {
    for name in MODELS {
        let (forward, cases) = load(name);
        for case in cases {
            let mut batch = Packed::default();
            case.push_into(&mut batch);
            let logit = forward.logits(&batch).unwrap()[0];
            let error = (logit - case.logit).abs();
            assert!(error < TOLERANCE, "{name}, {} tokens: {logit} and {}", case.ids.len(), case.logit);
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
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_batch_scores_as_in_transformers(model in 0..MODELS.len(), places in prop::collection::vec(0usize..11, 1..90)) {
        let (forward, cases) = load(MODELS[model]);
        let mut batch = Packed::default();
        for &place in &places {
            cases[place].push_into(&mut batch);
        }
        for (logit, &place) in forward.logits(&batch).unwrap().into_iter().zip(&places) {
            let expected = cases[place].logit;
            prop_assert!((logit - expected).abs() < TOLERANCE, "{}: {logit} and {expected}", MODELS[model]);
        }
    }
}
