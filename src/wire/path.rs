//! A request's path, parsed once.

use super::Dialect;

/// A path of a dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The path as in `Spec::paths`.
    pub(super) path: &'static str,
    /// The model in a path of the Open Inference Protocol.
    pub(super) model: Option<ModelRef>,
}

/// A model, and optionally its version, as a path names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    /// The model's name; may have slashes.
    pub name: String,
    /// The version, if the path has one.
    pub version: Option<String>,
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
