//! A model's golden pairs: texts with the logits that the model must give them, in `golden.json` beside it.

use serde::Deserialize;

pub(super) const GOLDEN: &str = "golden.json";

/// The golden pairs of a model, at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden(Vec<GoldenPair>);

/// Texts with what the model must make of them.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenPair {
    /// The query.
    pub query: String,
    /// The document.
    pub document: String,
    /// The request's instruction; none for the model's own.
    pub instruction: Option<String>,
    /// What the model must give.
    pub expected: Expected,
    /// How far a score in f32 may be from that.
    pub tolerance: f32,
}

/// A score in the form in which it was published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expected {
    /// Before the sigmoid.
    Logit(f32),
    /// After the sigmoid.
    Probability(f32),
}

/// One element of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    query: String,
    document: String,
    instruction: Option<String>,
    logit: Option<f32>,
    probability: Option<f32>,
    tolerance: Option<f32>,
}

/// The tolerance of a pair that states none: published figures have four digits.
const TOLERANCE: f32 = 2e-3;

impl Golden {
    /// Reads a `golden.json`.
    ///
    /// # Errors
    /// Says which pair is wrong, and what in it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let stated: Vec<Stated> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if stated.is_empty() {
            return Err("it has no pair; give one at least, or remove the file".to_owned());
        }
        let pairs = stated
            .into_iter()
            .enumerate()
            .map(|(place, stated)| stated.pair().map_err(|reason| format!("pair {place}: {reason}")));
        Ok(Self(pairs.collect::<Result<_, _>>()?))
    }

    /// The pairs.
    pub fn pairs(&self) -> &[GoldenPair] {
        &self.0
    }
}

impl Stated {
    fn pair(self) -> Result<GoldenPair, String> {
        let expected = match (self.logit, self.probability) {
            (Some(logit), None) if logit.is_finite() => Expected::Logit(logit),
            (None, Some(probability)) if (0.0..=1.0).contains(&probability) => {
                Expected::Probability(probability)
            }
            (Some(logit), None) => return Err(format!("logit: {logit} is not finite")),
            (None, Some(probability)) => {
                return Err(format!("probability: {probability} is not between 0 and 1"));
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err("must have either a `logit` or a `probability`".to_owned());
            }
        };
        let tolerance = self.tolerance.unwrap_or(TOLERANCE);
        if !(tolerance.is_finite() && tolerance >= 0.0) {
            return Err(format!("tolerance: {tolerance} is not a number of at least 0"));
        }
        let Self { query, document, instruction, .. } = self;
        Ok(GoldenPair { query, document, instruction, expected, tolerance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_texts_and_one_expected_score() {
        let json = br#"[{"query": "q", "document": "d", "logit": -1.5},
            {"query": "q", "document": "d", "instruction": "judge", "probability": 1, "tolerance": 0.25}]"#;
        let golden = Golden::parse(json).unwrap();
        let pair = |instruction: Option<&str>, expected, tolerance| GoldenPair {
            query: "q".to_owned(),
            document: "d".to_owned(),
            instruction: instruction.map(str::to_owned),
            expected,
            tolerance,
        };
        let expected =
            [pair(None, Expected::Logit(-1.5), 2e-3), pair(Some("judge"), Expected::Probability(1.0), 0.25)];
        assert_eq!(golden.pairs(), expected);
    }

    #[test]
    fn a_wrong_file_is_an_error_that_names_the_pair() {
        let pair = |rest: &str| {
            format!(r#"[{{"query": "q", "document": "d", "logit": 1}}, {{"query": "q", {rest}}}]"#)
        };
        for (json, expected) in [
            ("[".to_owned(), "EOF"),
            ("[]".to_owned(), "it has no pair; give one at least, or remove the file"),
            (r#"{"pairs": []}"#.to_owned(), "invalid type: map"),
            (pair(r#""logit": 1"#), "missing field `document`"),
            (pair(r#""document": "d""#), "pair 1: must have either a `logit` or a `probability`"),
            (
                pair(r#""document": "d", "logit": 1, "probability": 0.5"#),
                "pair 1: must have either a `logit` or a `probability`",
            ),
            (pair(r#""document": "d", "logit": 1e39"#), "pair 1: logit: inf is not finite"),
            (
                pair(r#""document": "d", "probability": 1.5"#),
                "pair 1: probability: 1.5 is not between 0 and 1",
            ),
            (
                pair(r#""document": "d", "logit": 1, "tolerance": -1"#),
                "pair 1: tolerance: -1 is not a number of at least 0",
            ),
            (pair(r#""document": "d", "score": 1"#), "unknown field `score`"),
        ] {
            let error = Golden::parse(json.as_bytes()).unwrap_err();
            assert!(error.starts_with(expected), "{json}: {error}");
        }
    }

    #[test]
    fn the_bundled_model_has_golden_pairs() {
        let golden = crate::model::UnreadModel::bundled().golden().unwrap().unwrap();
        assert!(golden.pairs().len() >= 5);
    }
}
