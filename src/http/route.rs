//! Finds the route of a request by method and path.

use crate::wire::repository::RepositoryPath;
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
    /// Triton's repository extension.
    Repository(RepositoryPath),
    AdminDrain,
    AdminRoutes,
    /// Makes live on a route what was before.
    AdminRollback(String),
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
    let (get, post) = (page(path), action(path));
    // All paths below `/v2` belong to the Open Inference Protocol, except Cohere's second version.
    let oip = path == "/v2" || path.starts_with("/v2/");
    let dialect = match &post {
        Some(Route::Rank(place)) => place.dialect(),
        _ if oip => Dialect::Oip,
        _ => Dialect::Podium,
    };
    let allow = match (&get, &post) {
        (None, None) => return Route::Unknown { dialect },
        (Some(_), None) => "GET, HEAD",
        (None, Some(_)) => "POST",
        (Some(_), Some(_)) => "GET, HEAD, POST",
    };
    let found = match *method {
        Method::GET | Method::HEAD => get,
        Method::POST => post,
        _ => None,
    };
    found.unwrap_or(Route::WrongMethod { allow, dialect })
}

/// The route of `GET`.
fn page(path: &str) -> Option<Route> {
    Some(match path {
        "/health/live" => Route::Live,
        "/health" => Route::Health,
        "/health/ready" | "/ping" | "/" => Route::Ready,
        "/metrics" => Route::Metrics,
        "/v1/models" => Route::Models,
        "/models" => Route::ModelStats,
        "/v1/costs" => Route::Costs,
        "/openapi.json" => Route::OpenApi,
        "/info" => Route::Info,
        "/version" => Route::Version,
        "/admin/routes" => Route::AdminRoutes,
        "/v2" => Route::OipServer,
        "/v2/health/live" => Route::OipLive,
        "/v2/health/ready" => Route::OipReady,
        _ => match ModelRef::of(path)? {
            (_, "infer") => return None,
            (model, "ready") => Route::OipModelReady(model),
            (model, "config") => Route::OipModelConfig(model),
            (model, _) => Route::OipModel(model),
        },
    })
}

/// The route of `POST`.
fn action(path: &str) -> Option<Route> {
    match path {
        "/tokenize" => Some(Route::Tokenize),
        "/decode" => Some(Route::Decode),
        "/admin/drain" => Some(Route::AdminDrain),
        _ => RepositoryPath::of(path)
            .map(Route::Repository)
            .or_else(|| rollback(path))
            .or_else(|| Place::of(path).map(Route::Rank)),
    }
}

/// `/admin/routes/{route}/rollback`
fn rollback(path: &str) -> Option<Route> {
    let route = path.strip_prefix("/admin/routes/")?.strip_suffix("/rollback")?;
    let route = percent_encoding::percent_decode_str(route).decode_utf8_lossy();
    (!route.is_empty()).then(|| Route::AdminRollback(route.into_owned()))
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
    fn allow_names_every_method_that_the_path_has() {
        let document: serde_json::Value = serde_json::from_slice(crate::wire::openapi()).unwrap();
        for (path, described) in document["paths"].as_object().unwrap() {
            let path = path.replace("{model}", "m");
            let Route::WrongMethod { allow, .. } = route(&Method::OPTIONS, &path) else {
                panic!("{path} has no OPTIONS");
            };
            for (key, name) in [("get", "GET"), ("post", "POST")] {
                let is_described = described.get(key).is_some();
                assert_eq!(allow.split(", ").any(|method| method == name), is_described, "{path}: {allow}");
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
            (Method::OPTIONS, "/", wrong("GET, HEAD, POST", Dialect::Tei)),
            (Method::OPTIONS, "/v1/rerank", wrong("POST", Dialect::Cohere)),
            (Method::OPTIONS, "/info", wrong("GET, HEAD", Dialect::Podium)),
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
