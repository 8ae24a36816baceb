//! Which dialect a path and a body's fields are in.

use super::Dialect;
use super::fields::Fields;
use serde::{Deserialize, Serialize};

/// Dialects of the paths that serve several; without a pin the fields select.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pins {
    /// `/rerank`: `tei`, `infinity` or `vllm`.
    pub rerank: Option<Dialect>,
    /// `/v1/rerank`: `cohere`, `jina`, `voyage` or `vllm`.
    pub v1_rerank: Option<Dialect>,
    /// `/v2/rerank`: `cohere_v2` or `vllm`.
    pub v2_rerank: Option<Dialect>,
}

impl Pins {
    /// Checks that each path is pinned to a dialect that has it.
    ///
    /// # Errors
    /// Names the key and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let rows: [(&str, Option<Dialect>, &[Dialect]); 3] = [
            ("rerank", self.rerank, &[Dialect::Tei, Dialect::Infinity, Dialect::Vllm]),
            ("v1_rerank", self.v1_rerank, &[Dialect::Cohere, Dialect::Jina, Dialect::Voyage, Dialect::Vllm]),
            ("v2_rerank", self.v2_rerank, &[Dialect::CohereV2, Dialect::Vllm]),
        ];
        for (key, pin, allowed) in rows {
            if let Some(pin) = pin.filter(|pin| !allowed.contains(pin)) {
                let names: Vec<&str> = allowed.iter().map(|dialect| dialect.name()).collect();
                return Err(format!("{key}: `{}` has no such path; {} have", pin.name(), names.join(", ")));
            }
        }
        Ok(())
    }
}

/// The dialect of a path, as far as it alone tells; none for a path that ranks nothing.
pub fn dialect_of(path: &str) -> Option<Dialect> {
    match path {
        "/v1/rank" => Some(Dialect::Podium),
        "/v1/rerank" => Some(Dialect::Cohere),
        "/v2/rerank" => Some(Dialect::CohereV2),
        "/rerank" => Some(Dialect::Infinity),
        "/score" | "/v1/score" => Some(Dialect::VllmScore),
        "/v1/ranking" => Some(Dialect::Nim),
        _ if path.starts_with("/v2/models/") && path.ends_with("/infer") => Some(Dialect::Oip),
        _ => None,
    }
}

/// The dialect of a body, where its path serves several.
pub(super) fn select(path: &str, fields: &Fields, pins: &Pins) -> Option<Dialect> {
    let has = |field: &str| fields.has(field);
    match path {
        "/rerank" => pins.rerank.or_else(|| {
            Some(match () {
                () if has("texts") => Dialect::Tei,
                // vLLM has neither field, and always gives the documents back.
                () if has("return_documents") || has("raw_scores") => Dialect::Infinity,
                () if has("documents") => Dialect::Vllm,
                () => Dialect::Infinity,
            })
        }),
        "/v1/rerank" => pins.v1_rerank.or_else(|| {
            Some(match () {
                () if has("top_k") || has("truncation") => Dialect::Voyage,
                () if has("truncate_prompt_tokens") => Dialect::Vllm,
                () => Dialect::Cohere,
            })
        }),
        "/v2/rerank" => pins
            .v2_rerank
            .or_else(|| Some(if has("truncate_prompt_tokens") { Dialect::Vllm } else { Dialect::CohereV2 })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_select_where_a_path_serves_several() {
        let rows = [
            ("/rerank", r#"{"query": "q", "texts": []}"#, Dialect::Tei),
            ("/rerank", r#"{"query": "q", "documents": []}"#, Dialect::Vllm),
            ("/rerank", r#"{"query": "q", "documents": [], "raw_scores": true}"#, Dialect::Infinity),
            ("/rerank", r#"{"query": "q", "documents": [], "return_documents": false}"#, Dialect::Infinity),
            ("/v1/rerank", r#"{"documents": [], "top_k": null}"#, Dialect::Voyage),
            ("/v1/rerank", r#"{"documents": [], "truncation": true}"#, Dialect::Voyage),
            ("/v1/rerank", r#"{"documents": [], "top_n": 3}"#, Dialect::Cohere),
            ("/v1/rerank", r#"{"documents": [], "truncate_prompt_tokens": 3}"#, Dialect::Vllm),
            ("/v2/rerank", r#"{"documents": []}"#, Dialect::CohereV2),
        ];
        for (path, body, expected) in rows {
            let fields = Fields::parse(body.as_bytes()).unwrap();
            assert_eq!(select(path, &fields, &Pins::default()), Some(expected), "{path} {body}");
        }
    }

    #[test]
    fn a_pin_wins_over_the_fields() {
        let pins = Pins { rerank: Some(Dialect::Infinity), ..Pins::default() };
        let fields = Fields::parse(br#"{"texts": []}"#).unwrap();
        assert_eq!(select("/rerank", &fields, &pins), Some(Dialect::Infinity));
        let error = Pins { rerank: Some(Dialect::Nim), ..Pins::default() }.check().unwrap_err();
        assert_eq!(error, "rerank: `nim` has no such path; tei, infinity, vllm have");
    }
}
