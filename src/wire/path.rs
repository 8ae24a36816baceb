//! A request's path, parsed once.

use super::Dialect;
use crate::base::ModelRef;

/// A path of a dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The path as in `Spec::paths`.
    pub(super) path: &'static str,
    /// The model in a path of the Open Inference Protocol.
    pub(super) model: Option<ModelRef>,
}

/// The last parts of paths below a model.
const VERBS: [&str; 3] = ["infer", "ready", "config"];

impl Place {
    /// The place of a path; none if no dialect has the path.
    pub fn of(path: &str) -> Option<Self> {
        let hosted = path.strip_prefix("/v1/retrieval/").and_then(|rest| rest.strip_suffix("/reranking"));
        let (path, model) = match (ModelRef::of(path), hosted) {
            (Some((model, "infer")), _) => ("/v2/models/{model}/infer", Some(model)),
            (Some(_), _) => return None,
            (None, Some(_)) => ("/v1/retrieval/{model}/reranking", None),
            (None, None) => (path, None),
        };
        let paths = Dialect::ALL.into_iter().flat_map(|dialect| dialect.spec().paths);
        paths.copied().find(|known| *known == path).map(|path| Self { path, model })
    }

    /// The version in the path.
    pub fn version(&self) -> Option<&str> {
        self.model.as_ref()?.version.as_deref()
    }

    /// The path as in `Spec::paths`.
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// The first dialect that has the path; the body may select another.
    pub fn dialect(&self) -> Dialect {
        let has = |dialect: &Dialect| dialect.spec().paths.contains(&self.path);
        Dialect::ALL.into_iter().find(has).expect("a place is a path of a dialect")
    }
}

impl ModelRef {
    /// Splits `/v2/models/{model}[/versions/{version}][/{verb}]`; the verb may be empty.
    pub fn of(path: &str) -> Option<(Self, &'static str)> {
        let rest = path.strip_prefix("/v2/models/").filter(|rest| !rest.is_empty())?;
        let verb = |verb: &'static str| Some((rest.strip_suffix(verb)?.strip_suffix('/')?, verb));
        let (rest, verb) = VERBS.into_iter().find_map(verb).unwrap_or((rest, ""));
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let model = match rest.rsplit_once("/versions/") {
            Some((name, version)) => Self { name: decode(name), version: Some(decode(version)) },
            None => Self { name: decode(rest), version: None },
        };
        Some((model, verb))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_of_a_dialect_with_its_model_and_version() {
        let infer = "/v2/models/{model}/infer";
        for (path, expected, model, version) in [
            ("/rerank", "/rerank", None, None),
            ("/v1/retrieval/nvidia/m/reranking", "/v1/retrieval/{model}/reranking", None, None),
            ("/v2/models/m/infer", infer, Some("m"), None),
            ("/v2/models/owner/m/versions/3/infer", infer, Some("owner/m"), Some("3")),
            ("/v2/models/owner%2Fm/versions/a%20b/infer", infer, Some("owner/m"), Some("a b")),
        ] {
            let place = Place::of(path).expect("the path ranks");
            assert_eq!((place.path(), place.version()), (expected, version), "{path}");
            assert_eq!(place.model.as_ref().map(|model| &*model.name), model, "{path}");
        }
        for path in ["", "/v1", "/rerank/", "/v2/models/m", "/v2/models/m/ready", "/v2/models/{model}/config"]
        {
            assert_eq!(Place::of(path), None, "{path}");
        }
    }

    #[test]
    fn a_model_s_path_ends_in_a_verb_or_none() {
        let of = |path| ModelRef::of(path).map(|(model, verb)| (model.name, model.version, verb));
        let row = |name: &str, version: Option<&str>, verb| {
            Some((name.to_owned(), version.map(str::to_owned), verb))
        };
        for (path, expected) in [
            ("/v2/models/m", row("m", None, "")),
            ("/v2/models/m/ready", row("m", None, "ready")),
            ("/v2/models/m/versions/1/config", row("m", Some("1"), "config")),
            ("/v2/models/m/versions/1", row("m", Some("1"), "")),
            // Only a whole last part is a verb.
            ("/v2/models/already", row("already", None, "")),
            ("/v2/models/infer", row("infer", None, "")),
            ("/v2/models/", None),
            ("/v2/models", None),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
    }
}
