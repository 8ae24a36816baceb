//! A request's path, parsed once.

use super::Dialect;

/// A path that ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As the dialects' rows have it.
    pub(super) path: &'static str,
    /// What it names, in the Open Inference Protocol.
    pub(super) model: Option<ModelRef>,
}

/// A model and maybe a version of it, as a path names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    /// The model's name; may have slashes.
    pub name: String,
    /// The version, where the path has one.
    pub version: Option<String>,
}

/// What can be asked of a model, after its name.
const VERBS: [&str; 3] = ["infer", "ready", "config"];

impl Place {
    /// The place of a path; none for a path that ranks nothing.
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

    /// The version that the path asks for.
    pub fn version(&self) -> Option<&str> {
        self.model.as_ref()?.version.as_deref()
    }

    /// The path, as the dialects' rows have it.
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// The dialect, as far as the path alone tells: the first that has it.
    pub fn dialect(&self) -> Dialect {
        let has = |dialect: &Dialect| dialect.spec().paths.contains(&self.path);
        Dialect::ALL.into_iter().find(has).expect("a place is a path of a dialect")
    }
}

impl ModelRef {
    /// Splits `/v2/models/{model}[/versions/{version}][/{verb}]`; the verb is empty where there is none.
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
