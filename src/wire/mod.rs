//! Floor 2: the dialects. Decodes bytes to a [`Request`] and encodes an [`Outcome`] to bytes, without I/O.
//!
//! | file | contents |
//! |---|---|
//! | `podium` | our own `/v1/rank` |
//! | `cohere` | `/v1/rerank`, `/v2/rerank` |
//! | `jina`, `voyage` | `/v1/rerank` |
//! | `tei` | `/rerank` with `texts`, `/`, `/invocations`, `/predict` |
//! | `vllm` | `/rerank`, `/v1/rerank`, `/v2/rerank`, `/score`, `/v1/score` |
//! | `infinity` | `/rerank` |
//! | `nim` | `/v1/ranking` |
//! | `oip` | `/v2/models/{model}/infer`, JSON and binary tensors |
//! | `repository` | `/v2/repository/...`: Triton's extension that lists, loads and unloads models |
//! | `select` | selects the dialect of a body on a path that several dialects share |
//! | `settings` | the configuration: limits, paths and pins |
//! | `spec` | the definition of a dialect: a file with a constant `SPEC`, and a row of [`Dialect`] |
//! | `path` | a request's path, parsed |
//! | `ask` | the dialects from the client's side |
//! | `fields` | a body's fields, read once for all JSON dialects |
//! | `truncation` | truncation by our own fields and by headers |
//! | `declare` | the receipt in headers and bodies |
//! | `error` | errors, in each dialect's shape |

mod ask;
mod cohere;
mod declare;
mod error;
mod fields;
mod infinity;
mod jina;
mod nim;
mod oip;
mod openapi;
mod path;
mod podium;
pub mod repository;
mod select;
mod settings;
mod spec;
mod tei;
#[cfg(test)]
mod tests;
mod truncation;
mod vllm;
mod voyage;

pub use crate::base::ModelRef;
pub use ask::Ask;
pub use error::{ApiError, Code, encode_error};
pub use fields::whole;
pub use openapi::openapi;
pub use path::Place;
pub use select::Pins;
pub use settings::Settings;
pub use tei::LABEL;

use crate::rerank::{Outcome, Ranked, Refusal, Request, ScoreForm, rank, sigmoid};
use fields::Fields;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use select::select;
use serde::{Deserialize, Serialize};
use spec::{Read, Spec, Written};
use std::sync::Arc;

macro_rules! dialects {
    ($($(#[$doc:meta])* $name:ident = $spec:path,)*) => {
        /// A wire contract.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Dialect {
            $($(#[$doc])* $name,)*
        }

        impl Dialect {
            /// All dialects.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];

            const fn spec(self) -> &'static Spec {
                match self {
                    $(Self::$name => &$spec,)*
                }
            }

            /// The stable name that labels use.
            pub const fn name(self) -> &'static str {
                self.spec().name
            }
        }
    };
}

// Until the body is read, a path's dialect is the first that has the path.
dialects! {
    /// Our own.
    Podium = podium::SPEC,
    /// Cohere's first version; unless pinned, answers with Jina's and vLLM's fields as well.
    Cohere = cohere::V1,
    /// Cohere's second version.
    CohereV2 = cohere::V2,
    /// Jina's.
    Jina = jina::SPEC,
    /// Voyage's.
    Voyage = voyage::SPEC,
    /// vLLM's rerank.
    Vllm = vllm::RERANK,
    /// vLLM's score.
    VllmScore = vllm::SCORE,
    /// Text Embeddings Inference's rerank.
    Tei = tei::RERANK,
    /// Its predict, of pairs.
    TeiPredict = tei::PREDICT,
    /// Infinity's.
    Infinity = infinity::SPEC,
    /// NVIDIA NIM's.
    Nim = nim::SPEC,
    /// The Open Inference Protocol, version 2.
    Oip = oip::SPEC,
}

/// A decoded request, with the shape of its answer.
#[derive(Debug)]
pub struct Decoded {
    /// The request.
    pub request: Arc<Request>,
    /// The shape of the answer.
    pub reply: Reply,
    /// Ignored fields and converted values, for `x-podium-warning`.
    pub warnings: Vec<String>,
}

/// The shape of a request's answer.
#[derive(Debug)]
pub struct Reply {
    dialect: Dialect,
    /// The documents' own ids, if the dialect returns them.
    ids: Vec<Option<String>>,
    /// Whether the answer is that of one pair instead of a list.
    single: bool,
    /// Our names of fields and the body's, if the dialect has several.
    names: Vec<(&'static str, &'static str)>,
    /// The other dialects of the path that can read the request.
    shared: Vec<Dialect>,
    /// The outputs that a request of the Open Inference Protocol wants.
    oip: Option<oip::Wanted>,
}

/// The id and time of an answer.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// The request's id, hexadecimal.
    pub id: String,
    /// Seconds since 1970.
    pub created_unix: u64,
}

