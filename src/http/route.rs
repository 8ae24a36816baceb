//! Finds the route of a request by method and path.

use crate::wire::{Dialect, ModelRef, Place};
use http::Method;

/// The route of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A request that ranks. The path decides the dialects.
    Rank(Place),
    Live,
    Ready,
    /// Health in Infinity's shape.
    Health,
    Metrics,
    Models,
    /// Infinity's list of models, with their load.
    ModelStats,
    /// vLLM's version.
    Version,
    /// TEI's `/tokenize` and `/decode`.
    Tokenize,
    Decode,
    /// Usage and cost, for the admin.
    Costs,
    OpenApi,
    /// TEI's description of the server.
    Info,
    /// The Open Inference Protocol's description of the server.
    OipServer,
    OipLive,
    OipReady,
    /// The Open Inference Protocol's description of a model.
    OipModel(ModelRef),
    /// Triton's configuration of a model.
    OipModelConfig(ModelRef),
    /// Whether a model is ready.
    OipModelReady(ModelRef),
    AdminDrain,
    /// The path exists for these other methods.
    WrongMethod {
        allow: &'static str,
        dialect: Dialect,
    },
    Unknown {
        dialect: Dialect,
    },
}

/// Finds the route of a request.
pub(super) fn route(method: &Method, path: &str) -> Route {
    let is_get = *method == Method::GET || *method == Method::HEAD;
    // All paths below `/v2` belong to the Open Inference Protocol, except Cohere's second version.
    let oip = path == "/v2" || path.starts_with("/v2/");
    let page_dialect = if oip { Dialect::Oip } else { Dialect::Podium };
    let (wanted, found, dialect) = match (Place::of(path), ModelRef::of(path)) {
        (Some(_), _) if path == "/" && is_get => (Method::GET, Route::Ready, Dialect::Tei),
        (Some(place), _) => {
            let dialect = place.dialect();
            (Method::POST, Route::Rank(place), dialect)
        }
        (None, Some((model, "ready"))) => (Method::GET, Route::OipModelReady(model), Dialect::Oip),
        (None, Some((model, "config"))) => (Method::GET, Route::OipModelConfig(model), Dialect::Oip),
        (None, Some((model, _))) => (Method::GET, Route::OipModel(model), Dialect::Oip),
        (None, None) => {
            let (method, page) = match path {
                "/health/live" => (Method::GET, Route::Live),
                "/health" => (Method::GET, Route::Health),
                "/health/ready" | "/ping" => (Method::GET, Route::Ready),
                "/metrics" => (Method::GET, Route::Metrics),
                "/v1/models" => (Method::GET, Route::Models),
                "/models" => (Method::GET, Route::ModelStats),
                "/v1/costs" => (Method::GET, Route::Costs),
                "/openapi.json" => (Method::GET, Route::OpenApi),
                "/info" => (Method::GET, Route::Info),
                "/version" => (Method::GET, Route::Version),
                "/tokenize" => (Method::POST, Route::Tokenize),
                "/decode" => (Method::POST, Route::Decode),
                "/v2" => (Method::GET, Route::OipServer),
                "/v2/health/live" => (Method::GET, Route::OipLive),
                "/v2/health/ready" => (Method::GET, Route::OipReady),
                "/admin/drain" => (Method::POST, Route::AdminDrain),
                _ => return Route::Unknown { dialect: page_dialect },
            };
            (method, page, page_dialect)
        }
    };
    match *method == wanted || (is_get && wanted == Method::GET) {
        true => found,
        false if wanted == Method::POST => Route::WrongMethod { allow: "POST", dialect },
        false => Route::WrongMethod { allow: "GET, HEAD", dialect },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_description_is_routed() {
        let document: serde_json::Value = serde_json::from_slice(crate::wire::openapi()).unwrap();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys().filter(|key| *key != "parameters") {
                let method: Method = method.to_uppercase().parse().unwrap();
                let found = route(&method, &path.replace("{model}", "m"));
                let routed = !matches!(found, Route::Unknown { .. } | Route::WrongMethod { .. });
                assert!(routed, "{method} {path}: {found:?}");
            }
        }
    }

    #[test]
    fn paths_and_methods_find_their_way() {
        let model = || ModelRef { name: "a/b".to_owned(), version: Some("3".to_owned()) };
        let rank = |path| Route::Rank(Place::of(path).unwrap());
        let wrong = |allow, dialect| Route::WrongMethod { allow, dialect };
        let rows = [
            (Method::POST, "/v1/rank", rank("/v1/rank")),
            (Method::GET, "/v1/rank", wrong("POST", Dialect::Podium)),
            (Method::GET, "/score", wrong("POST", Dialect::VllmScore)),
            (Method::HEAD, "/health/ready", Route::Ready),
            (Method::POST, "/metrics", wrong("GET, HEAD", Dialect::Podium)),
            (Method::POST, "/v2/models/a%2Fb/versions/3/infer", rank("/v2/models/a/b/versions/3/infer")),
            (Method::GET, "/v2/models/a%2Fb/versions/3", Route::OipModel(model())),
            (Method::GET, "/v2/models/a/b/versions/3/ready", Route::OipModelReady(model())),
            (Method::GET, "/v2/models/a/b/versions/3/config", Route::OipModelConfig(model())),
            (Method::POST, "/v2/models/m", wrong("GET, HEAD", Dialect::Oip)),
            (Method::GET, "/v2/models", Route::Unknown { dialect: Dialect::Oip }),
            (Method::GET, "/v2x", Route::Unknown { dialect: Dialect::Podium }),
            (Method::GET, "/nowhere", Route::Unknown { dialect: Dialect::Podium }),
            // TEI's root path, and SageMaker's paths.
            (Method::GET, "/", Route::Ready),
            (Method::POST, "/", rank("/")),
            (Method::GET, "/ping", Route::Ready),
            (Method::POST, "/invocations", rank("/invocations")),
            (Method::GET, "/version", Route::Version),
            (Method::GET, "/models", Route::ModelStats),
        ];
        for (method, path, expected) in rows {
            assert_eq!(route(&method, path), expected, "{method} {path}");
        }
    }
}
