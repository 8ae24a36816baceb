//! Floor 2: the dialects. Bytes in, a [`Request`] out; an outcome in, bytes out; no I/O.
//!
//! | file | what it speaks |
//! |---|---|
//! | `podium` | our own `/v1/rank` |
//! | `cohere` | `/v1/rerank`, `/v2/rerank` |
//! | `jina`, `voyage` | `/v1/rerank` |
//! | `tei` | `/rerank` with `texts` |
//! | `vllm` | `/rerank`, `/v1/rerank`, `/v2/rerank`, `/score`, `/v1/score` |
//! | `infinity` | `/rerank` |
//! | `nim` | `/v1/ranking` |
//! | `oip` | `/v2/models/{model}/infer`, JSON and binary tensors |
//! | `select` | which of them a body is in, where a path serves several |
//! | `fields` | a body's fields, read once for all JSON dialects |
//! | `truncation` | what is cut, by our own fields and by headers |
//! | `declare` | the receipt, in headers and in bodies that have room |
//! | `error` | errors, in each dialect's shape |

mod cohere;
mod declare;
mod error;
mod fields;
mod infinity;
mod jina;
mod nim;
mod oip;
mod openapi;
mod podium;
mod select;
mod tei;
#[cfg(test)]
mod tests;
mod truncation;
mod vllm;
mod voyage;

pub use error::{ApiError, Code, encode_error};
pub use openapi::openapi;
pub use select::{Pins, dialect_of};

use crate::rerank::{Outcome, Ranked, Refusal, Request, rank};
use fields::Fields;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A wire contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// Our own.
    Podium,
    /// Cohere's first version; unless pinned, answers with Jina's and vLLM's fields as well.
    Cohere,
    /// Cohere's second version.
    CohereV2,
    /// Jina's.
    Jina,
    /// Voyage's.
    Voyage,
    /// Text Embeddings Inference's.
    Tei,
    /// vLLM's rerank.
    Vllm,
    /// vLLM's score.
    VllmScore,
    /// Infinity's.
    Infinity,
    /// NVIDIA NIM's.
    Nim,
    /// The Open Inference Protocol, version 2.
    Oip,
}

impl Dialect {
    /// Every one.
    pub const ALL: [Self; 11] = [
        Self::Podium,
        Self::Cohere,
        Self::CohereV2,
        Self::Jina,
        Self::Voyage,
        Self::Tei,
        Self::Vllm,
        Self::VllmScore,
        Self::Infinity,
        Self::Nim,
        Self::Oip,
    ];

    /// The stable name that labels use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Podium => "podium",
            Self::Cohere => "cohere",
            Self::CohereV2 => "cohere_v2",
            Self::Jina => "jina",
            Self::Voyage => "voyage",
            Self::Tei => "tei",
            Self::Vllm => "vllm",
            Self::VllmScore => "vllm_score",
            Self::Infinity => "infinity",
            Self::Nim => "nim",
            Self::Oip => "oip",
        }
    }
}

/// What a server accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Most documents of a request. Bounds what one caller can ask for at once.
    pub documents_max: usize,
    /// Whether unknown fields are errors; else they are named in a warning.
    pub strict: bool,
    /// Dialects of the paths that serve several.
    pub pins: Pins,
}

impl Default for Settings {
    fn default() -> Self {
        Self { documents_max: 10_000, strict: false, pins: Pins::default() }
    }
}

/// A request and what its answer needs to know of it.
#[derive(Debug)]
pub struct Decoded {
    /// The request.
    pub request: Arc<Request>,
    /// The way back.
    pub reply: Reply,
    /// What was ignored; goes into `x-podium-warning`.
    pub warnings: Vec<String>,
}

/// The shape of a request's answer.
#[derive(Debug)]
pub struct Reply {
    dialect: Dialect,
    /// The documents' own ids, where the dialect has such.
    ids: Vec<Option<String>>,
    /// How the Open Inference Protocol's outputs were asked for.
    oip: Option<oip::Wanted>,
}