/// An encoded answer.
#[derive(Debug)]
pub struct Encoded {
    /// The status.
    pub status: StatusCode,
    /// The content type.
    pub content_type: &'static str,
    /// Our headers and the dialect's.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Decodes a request in the dialect that its path and fields select.
///
/// # Errors
/// The dialect of the answer, and an error that names the field and the limit.
pub fn decode(
    place: &Place,
    headers: &HeaderMap,
    body: &[u8],
    settings: &Settings,
) -> Result<Decoded, (Dialect, ApiError)> {
    let guess = place.dialect();
    let in_guess = |error| (guess, error);
    let (mut request, unknown, warnings, mut reply) = match &guess.spec().read {
        Read::Whole(read) => {
            let (request, unknown, wanted) = read(place, headers, body).map_err(in_guess)?;
            let reply = Reply { oip: Some(wanted), ..Reply::of(guess, Fields::default()) };
            (request, unknown, Vec::new(), reply)
        }
        Read::Fields(_) => {
            let mut fields = Fields::parse(body).map_err(in_guess)?;
            let (dialect, shared) = select(place, &fields, &settings.pins);
            fields.shared = shared;
            let Spec { read: Read::Fields(read), fields: known, .. } = dialect.spec() else {
                unreachable!("dialects that share a path have fields");
            };
            let unknown = fields.unknown(known);
            let request = read(&mut fields).map_err(|error| (dialect, error))?;
            let warnings = std::mem::take(&mut fields.warnings);
            (request, unknown, warnings, Reply::of(dialect, fields))
        }
    };
    let dialect = reply.dialect;
    let in_dialect = |error: ApiError| (dialect, error);
    if let Some(unknown) = unknown.first().filter(|_| settings.strict) {
        return Err(in_dialect(ApiError::invalid(unknown, "is not a field of this endpoint")));
    }
    fields::options(headers, &mut request.options).map_err(in_dialect)?;
    truncation::headers(headers, &mut request.truncation).map_err(in_dialect)?;
    if let Some(instruction) = fields::instruction(headers).map_err(in_dialect)? {
        request.instruction = Some(instruction);
        reply.names.insert(0, ("instruction", fields::INSTRUCTION));
    }
    let limit = dialect.spec().documents_max.min(settings.documents_max);
    if request.documents.len() > limit {
        let found = request.documents.len();
        let error = ApiError::invalid("documents", format!("{found} are given, and the limit is {limit}"));
        let error = ApiError { code: Code::TooMany, ..error };
        return Err(in_dialect(reply.named(error)));
    }
    Ok(Decoded { request: Arc::new(request), reply, warnings: [warnings, told(&unknown)].concat() })
}

/// Most unknown fields that get a warning of their own: clients accept about 100 headers, and proxies 8 KiB.
const WARNINGS_MAX: usize = 8;

/// The warnings of unknown fields, at most [`WARNINGS_MAX`] and one with the number of the rest.
fn told(unknown: &[String]) -> Vec<String> {
    let one = |field: &String| format!("unknown field `{field}` was ignored");
    let more = unknown.len().saturating_sub(WARNINGS_MAX);
    let rest = (more > 0).then(|| format!("{more} more unknown fields were ignored"));
    unknown.iter().take(WARNINGS_MAX).map(one).chain(rest).collect()
}

impl Reply {
    fn of(dialect: Dialect, fields: Fields) -> Self {
        let Fields { ids, single, names, shared, .. } = fields;
        Self { dialect, ids, single, names, shared, oip: None }
    }

