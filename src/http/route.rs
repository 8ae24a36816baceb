//! From method and path to what is to be done.

use crate::wire::dialect_of;
use http::Method;

/// What a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Candidates in order; the dialect is the wire's business.
    Rank,
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
    OipModel {
        model: String,
        version: Option<String>,
    },
    /// Whether a model is ready.
    OipModelReady {
        model: String,
        version: Option<String>,
    },
    AdminDrain,
    /// The path has other methods, these.
    WrongMethod {
        allow: &'static str,
    },
    Unknown,
}

/// Finds the route of a request.
pub(super) fn route(method: &Method, path: &str) -> Route {
    let (wanted, found) = match path {
        _ if dialect_of(path).is_some() => (Method::POST, Route::Rank),
        "/health/live" | "/v2/health/live" => (Method::GET, Route::Live),
        "/health/ready" | "/health" | "/v2/health/ready" => (Method::GET, Route::Ready),
        "/metrics" => (Method::GET, Route::Metrics),
        "/v1/models" => (Method::GET, Route::Models),
        "/v1/costs" => (Method::GET, Route::Costs),
        "/openapi.json" => (Method::GET, Route::OpenApi),
        "/info" => (Method::GET, Route::Info),
        "/v2" | "/v2/" => (Method::GET, Route::OipServer),
        "/admin/drain" => (Method::POST, Route::AdminDrain),
        _ => match path.strip_prefix("/v2/models/").filter(|rest| !rest.is_empty()) {
            Some(rest) => (Method::GET, oip(rest)),
            None => return Route::Unknown,
        },
    };
    let head = *method == Method::HEAD && wanted == Method::GET;
    match *method == wanted || head {
        true => found,
        false if wanted == Method::POST => Route::WrongMethod { allow: "POST" },
        false => Route::WrongMethod { allow: "GET, HEAD" },
    }
}

/// `{model}[/versions/{version}][/ready]`; a model's name may have slashes.
fn oip(rest: &str) -> Route {
    let (rest, ready) = match rest.strip_suffix("/ready") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (model, version) = match rest.rsplit_once("/versions/") {
        Some((model, version)) => (decode(model), Some(decode(version))),
        None => (decode(rest), None),
    };
    if ready { Route::OipModelReady { model, version } } else { Route::OipModel { model, version } }
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
        let model = |model: &str, version: Option<&str>| (model.to_owned(), version.map(str::to_owned));
        let (m, v) = model("a/b", Some("3"));
        let rows = [
            (Method::POST, "/v1/rank", Route::Rank),
            (Method::GET, "/v1/rank", Route::WrongMethod { allow: "POST" }),
            (Method::HEAD, "/health/ready", Route::Ready),
            (Method::POST, "/metrics", Route::WrongMethod { allow: "GET, HEAD" }),
            (Method::POST, "/v2/models/a%2Fb/versions/3/infer", Route::Rank),
            (
                Method::GET,
                "/v2/models/a%2Fb/versions/3",
                Route::OipModel { model: m.clone(), version: v.clone() },
            ),
            (Method::GET, "/v2/models/a/b/versions/3/ready", Route::OipModelReady { model: m, version: v }),
            (Method::GET, "/v2/models/", Route::Unknown),
            (Method::GET, "/nowhere", Route::Unknown),
        ];
        for (method, path, expected) in rows {
            assert_eq!(route(&method, path), expected, "{method} {path}");
        }
    }
}
