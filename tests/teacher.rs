//! The real cross-encoder, from its files to the logits that its papers state.

mod common;

use podium::model::{Forward, Model};
use podium::token::{Cut, Fit, Packed, Pair};

const QUERY: &str = "how many people live in berlin?";
const PASSAGES: [(&str, f32); 3] = [
    (
        "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
        9.267,
    ),
    ("Berlin is well known for its museums.", -3.934),
    ("New York City is famous for the Metropolitan Museum of Art.", -11.187),
];

#[test]
fn the_teacher_gives_the_logits_of_its_papers() {
    let Some(data) = common::data() else { return };
    let model = Model::open(&data.join("models/ms-marco-MiniLM-L-12-v2")).unwrap();
    assert_eq!(model.manifest.licence, "Apache-2.0");
    let tokenizer = model.read_tokenizer().unwrap();
    let forward = Forward::new(&model.plan).unwrap();
    let limits = Fit::new(model.plan.tokens_max, Cut::DocumentOnly);
    let mut batch = Packed::default();
    for (passage, _) in PASSAGES {
        let (query, document) = (tokenizer.encode(QUERY).unwrap(), tokenizer.encode(passage).unwrap());
        let pair = Pair::fit(query, document, tokenizer.template(), &limits).unwrap();
        pair.push_into(&mut batch, tokenizer.template());
    }
    for (logit, (passage, expected)) in forward.logits(&batch).unwrap().into_iter().zip(PASSAGES) {
        assert!((logit - expected).abs() < 1e-3, "{passage}: {logit}, and {expected} is stated");
    }
}
