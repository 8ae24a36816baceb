//! From method and path to what is to be done.

use crate::wire::{Dialect, ModelRef, Place};
use http::Method;

/// What a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Candidates in order; the dialect is the wire's business.
    Rank(Place),
    Live,
    Ready,
    Metrics,
    Models,
    /// Who used what, for the admin.
    Costs,
    OpenApi,
    /// TEI's description of what is served.
    Info,
    /// The Open Inference Protocol's description of the server.
    OipServer,
    /// Its description of a model.
    OipModel(ModelRef),
    /// Whether a model is ready.
    OipModelReady(ModelRef),
    AdminDrain,
    /// The path has other methods, these.
    WrongMethod {
        allow: &'static str,
        dialect: Dialect,
    },
    Unknown,
}

/// Finds the route of a request.
pub(super) fn route(method: &Method, path: &str) -> Route {
    let (wanted, found, dialect) = match (Place::of(path), ModelRef::of(path)) {
        (Some(place), _) => {
            let dialect = place.dialect();
            (Method::POST, Route::Rank(place), dialect)
        }
        (None, Some((model, "ready"))) => (Method::GET, Route::OipModelReady(model), Dialect::Podium),
        (None, Some((model, _))) => (Method::GET, Route::OipModel(model), Dialect::Podium),
        (None, None) => {
            let (method, page) = match path {
                "/health/live" | "/v2/health/live" => (Method::GET, Route::Live),
                "/health/ready" | "/health" | "/v2/health/ready" => (Method::GET, Route::Ready),
                "/metrics" => (Method::GET, Route::Metrics),
                "/v1/models" => (Method::GET, Route::Models),
                "/v1/costs" => (Method::GET, Route::Costs),
                "/openapi.json" => (Method::GET, Route::OpenApi),
                "/info" => (Method::GET, Route::Info),
                "/v2" | "/v2/" => (Method::GET, Route::OipServer),
                "/admin/drain" => (Method::POST, Route::AdminDrain),
                _ => return Route::Unknown,
            };
            (method, page, Dialect::Podium)
        }
    };
    let head = *method == Method::HEAD && wanted == Method::GET;
    match *method == wanted || head {
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
                let routed = !matches!(found, Route::Unknown | Route::WrongMethod { .. });
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
            (Method::GET, "/v2/models/", Route::Unknown),
            (Method::GET, "/nowhere", Route::Unknown),
        ];
        for (method, path, expected) in rows {
            assert_eq!(route(&method, path), expected, "{method} {path}");
        }
    }
}
