//! Errors at the wire: a stable code, a status, and a body in the dialect's own shape.

use super::{Dialect, Encoded, Stamp};
use crate::base::Ns;
use crate::rerank::Refusal;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use serde_json::{Value, json};

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal, $status:ident, $openai:literal;)*) => {
        /// The kind of an error.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $code,)*
        }

        impl Code {
            /// The stable name in bodies and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$code => $name,)* }
            }

            /// The status, unless a dialect has its own.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$code => StatusCode::$status,)* }
            }

            /// The `type` in OpenAI's shape of errors.
            const fn openai_type(self) -> &'static str {
                match self { $(Self::$code => $openai,)* }
            }
        }
    };
}

codes! {
    /// The request is malformed or exceeds a limit.
    InvalidRequest = "invalid_request", BAD_REQUEST, "BadRequestError";
    /// A list is empty and must not be.
    Empty = "invalid_request", BAD_REQUEST, "BadRequestError";
    /// More documents than the limit.
    TooMany = "invalid_request", BAD_REQUEST, "BadRequestError";
    /// More tokens than the model reads, and the request forbids truncation.
    TooLong = "invalid_request", BAD_REQUEST, "BadRequestError";
    /// No key, or an unknown one.
    Unauthorized = "unauthorized", UNAUTHORIZED, "AuthenticationError";
    /// The key does not allow this request.
    Forbidden = "forbidden", FORBIDDEN, "PermissionDeniedError";
    /// No such path.
    NotFound = "not_found", NOT_FOUND, "NotFoundError";
    /// The path does not support the method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "BadRequestError";
    /// The body exceeds its limit.
    TooLarge = "too_large", PAYLOAD_TOO_LARGE, "BadRequestError";
    /// The body has a content encoding.
    UnsupportedMedia = "unsupported_media", UNSUPPORTED_MEDIA_TYPE, "BadRequestError";
    /// The body did not arrive in time.
    Timeout = "timeout", REQUEST_TIMEOUT, "BadRequestError";
    /// The named model is not served.
    UnknownModel = "unknown_model", NOT_FOUND, "NotFoundError";
    /// The queues are full.
    Overloaded = "overloaded", TOO_MANY_REQUESTS, "RateLimitError";
    /// The tenant has exceeded its quota.
    QuotaExceeded = "quota_exceeded", TOO_MANY_REQUESTS, "RateLimitError";
    /// No tier can answer within the budget.
    BudgetTooShort = "budget_too_short", SERVICE_UNAVAILABLE, "ServiceUnavailableError";
    /// The budget was already spent on arrival.
    BudgetSpent = "budget_spent", GATEWAY_TIMEOUT, "ServiceUnavailableError";
    /// The model failed.
    ModelFailed = "model_failed", INTERNAL_SERVER_ERROR, "InternalServerError";
    /// Models are loading, lanes are down, or the server is draining.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "ServiceUnavailableError";
}

/// The status in FastAPI's dialects: a body that does not validate cannot be processed.
pub(super) fn unprocessable(code: Code) -> StatusCode {
    match code {
        Code::InvalidRequest | Code::Empty | Code::TooMany | Code::TooLong => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        other => other.status(),
    }
}

/// An error for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// What went wrong.
    pub code: Code,
    /// The wrong field, by the dialect's name.
    pub field: Option<String>,
    /// The message, with the limit and without the field.
    pub message: String,
    /// When to try again.
    pub retry_after: Option<Ns>,
}

impl ApiError {
    /// An error without a field.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, field: None, message: message.into(), retry_after: None }
    }

    /// An invalid field.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        let (field, message) = (Some(field.into()), message.into());
        Self { code: Code::InvalidRequest, field, message, retry_after: None }
    }

    /// The message with the field in front.
    pub fn full_message(&self) -> String {
        match &self.field {
            Some(field) => format!("{field}: {}", self.message),
            None => self.message.clone(),
        }
    }

    /// The same error with the field renamed, if `names` has a pair for it.
    pub(super) fn named(mut self, names: &[(&str, &str)]) -> Self {
        let Some(field) = &self.field else { return self };
        // `documents[3]` becomes `texts[3]`.
        let name = &field[..field.find('[').unwrap_or(field.len())];
        if let Some((ours, theirs)) = names.iter().find(|(ours, _)| *ours == name) {
            self.field = Some(format!("{theirs}{}", &field[ours.len()..]));
        }
        self
    }
}

impl From<&Refusal> for ApiError {
    fn from(refusal: &Refusal) -> Self {
        let (code, retry_after) = match refusal {
            Refusal::Overloaded { retry_after } => (Code::Overloaded, Some(*retry_after)),
            Refusal::BudgetTooShortNow { retry_after } => (Code::BudgetTooShort, Some(*retry_after)),
            Refusal::BudgetTooShort { .. } => (Code::BudgetTooShort, None),
            Refusal::QuotaExceeded { retry_after } => (Code::QuotaExceeded, Some(*retry_after)),
            Refusal::BudgetSpent { .. } => (Code::BudgetSpent, None),
            Refusal::Invalid { field, message } => return Self::invalid(field, message),
            Refusal::TooLong { field, message } => {
                return Self { code: Code::TooLong, ..Self::invalid(field, message) };
            }
            Refusal::UnknownModel { .. } => (Code::UnknownModel, None),
            Refusal::ModelFailed => (Code::ModelFailed, None),
            Refusal::Unavailable | Refusal::Draining => (Code::Unavailable, Some(Ns::from_millis(1_000))),
        };
        Self { code, field: None, message: refusal.to_string(), retry_after }
    }
}