/// What makes one answer distinct.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// The request's id, hexadecimal.
    pub id: String,
    /// Seconds since 1970.
    pub created_unix: u64,
}

/// An answer's bytes.
#[derive(Debug)]
pub struct Encoded {
    /// Its status.
    pub status: StatusCode,
    /// Its type.
    pub content_type: &'static str,
    /// Headers of ours and of the dialect's.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Vec<u8>,
}

/// Reads a request in the dialect that its path and its fields select.
///
/// # Errors
/// The dialect to answer in, and an error that names the field and the limit.
pub fn decode(
    path: &str,
    headers: &HeaderMap,
    body: &[u8],
    settings: &Settings,
) -> Result<Decoded, (Dialect, ApiError)> {
    let guess = dialect_of(path).unwrap_or(Dialect::Podium);
    let in_guess = |error| (guess, error);
    let (dialect, mut request, warnings, ids, wanted) = if guess == Dialect::Oip {
        let (request, warnings, wanted) = oip::decode(path, headers, body).map_err(in_guess)?;
        (guess, request, warnings, Vec::new(), Some(wanted))
    } else {
        let mut fields = Fields::parse(body).map_err(in_guess)?;
        let dialect = select::select(path, &fields, &settings.pins).unwrap_or(guess);
        // Only our own answer gives ids back; elsewhere a document's `id` is one of its fields.
        let ids = match dialect {
            Dialect::Podium => fields.document_ids().map_err(|error| (dialect, error))?,
            _ => Vec::new(),
        };
        let known = known(dialect);
        let warnings = fields.unknown(known);
        let request = read(dialect, &mut fields).map_err(|error| (dialect, error))?;
        (dialect, request, warnings, ids, None)
    };
    let in_dialect = |error| (dialect, error);
    if let Some(unknown) = warnings.first().filter(|_| settings.strict) {
        return Err(in_dialect(ApiError::invalid(unknown, "is not a field of this endpoint")));
    }
    fields::options(headers, dialect, &mut request.options).map_err(in_dialect)?;
    truncation::headers(headers, &mut request.truncation).map_err(in_dialect)?;
    let limit = documents_max(dialect).min(settings.documents_max);
    if request.documents.len() > limit {
        let found = request.documents.len();
        let message = format!("{found} are given, and the limit is {limit}");
        return Err(in_dialect(ApiError::invalid(documents_field(dialect), message)));
    }
    let warnings = told(&warnings);
    Ok(Decoded { request: Arc::new(request), reply: Reply { dialect, ids, oip: wanted }, warnings })
}

/// Fields whose names go into headers: clients bear a hundred of those, and proxies 8 KiB.
const WARNINGS_MAX: usize = 8;

/// Warnings of fields that were ignored, as many as clients' bounds on headers bear.
fn told(unknown: &[String]) -> Vec<String> {
    let one = |field: &String| format!("unknown field `{field}` was ignored");
    let more = unknown.len().saturating_sub(WARNINGS_MAX);
    let rest = (more > 0).then(|| format!("{more} more unknown fields were ignored"));
    unknown.iter().take(WARNINGS_MAX).map(one).chain(rest).collect()
}

impl Reply {
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
        let answer = Answered { request, outcome, ranked, stamp, warnings };
        let mut headers = declare::headers(&answer);
        let (content_type, body) = match self.dialect {
            Dialect::Podium => ("application/json", json(&podium::body(&answer, &self.ids))),
            Dialect::Cohere => ("application/json", json(&cohere::body_v1(&answer))),
            Dialect::CohereV2 => ("application/json", json(&cohere::body_v2(&answer))),
            Dialect::Jina => ("application/json", json(&jina::body(&answer))),
            Dialect::Voyage => ("application/json", json(&voyage::body(&answer))),
            Dialect::Tei => ("application/json", json(&tei::body(&answer))),
            Dialect::Vllm => ("application/json", json(&vllm::rerank_body(&answer))),
            Dialect::VllmScore => ("application/json", json(&vllm::score_body(&answer))),
            Dialect::Infinity => ("application/json", json(&infinity::body(&answer))),
            Dialect::Nim => ("application/json", json(&nim::body(&answer))),
            Dialect::Oip => {
                let wanted = self.oip.as_ref().expect("a request of this protocol says what it wants");
                oip::encode(&answer, wanted, &mut headers)
            }
        };
        Encoded { status: StatusCode::OK, content_type, headers, body }
    }

    /// A refusal in the words of the dialect.
    pub fn error(&self, refusal: &Refusal) -> ApiError {
        ApiError::from(refusal).in_words_of(self.dialect)
    }
}

