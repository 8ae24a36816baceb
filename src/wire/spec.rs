//! What a dialect is: one row of data and functions, the constant `SPEC` of its file.

use super::ask::{Ask, Rows};
use super::error::{ApiError, Code, Failure};
use super::fields::Fields;
use super::oip::Wanted;
use super::path::Place;
use super::{Answered, json};
use crate::rerank::Request;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::Value;

/// Everything in which a dialect differs from the others.
pub(super) struct Spec {
    /// The stable name in configuration, labels and messages.
    pub name: &'static str,
    /// The paths that it answers on; our own client asks the first.
    pub paths: &'static [&'static str],
    /// The fields of its requests; a body's others are ignored with a warning.
    pub fields: &'static [&'static str],
    /// Our name and its name of what errors may blame, where the two differ.
    pub names: &'static [(&'static str, &'static str)],
    /// Most documents by the peer's own contract.
    pub documents_max: usize,
    /// Whether a request must name a model.
    pub needs_model: bool,
    /// Reads a request.
    pub read: Read,
    /// Writes an answer.
    pub write: fn(&Answered) -> Written,
    /// Writes an error's body.
    pub error: fn(&Failure) -> Value,
    /// The status of an error.
    pub status: fn(Code) -> StatusCode,
    /// The body of a request of our own client, without the model. Texts are not asked back for, where a
    /// dialect lets a client choose.
    pub ask: fn(&Ask) -> Value,
    /// Reads an answer in our own client: each document's index and score.
    pub scores: fn(&[u8]) -> Result<Rows, String>,
}

impl Spec {
    /// The dialect's name of a field of ours.
    pub fn theirs(&self, ours: &'static str) -> &'static str {
        self.names.iter().find(|(name, _)| *name == ours).map_or(ours, |(_, theirs)| theirs)
    }
}

/// How a request is read.
pub(super) enum Read {
    /// From the fields of a JSON object.
    Fields(fn(&mut Fields) -> Result<Request, ApiError>),
    /// From path, headers and body.
    Whole(fn(&Place, &HeaderMap, &[u8]) -> Result<Whole, ApiError>),
}

/// A request, the names in it that are unknown, and how its answer is wanted.
pub(super) type Whole = (Request, Vec<String>, Wanted);

/// An answer's body, and what its headers say of it.
pub(super) struct Written {
    pub content_type: &'static str,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Vec<u8>,
}

impl Written {
    pub fn json(body: &impl Serialize) -> Self {
        Self { content_type: "application/json", headers: Vec::new(), body: json(body) }
    }
}
