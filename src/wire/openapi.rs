//! The description of the API at `/openapi.json`.

/// The document. A test decodes each of its examples.
pub fn openapi() -> &'static [u8] {
    include_bytes!("openapi.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Dialect, Place, Settings, decode};
    use http::HeaderMap;
    use serde_json::Value;

    #[test]
    fn our_own_dialect_is_described_field_by_field() {
        let document: Value = serde_json::from_slice(openapi()).unwrap();
        let content = &document["paths"]["/v1/rank"]["post"]["requestBody"]["content"];
        let described = content["application/json"]["schema"]["properties"].as_object().unwrap();
        let mut known: Vec<&str> = Dialect::Podium.spec().fields.to_vec();
        known.sort_unstable();
        let mut described: Vec<&str> = described.keys().map(String::as_str).collect();
        described.sort_unstable();
        assert_eq!(described, known);
    }

    #[test]
    fn every_example_decodes_without_a_warning() {
        let document: Value = serde_json::from_slice(openapi()).unwrap();
        let mut examples = 0;
        for (path, methods) in document["paths"].as_object().unwrap() {
            let content = &methods["post"]["requestBody"]["content"]["application/json"]["examples"];
            for (name, example) in content.as_object().into_iter().flatten() {
                let path = path.replace("{model}", "some-model");
                let body = serde_json::to_vec(&example["value"]).unwrap();
                let place = Place::of(&path).unwrap();
                let decoded = decode(&place, &HeaderMap::new(), &body, &Settings::default());
                let decoded = decoded.unwrap_or_else(|(_, error)| panic!("{path} {name}: {error:?}"));
                assert!(decoded.warnings.is_empty(), "{path} {name}: {:?}", decoded.warnings);
                assert_eq!(decoded.reply.dialect().name(), name, "{path}");
                examples += 1;
            }
        }
        assert!(examples >= 11, "{examples}");
    }
}
