//! Which dialect a path and a body's fields are in.

use super::fields::Fields;
use super::{Dialect, Place};
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
        let rows = [
            ("rerank", "/rerank", self.rerank),
            ("v1_rerank", "/v1/rerank", self.v1_rerank),
            ("v2_rerank", "/v2/rerank", self.v2_rerank),
        ];
        for (key, path, pin) in rows {
            let has = |dialect: &Dialect| dialect.spec().paths.contains(&path);
            if let Some(pin) = pin.filter(|pin| !has(pin)) {
                let names: Vec<&str> =
                    Dialect::ALL.into_iter().filter(has).map(|dialect| dialect.name()).collect();
                return Err(format!("{key}: `{}` has no such path; {} have", pin.name(), names.join(", ")));
            }
        }
        Ok(())
    }
}

/// The dialect of a body, where its path serves several.
pub(super) fn select(place: &Place, fields: &Fields, pins: &Pins) -> Dialect {
    let has = |field: &str| fields.has(field);
    match place.path {
        "/rerank" => pins.rerank.unwrap_or_else(|| match () {
            () if has("texts") => Dialect::Tei,
            // vLLM has neither field, and always gives the documents back.
            () if has("return_documents") || has("raw_scores") => Dialect::Infinity,
            () if has("documents") => Dialect::Vllm,
            () => Dialect::Infinity,
        }),
        "/v1/rerank" => pins.v1_rerank.unwrap_or_else(|| match () {
            () if has("top_k") || has("truncation") => Dialect::Voyage,
            () if has("truncate_prompt_tokens") => Dialect::Vllm,
            () => Dialect::Cohere,
        }),
        "/v2/rerank" => pins.v2_rerank.unwrap_or_else(|| match has("truncate_prompt_tokens") {
            true => Dialect::Vllm,
            false => Dialect::CohereV2,
        }),
        _ => place.dialect(),
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
            let place = Place::of(path).unwrap();
            assert_eq!(select(&place, &fields, &Pins::default()), expected, "{path} {body}");
        }
    }

    #[test]
    fn a_pin_wins_over_the_fields() {
        let pins = Pins { rerank: Some(Dialect::Infinity), ..Pins::default() };
        let fields = Fields::parse(br#"{"texts": []}"#).unwrap();
        assert_eq!(select(&Place::of("/rerank").unwrap(), &fields, &pins), Dialect::Infinity);
        let error = Pins { rerank: Some(Dialect::Nim), ..Pins::default() }.check().unwrap_err();
        assert_eq!(error, "rerank: `nim` has no such path; infinity, tei, vllm have");
    }
}
