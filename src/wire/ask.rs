//! The dialects from the client's side: a request to bytes, bytes to scores.

use super::Dialect;
use serde::Deserialize;
use serde_json::{Value, json};

/// A client's request.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The query.
    pub query: &'a str,
    /// Its candidates.
    pub documents: &'a [String],
    /// The task in words; only for dialects with a field for it ([`Dialect::takes_instruction`]).
    pub instruction: Option<&'a str>,
}

impl Ask<'_> {
    /// The fields as most dialects name them.
    pub(super) fn plain(&self) -> Value {
        json!({"query": self.query, "documents": self.documents})
    }
}

impl Dialect {
    /// Whether a request must name a model.
    pub const fn needs_model(self) -> bool {
        self.spec().needs_model
    }

    /// Whether a request has a field for an instruction.
    pub fn takes_instruction(self) -> bool {
        self == Self::Oip || self.spec().fields.contains(&"instruction")
    }

    /// The path of a client's requests.
    pub fn ask_path(self, model: Option<&str>) -> String {
        let encode = |part| {
            percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string()
        };
        let model: Vec<String> = model.unwrap_or_default().split('/').map(encode).collect();
        self.spec().paths[0].replace("{model}", &model.join("/"))
    }

    /// The body of a client's request.
    pub fn ask(self, model: Option<&str>, ask: Ask) -> Vec<u8> {
        let mut body = (self.spec().ask)(&ask);
        // The Open Inference Protocol names the model in the path.
        if let Some(model) = model.filter(|_| self.spec().fields.contains(&"model")) {
            body["model"] = json!(model);
        }
        match ask.instruction {
            Some(text) if self == Self::Oip => body["parameters"]["instruction"] = json!(text),
            Some(text) => body["instruction"] = json!(text),
            None => {}
        }
        body.to_string().into_bytes()
    }

    /// The scores of an answer, in the order of the documents.
    ///
    /// # Errors
    /// Says what is wrong with the body; each document has one score, which is a number.
    pub fn scores(self, documents: usize, body: &[u8]) -> Result<Vec<f64>, String> {
        let rows = (self.spec().scores)(body)?;
        if rows.len() != documents {
            return Err(format!("{} scores for {documents} documents", rows.len()));
        }
        let mut scores = vec![None; documents];
        for (index, score) in rows {
            let slot =
                scores.get_mut(index).ok_or_else(|| format!("index {index} of {documents} documents"))?;
            if slot.replace(score).is_some() {
                return Err(format!("two scores for index {index}"));
            }
        }
        Ok(scores.into_iter().flatten().collect())
    }
}

/// Documents' indexes and scores.
pub(super) type Rows = Vec<(usize, f64)>;

#[derive(Deserialize)]
pub(super) struct Results<T> {
    pub results: Vec<T>,
}

#[derive(Deserialize)]
pub(super) struct Data<T> {
    pub data: Vec<T>,
}

#[derive(Deserialize)]
pub(super) struct Relevance {
    index: usize,
    relevance_score: f64,
}

#[derive(Deserialize)]
pub(super) struct Score {
    index: usize,
    score: f64,
}

impl From<Relevance> for (usize, f64) {
    fn from(row: Relevance) -> Self {
        (row.index, row.relevance_score)
    }
}

impl From<Score> for (usize, f64) {
    fn from(row: Score) -> Self {
        (row.index, row.score)
    }
}

pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

pub(super) fn pairs<T: Into<(usize, f64)>>(rows: Vec<T>) -> Rows {
    rows.into_iter().map(Into::into).collect()
}

/// Reads the answer of most dialects.
pub(super) fn relevances(body: &[u8]) -> Result<Rows, String> {
    Ok(pairs(parse::<Results<Relevance>>(body)?.results))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_s_answer_is_read() {
        let rows = |key: &str| format!(r#"[{{"index":1,"{key}":2.5,"x":0}},{{"index":0,"{key}":-1}}]"#);
        for dialect in Dialect::ALL {
            let answer = match dialect {
                Dialect::Podium => format!(r#"{{"results":{}}}"#, rows("score")),
                Dialect::Cohere | Dialect::CohereV2 | Dialect::Jina | Dialect::Vllm | Dialect::Infinity => {
                    format!(r#"{{"results":{}}}"#, rows("relevance_score"))
                }
                Dialect::Voyage => format!(r#"{{"data":{}}}"#, rows("relevance_score")),
                Dialect::Tei => rows("score"),
                Dialect::TeiPredict => {
                    r#"[[{"score":-1,"label":"A"}],[{"score":2.5,"label":"A"}]]"#.to_owned()
                }
                Dialect::VllmScore => format!(r#"{{"data":{}}}"#, rows("score")),
                Dialect::Nim => format!(r#"{{"rankings":{}}}"#, rows("logit")),
                Dialect::Oip => r#"{"outputs":[{"name":"SCORE","shape":[2],"data":[-1,2.5]}]}"#.to_owned(),
            };
            assert_eq!(dialect.scores(2, answer.as_bytes()), Ok(vec![-1.0, 2.5]), "{}", dialect.name());
            assert!(dialect.scores(3, answer.as_bytes()).is_err(), "{}", dialect.name());
            assert!(dialect.scores(2, b"{}").is_err(), "{}", dialect.name());
        }
    }

    #[test]
    fn scores_are_found_among_the_outputs() {
        let answer = r#"{"outputs":[{"name":"INDEX","data":[1,0]},{"name":"SCORE","data":[-1,2.5]}]}"#;
        assert_eq!(Dialect::Oip.scores(2, answer.as_bytes()), Ok(vec![-1.0, 2.5]));
        let answer = r#"{"outputs":[{"name":"INDEX","data":[1,0]}]}"#;
        let expected = Err("there is no output SCORE".to_owned());
        assert_eq!(Dialect::Oip.scores(2, answer.as_bytes()), expected);
    }

    #[test]
    fn an_answer_that_is_none_is_told() {
        for (answer, expected) in [
            ("", "EOF"),
            ("[{\"index\":0,\"score\":null}]", "invalid type: null"),
            ("[{\"index\":0,\"score\":1}]", "1 scores for 2 documents"),
            ("[{\"index\":0,\"score\":1},{\"index\":0,\"score\":1}]", "two scores for index 0"),
            ("[{\"index\":0,\"score\":1},{\"index\":2,\"score\":1}]", "index 2 of 2"),
        ] {
            let error = Dialect::Tei.scores(2, answer.as_bytes()).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_model_goes_where_the_dialect_has_it() {
        let ask = Ask { query: "q", documents: &["a".to_owned()], instruction: None };
        assert_eq!(Dialect::Oip.ask_path(Some("a b/c")), "/v2/models/a%20b/c/infer");
        for dialect in Dialect::ALL {
            let body: Value = serde_json::from_slice(&dialect.ask(Some("m"), ask)).unwrap();
            let named = !matches!(dialect, Dialect::TeiPredict | Dialect::Oip);
            assert_eq!(body.get("model").is_some(), named, "{}", dialect.name());
        }
    }
}