    /// The dialect that was selected.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Encodes an outcome.
    pub fn encode(
        &self,
        request: &Request,
        outcome: &Outcome,
        stamp: &Stamp,
        warnings: &[String],
    ) -> Encoded {
        let ranked = match rank(&outcome.scores, request.score, request.top_n) {
            Ok(ranked) => ranked,
            Err(error) => {
                return encode_error(
                    self.dialect,
                    &ApiError::new(Code::ModelFailed, error.to_string()),
                    stamp,
                );
            }
        };
        let answer = Answered { reply: self, request, outcome, ranked, stamp, warnings };
        let mut headers = declare::headers(&answer);
        let Written { content_type, headers: more, body } = (self.dialect.spec().write)(&answer);
        headers.extend(more);
        Encoded { status: StatusCode::OK, content_type, headers, body }
    }

    /// A refusal with the dialect's names of fields.
    pub fn error(&self, refusal: &Refusal) -> ApiError {
        self.named(ApiError::from(refusal))
    }

    fn named(&self, error: ApiError) -> ApiError {
        error.named(&[self.names.as_slice(), self.dialect.spec().names].concat())
    }
}

/// The data of an answer's body.
struct Answered<'a> {
    reply: &'a Reply,
    request: &'a Request,
    outcome: &'a Outcome,
    ranked: Vec<Ranked>,
    stamp: &'a Stamp,
    warnings: &'a [String],
}

impl Answered<'_> {
    /// The model that the caller named, because clients compare it with their request; else the one that answered. The
    /// receipt always names the one that answered.
    fn model(&self) -> &str {
        self.request.model.as_deref().unwrap_or(&self.outcome.receipt.model)
    }

    fn tokens(&self) -> u64 {
        self.outcome.tokens.0
    }

    /// Scores in the caller's order.
    fn scores(&self) -> impl Iterator<Item = f32> {
        let logit = self.request.score == ScoreForm::Logit;
        self.outcome.scores.iter().map(move |&score| if logit { score } else { sigmoid(score) })
    }

    fn text(&self, ranked: Ranked) -> &str {
        &self.request.documents[ranked.index]
    }

    fn text_if_wanted(&self, ranked: Ranked) -> Option<&str> {
        self.request.return_documents.then(|| self.text(ranked))
    }

    /// The results as most dialects have them.
    fn relevances<'a, D>(&'a self, document: fn(&'a str) -> D) -> Vec<Relevance<D>> {
        let relevance = |&ranked: &Ranked| Relevance {
            index: ranked.index,
            relevance_score: ranked.score,
            document: self.text_if_wanted(ranked).map(document),
        };
        self.ranked.iter().map(relevance).collect()
    }
}

/// A result as most dialects have it.
#[derive(Serialize)]
struct Relevance<D> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<D>,
}

/// A document as several dialects return it.
#[derive(Serialize)]
struct TextObject<'a> {
    text: &'a str,
}

impl<'a> TextObject<'a> {
    fn of(text: &'a str) -> Self {
        Self { text }
    }
}

/// Tokens as several dialects count them.
#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

impl Usage {
    fn of(answer: &Answered) -> Self {
        Self { prompt_tokens: answer.tokens(), total_tokens: answer.tokens() }
    }
}

fn json(body: &impl Serialize) -> Vec<u8> {
    // Most answers fit, so that the buffer is not reallocated.
    let mut bytes = Vec::with_capacity(4_096);
    serde_json::to_writer(&mut bytes, body).expect("a body of strings and finite numbers is JSON");
    bytes
}