/// Everything that a body is made from.
struct Answered<'a> {
    request: &'a Request,
    outcome: &'a Outcome,
    ranked: Vec<Ranked>,
    stamp: &'a Stamp,
    warnings: &'a [String],
}

impl Answered<'_> {
    /// The model that the caller named, or the one that answered: clients compare it with what
    /// they sent. The receipt always names the one that answered.
    fn model(&self) -> &str {
        self.request.model.as_deref().unwrap_or(&self.outcome.receipt.model)
    }

    fn tokens(&self) -> u64 {
        self.outcome.tokens.0
    }

    fn text(&self, ranked: Ranked) -> &str {
        &self.request.documents[ranked.index]
    }

    fn text_if_wanted(&self, ranked: Ranked) -> Option<&str> {
        self.request.return_documents.then(|| self.text(ranked))
    }
}

/// A document as several dialects give it back.
#[derive(Serialize)]
struct TextObject<'a> {
    text: &'a str,
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
    // Most answers fit, and are not moved about while they grow.
    let mut bytes = Vec::with_capacity(4_096);
    serde_json::to_writer(&mut bytes, body).expect("a body of strings and finite numbers is JSON");
    bytes
}

fn read(dialect: Dialect, fields: &mut Fields) -> Result<Request, ApiError> {
    match dialect {
        Dialect::Podium => podium::request(fields),
        Dialect::Cohere => cohere::request_v1(fields),
        Dialect::CohereV2 => cohere::request_v2(fields),
        Dialect::Jina => jina::request(fields),
        Dialect::Voyage => voyage::request(fields),
        Dialect::Tei => tei::request(fields),
        Dialect::Vllm => vllm::rerank_request(fields),
        Dialect::VllmScore => vllm::score_request(fields),
        Dialect::Infinity => infinity::request(fields),
        Dialect::Nim => nim::request(fields),
        Dialect::Oip => unreachable!("its bodies are not flat fields"),
    }
}

fn known(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Podium => podium::KNOWN,
        Dialect::Cohere => cohere::KNOWN_V1,
        Dialect::CohereV2 => cohere::KNOWN_V2,
        Dialect::Jina => jina::KNOWN,
        Dialect::Voyage => voyage::KNOWN,
        Dialect::Tei => tei::KNOWN,
        Dialect::Vllm => vllm::KNOWN_RERANK,
        Dialect::VllmScore => vllm::KNOWN_SCORE,
        Dialect::Infinity => infinity::KNOWN,
        Dialect::Nim => nim::KNOWN,
        Dialect::Oip => oip::KNOWN,
    }
}

/// Most documents by the peer's own contract.
fn documents_max(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Voyage => 1_000,
        Dialect::Infinity => 2_048,
        Dialect::Podium
        | Dialect::Cohere
        | Dialect::CohereV2
        | Dialect::Jina
        | Dialect::Tei
        | Dialect::Vllm
        | Dialect::VllmScore
        | Dialect::Nim
        | Dialect::Oip => usize::MAX,
    }
}

/// The dialect's name for the candidates.
fn documents_field(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Tei => "texts",
        Dialect::Nim => "passages",
        Dialect::Oip => "PASSAGE",
        Dialect::Podium
        | Dialect::Cohere
        | Dialect::CohereV2
        | Dialect::Jina
        | Dialect::Voyage
        | Dialect::Vllm
        | Dialect::VllmScore
        | Dialect::Infinity => "documents",
    }
}
