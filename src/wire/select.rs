//! Selects the dialect of a request by its path and its body's fields.

use super::fields::Fields;
use super::{Dialect, Place};
use serde::{Deserialize, Serialize};

/// Pins a path that several dialects share to one of them. Without a pin the body's fields select the dialect.
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
    /// Names the key and its possible values.
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

/// Selects the dialect of a body, and the other dialects of the path that can read it.
///
/// The dialect is the one that has the body's name for the candidates and knows the most of the body's fields; among equals
/// the first in [`Dialect`].
pub(super) fn select(place: &Place, fields: &Fields, pins: &Pins) -> (Dialect, Vec<Dialect>) {
    let pin = match place.path {
        "/rerank" => pins.rerank,
        "/v1/rerank" => pins.v1_rerank,
        "/v2/rerank" => pins.v2_rerank,
        _ => None,
    };
    if let Some(pin) = pin {
        return (pin, Vec::new());
    }
    let misfit = |dialect: &Dialect| {
        let spec = dialect.spec();
        (!fields.has(spec.theirs("documents")), fields.foreign(spec.fields))
    };
    let all = || Dialect::ALL.into_iter().filter(|dialect| dialect.spec().paths.contains(&place.path));
    let least = all().map(|dialect| misfit(&dialect)).min();
    let mut best = all().filter(|dialect| Some(misfit(dialect)) == least);
    let first = best.next().expect("a place is a path of a dialect");
    (first, best.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_select_where_a_path_serves_several() {
        let rows = [
            ("/rerank", r#"{"query": "q", "texts": []}"#, Dialect::Tei, false),
            // LiteLLM, `rerankers`, SGLang's and llama.cpp's clients send these fields with texts.
            (
                "/rerank",
                r#"{"query": "q", "texts": [], "raw_scores": false, "top_n": 3}"#,
                Dialect::Tei,
                false,
            ),
            (
                "/rerank",
                r#"{"model": "m", "query": "q", "texts": [], "top_n": 3, "return_text": true}"#,
                Dialect::Tei,
                false,
            ),
            ("/rerank", r#"{"query": "q", "texts": [], "top_k": 3}"#, Dialect::Tei, false),
            ("/rerank", r#"{"query": "q", "texts": [], "return_documents": true}"#, Dialect::Tei, false),
            // TEI's clients get TEI's error if `texts` is missing.
            ("/rerank", r#"{"query": "q", "truncate": true}"#, Dialect::Tei, false),
            ("/rerank", r#"{"query": "q", "return_text": true, "raw_scores": true}"#, Dialect::Tei, false),
            ("/rerank", r#"{"query": "q", "documents": []}"#, Dialect::Vllm, true),
            // LiteLLM's clients of vLLM and of Infinity send the same.
            ("/rerank", r#"{"model": "m", "query": "q", "documents": [], "top_n": 2}"#, Dialect::Vllm, true),
            ("/rerank", r#"{"query": "q", "documents": [], "return_documents": true}"#, Dialect::Vllm, true),
            (
                "/rerank",
                r#"{"query": "q", "documents": [], "return_documents": true, "truncate_prompt_tokens": 9}"#,
                Dialect::Vllm,
                false,
            ),
            ("/rerank", r#"{"query": "q", "documents": [], "raw_scores": true}"#, Dialect::Infinity, false),
            (
                "/rerank",
                r#"{"query": "q", "documents": [], "return_documents": false, "raw_scores": false}"#,
                Dialect::Infinity,
                false,
            ),
            ("/v1/rerank", r#"{"documents": [], "top_k": null}"#, Dialect::Voyage, false),
            ("/v1/rerank", r#"{"documents": [], "truncation": true}"#, Dialect::Voyage, false),
            ("/v1/rerank", r#"{"documents": [], "top_n": 3}"#, Dialect::Cohere, true),
            ("/v1/rerank", r#"{"documents": [], "truncate_prompt_tokens": 3}"#, Dialect::Vllm, false),
            ("/v1/rerank", r#"{"documents": [], "rank_fields": ["a"]}"#, Dialect::Cohere, false),
            ("/v2/rerank", r#"{"documents": [], "max_tokens_per_doc": 3}"#, Dialect::CohereV2, true),
            ("/v2/rerank", r#"{"documents": [], "return_documents": true}"#, Dialect::CohereV2, true),
            ("/v2/rerank", r#"{"documents": [], "truncate_prompt_tokens": 3}"#, Dialect::Vllm, false),
        ];
        for (path, body, expected, shared) in rows {
            let fields = Fields::parse(body.as_bytes()).unwrap();
            let place = Place::of(path).unwrap();
            let (found, others) = select(&place, &fields, &Pins::default());
            assert_eq!((found, !others.is_empty()), (expected, shared), "{path} {body}");
        }
    }

    #[test]
    fn a_pin_wins_over_the_fields() {
        let pins = Pins { rerank: Some(Dialect::Infinity), ..Pins::default() };
        let fields = Fields::parse(br#"{"texts": []}"#).unwrap();
        assert_eq!(select(&Place::of("/rerank").unwrap(), &fields, &pins), (Dialect::Infinity, Vec::new()));
        assert_eq!(pins.check(), Ok(()));
        let pins = Pins {
            rerank: Some(Dialect::Vllm),
            v1_rerank: Some(Dialect::Jina),
            v2_rerank: Some(Dialect::CohereV2),
        };
        assert_eq!(pins.check(), Ok(()));
        for (path, expected) in [
            ("/rerank", Dialect::Vllm),
            ("/v1/rerank", Dialect::Jina),
            ("/v2/rerank", Dialect::CohereV2),
            // A path that no pin is for.
            ("/v1/rank", Dialect::Podium),
        ] {
            let fields = Fields::parse(br#"{"truncate_prompt_tokens": 9}"#).unwrap();
            assert_eq!(select(&Place::of(path).unwrap(), &fields, &pins).0, expected, "{path}");
        }
        for (pins, expected) in [
            (
                Pins { v1_rerank: Some(Dialect::Tei), ..Pins::default() },
                "v1_rerank: `tei` has no such path; cohere, jina, voyage, vllm have",
            ),
            (
                Pins { v2_rerank: Some(Dialect::Jina), ..Pins::default() },
                "v2_rerank: `jina` has no such path; cohere_v2, vllm have",
            ),
        ] {
            assert_eq!(pins.check(), Err(expected.to_owned()));
        }
        let error = Pins { rerank: Some(Dialect::Nim), ..Pins::default() }.check().unwrap_err();
        assert_eq!(error, "rerank: `nim` has no such path; vllm, tei, infinity have");
    }
}
