//! The definition of a dialect: data and functions, the constant `SPEC` of its file.

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

/// A dialect's data and functions.
pub(super) struct Spec {
    /// The stable name in configuration, labels and messages.
    pub name: &'static str,
    /// The paths. Our own client uses the first.
    pub paths: &'static [&'static str],
    /// The fields of its requests. Other fields are ignored with a warning.
    pub fields: &'static [&'static str],
    /// Our name and its name of each field that errors name, if the two differ.
    pub names: &'static [(&'static str, &'static str)],
    /// Most documents of a request, by the peer's contract.
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
    /// The body of our own client's request, without the model. It asks for no documents in the answer, if the dialect
    /// allows that.
    pub ask: fn(&Ask) -> Value,
    /// Reads each document's index and score from an answer, for our own client.
    pub scores: fn(&[u8]) -> Result<Rows, String>,
}

impl Spec {
    /// The dialect's name of our field.
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

/// A request, its unknown fields, and the outputs that it wants.
pub(super) type Whole = (Request, Vec<String>, Wanted);

/// An answer's body, with its content type and headers.
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