/// An error with the data that a body may have.
pub(super) struct Failure<'a> {
    pub error: &'a ApiError,
    pub message: String,
    pub status: StatusCode,
    pub stamp: &'a Stamp,
}

impl Failure<'_> {
    /// The object below `error` in OpenAI's shape.
    pub fn openai(&self) -> Value {
        let (error, code) = (self.error, self.status.as_u16());
        json!({"message": self.message, "type": error.code.openai_type(), "param": error.field, "code": code})
    }

    /// FastAPI's shape.
    pub fn detail(&self) -> Value {
        json!({"detail": self.message})
    }
}

/// Encodes an error in a dialect's shape.
pub fn encode_error(dialect: Dialect, error: &ApiError, stamp: &Stamp) -> Encoded {
    let spec = dialect.spec();
    let status = (spec.status)(error.code);
    let body = (spec.error)(&Failure { error, message: error.full_message(), status, stamp });
    let mut headers = vec![
        (HeaderName::from_static("x-podium-error"), HeaderValue::from_static(error.code.name())),
        super::declare::request_id(stamp),
    ];
    if let Some(after) = error.retry_after {
        // Whole seconds, rounded up: the header knows no fractions (RFC 9110, 10.2.3).
        headers.push((RETRY_AFTER, HeaderValue::from(after.0.div_ceil(1_000_000_000).max(1))));
    }
    Encoded { status, content_type: "application/json", headers, body: super::json(&body) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(dialect: Dialect, error: &ApiError) -> (u16, Value) {
        let stamp = Stamp { id: "7".into(), created_unix: 0 };
        let encoded = encode_error(dialect, error, &stamp);
        (encoded.status.as_u16(), serde_json::from_slice(&encoded.body).unwrap())
    }

    #[test]
    fn each_dialect_has_its_own_shape() {
        let error = ApiError::invalid("documents[3]", "is a number, and must be a string");
        let message = "documents[3]: is a number, and must be a string";
        let openai =
            json!({"message": message, "type": "BadRequestError", "param": "documents[3]", "code": 400});
        let rows = [
            (Dialect::CohereV2, 400, json!({"message": message, "id": "7"})),
            (Dialect::Jina, 422, json!({"detail": message})),
            (Dialect::Voyage, 400, json!({"detail": message})),
            (Dialect::Tei, 422, json!({"error": message, "error_type": "Validation"})),
            (Dialect::Vllm, 400, json!({"error": openai.clone()})),
            (Dialect::Oip, 400, json!({"error": message})),
        ];
        for (dialect, status, body) in rows {
            assert_eq!(encode(dialect, &error), (status, body), "{dialect:?}");
        }
        let (_, shared) = encode(Dialect::Cohere, &error);
        assert_eq!(shared, json!({"message": message, "id": "7", "detail": message, "error": openai}));
    }

    #[test]
    fn retry_after_is_in_whole_seconds_and_never_zero() {
        let stamp = Stamp { id: "7".into(), created_unix: 0 };
        let busy = |retry_after| Refusal::Overloaded { retry_after: Ns(retry_after) };
        for (refusal, status, expected) in [
            (busy(0), 429, "1"),
            (busy(1), 429, "1"),
            (busy(1_000_000_000), 429, "1"),
            (busy(1_000_000_001), 429, "2"),
            (Refusal::Unavailable, 503, "1"),
            (Refusal::Draining, 503, "1"),
        ] {
            let encoded = encode_error(Dialect::Podium, &ApiError::from(&refusal), &stamp);
            assert_eq!(encoded.status, status);
            let (_, value) = encoded.headers.iter().find(|(name, _)| name == RETRY_AFTER).unwrap();
            assert_eq!(value, expected);
        }
    }

    #[test]
    fn a_refusal_names_the_field_as_the_dialect_does() {
        let refusal = |field: &str| Refusal::Invalid { field: field.into(), message: "x".into() };
        let rows = [
            (Dialect::Tei, "documents[2]", "texts[2]"),
            (Dialect::Nim, "query", "query.text"),
            (Dialect::Nim, "documents[0]", "passages[0]"),
            (Dialect::Oip, "documents[0]", "PASSAGE[0]"),
            (Dialect::Podium, "policy", "policy"),
            (Dialect::Vllm, "pair_tokens_max", "truncate_prompt_tokens"),
            (Dialect::VllmScore, "document_tokens_max", "max_tokens_per_doc"),
            (Dialect::Vllm, "query_tokens_max", "max_tokens_per_query"),
        ];
        for (dialect, field, expected) in rows {
            let error = ApiError::from(&refusal(field)).named(dialect.spec().names);
            assert_eq!(error.field.as_deref(), Some(expected));
        }
    }
}
