//! The dialects from the client's side: a request to bytes, bytes to scores.

use super::Case;
use crate::wire::Dialect;
use serde::Deserialize;
use serde_json::{Value, json};

/// Whether a request must name a model.
pub const fn needs_model(dialect: Dialect) -> bool {
    matches!(dialect, Dialect::CohereV2 | Dialect::Voyage | Dialect::Oip)
}

/// Where a request goes.
pub(super) fn path(dialect: Dialect, model: Option<&str>) -> String {
    match dialect {
        Dialect::Podium => "/v1/rank".to_owned(),
        Dialect::Cohere | Dialect::Jina | Dialect::Voyage => "/v1/rerank".to_owned(),
        Dialect::CohereV2 => "/v2/rerank".to_owned(),
        Dialect::Tei | Dialect::Vllm | Dialect::Infinity => "/rerank".to_owned(),
        Dialect::VllmScore => "/score".to_owned(),
        Dialect::Nim => "/v1/ranking".to_owned(),
        Dialect::Oip => {
            let model = model.unwrap_or_default().split('/').map(|part| {
                percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string()
            });
            format!("/v2/models/{}/infer", model.collect::<Vec<_>>().join("/"))
        }
    }
}

/// A request's body. Texts are not asked back for, where a dialect lets a client choose.
pub(super) fn body(dialect: Dialect, model: Option<&str>, case: &Case) -> Vec<u8> {
    let Case { query, documents } = case;
    let mut body = match dialect {
        Dialect::Podium | Dialect::Cohere | Dialect::CohereV2 | Dialect::Vllm => {
            json!({"query": query, "documents": documents})
        }
        Dialect::Jina | Dialect::Infinity => {
            json!({"query": query, "documents": documents, "return_documents": false})
        }
        Dialect::Voyage => json!({"query": query, "documents": documents, "truncation": true}),
        Dialect::Tei => json!({"query": query, "texts": documents, "truncate": true}),
        Dialect::VllmScore => json!({"text_1": query, "text_2": documents}),
        Dialect::Nim => {
            let passages: Vec<Value> = documents.iter().map(|text| json!({"text": text})).collect();
            json!({"query": {"text": query}, "passages": passages, "truncate": "END"})
        }
        Dialect::Oip => {
            let input = |name, data: Value, count| json!({"name": name, "datatype": "BYTES", "shape": [count], "data": data});
            json!({"inputs": [input("QUERY", json!([query]), 1), input("PASSAGE", json!(documents), documents.len())]})
        }
    };
    // TEI has no such field, and the Open Inference Protocol has it in the path.
    if let Some(model) = model.filter(|_| !matches!(dialect, Dialect::Tei | Dialect::Oip)) {
        body["model"] = json!(model);
    }
    body.to_string().into_bytes()
}

#[derive(Deserialize)]
struct Results<T> {
    results: Vec<T>,
}

#[derive(Deserialize)]
struct Data<T> {
    data: Vec<T>,
}

#[derive(Deserialize)]
struct Rankings {
    rankings: Vec<Logit>,
}

#[derive(Deserialize)]
struct Outputs {
    outputs: Vec<Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    data: Vec<f64>,
}

#[derive(Deserialize)]
struct Relevance {
    index: usize,
    relevance_score: f64,
}

#[derive(Deserialize)]
struct Score {
    index: usize,
    score: f64,
}

#[derive(Deserialize)]
struct Logit {
    index: usize,
    logit: f64,
}

/// The scores of an answer, in the order of the documents.
///
/// # Errors
/// Says what is wrong with the body; each document has one score, which is a number.
pub(super) fn scores(dialect: Dialect, documents: usize, body: &[u8]) -> Result<Vec<f64>, String> {
    fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }
    let relevance = |row: Relevance| (row.index, row.relevance_score);
    let score = |row: Score| (row.index, row.score);
    let rows: Vec<(usize, f64)> = match dialect {
        Dialect::Podium => parse::<Results<Score>>(body)?.results.into_iter().map(score).collect(),
        Dialect::Cohere | Dialect::CohereV2 | Dialect::Jina | Dialect::Vllm | Dialect::Infinity => {
            parse::<Results<Relevance>>(body)?.results.into_iter().map(relevance).collect()
        }
        Dialect::Voyage => parse::<Data<Relevance>>(body)?.data.into_iter().map(relevance).collect(),
        Dialect::Tei => parse::<Vec<Score>>(body)?.into_iter().map(score).collect(),
        Dialect::VllmScore => parse::<Data<Score>>(body)?.data.into_iter().map(score).collect(),
        Dialect::Nim => {
            let rows = parse::<Rankings>(body)?.rankings.into_iter();
            rows.map(|row| (row.index, row.logit)).collect()
        }
        Dialect::Oip => {
            let found = parse::<Outputs>(body)?.outputs.into_iter().find(|output| output.name == "SCORE");
            found.ok_or("there is no output SCORE")?.data.into_iter().enumerate().collect()
        }
    };
    if rows.len() != documents {
        return Err(format!("{} scores for {documents} documents", rows.len()));
    }
    let mut scores = vec![None; documents];
    for (index, score) in rows {
        let slot = scores.get_mut(index).ok_or_else(|| format!("index {index} of {documents} documents"))?;
        if slot.replace(score).is_some() {
            return Err(format!("two scores for index {index}"));
        }
    }
    Ok(scores.into_iter().flatten().collect())
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
                Dialect::VllmScore => format!(r#"{{"data":{}}}"#, rows("score")),
                Dialect::Nim => format!(r#"{{"rankings":{}}}"#, rows("logit")),
                Dialect::Oip => r#"{"outputs":[{"name":"SCORE","shape":[2],"data":[-1,2.5]}]}"#.to_owned(),
            };
            assert_eq!(scores(dialect, 2, answer.as_bytes()), Ok(vec![-1.0, 2.5]), "{}", dialect.name());
            assert!(scores(dialect, 3, answer.as_bytes()).is_err(), "{}", dialect.name());
            assert!(scores(dialect, 2, b"{}").is_err(), "{}", dialect.name());
        }
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
            let error = scores(Dialect::Tei, 2, answer.as_bytes()).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_model_goes_where_the_dialect_has_it() {
        let case = Case { query: "q".to_owned(), documents: vec!["a".to_owned()] };
        assert_eq!(path(Dialect::Oip, Some("a b/c")), "/v2/models/a%20b/c/infer");
        for dialect in Dialect::ALL {
            let body: Value = serde_json::from_slice(&body(dialect, Some("m"), &case)).unwrap();
            let named = !matches!(dialect, Dialect::Tei | Dialect::Oip);
            assert_eq!(body.get("model").is_some(), named, "{}", dialect.name());
        }
    }
}
