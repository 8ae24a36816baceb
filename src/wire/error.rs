//! Errors at the wire: a stable code, a status, and a body in the dialect's own shape.

use super::{Dialect, Encoded, Stamp, documents_field, json};
use crate::base::Ns;
use crate::rerank::Refusal;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use serde_json::{Value, json as value};

/// What went wrong, in words that never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request cannot be understood or is past a limit.
    InvalidRequest,
    /// No key, or one that is not known.
    Unauthorized,
    /// A key that does not open this.
    Forbidden,
    /// No such path.
    NotFound,
    /// The path has other methods.
    MethodNotAllowed,
    /// The body is past its bound.
    TooLarge,
    /// The body is encoded.
    UnsupportedMedia,
    /// The body did not come in time.
    Timeout,
    /// The named model is not served.
    UnknownModel,
    /// The queues are full.
    Overloaded,
    /// The tenant is past its quota.
    QuotaExceeded,
    /// No tier can answer within the budget.
    BudgetTooShort,
    /// The budget was spent on arrival.
    BudgetSpent,
    /// The model failed.
    ModelFailed,
    /// Models are loading, lanes are down, or the server is draining.
    Unavailable,
}

impl Code {
    /// The stable name in bodies and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TooLarge => "too_large",
            Self::UnsupportedMedia => "unsupported_media",
            Self::Timeout => "timeout",
            Self::UnknownModel => "unknown_model",
            Self::Overloaded => "overloaded",
            Self::QuotaExceeded => "quota_exceeded",
            Self::BudgetTooShort => "budget_too_short",
            Self::BudgetSpent => "budget_spent",
            Self::ModelFailed => "model_failed",
            Self::Unavailable => "unavailable",
        }
    }

    /// The status in a dialect.
    pub fn status(self, dialect: Dialect) -> StatusCode {
        match self {
            Self::InvalidRequest => match dialect {
                // FastAPI's and TEI's status for a body that does not validate.
                Dialect::Tei | Dialect::Infinity | Dialect::Jina => StatusCode::UNPROCESSABLE_ENTITY,
                _ => StatusCode::BAD_REQUEST,
            },
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound | Self::UnknownModel => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Overloaded | Self::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
            Self::BudgetTooShort | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::BudgetSpent => StatusCode::GATEWAY_TIMEOUT,
            Self::ModelFailed if dialect == Dialect::Tei => StatusCode::FAILED_DEPENDENCY,
            Self::ModelFailed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The name by which OpenAI-like clients sort errors.
    const fn openai_type(self) -> &'static str {
        match self {
            Self::Unauthorized => "AuthenticationError",
            Self::Forbidden => "PermissionDeniedError",
            Self::NotFound | Self::UnknownModel => "NotFoundError",
            Self::Overloaded | Self::QuotaExceeded => "RateLimitError",
            Self::InvalidRequest
            | Self::MethodNotAllowed
            | Self::TooLarge
            | Self::UnsupportedMedia
            | Self::Timeout => "BadRequestError",
            Self::BudgetTooShort | Self::BudgetSpent | Self::Unavailable => "ServiceUnavailableError",
            Self::ModelFailed => "InternalServerError",
        }
    }

    /// TEI's names.
    const fn tei_type(self) -> &'static str {
        match self {
            Self::Overloaded | Self::QuotaExceeded | Self::BudgetTooShort | Self::BudgetSpent => "Overloaded",
            Self::ModelFailed => "Backend",
            Self::Unavailable => "Unhealthy",
            Self::InvalidRequest
            | Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::TooLarge
            | Self::UnsupportedMedia
            | Self::Timeout
            | Self::UnknownModel => "Validation",
        }
    }
}

/// An error for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// What went wrong.
    pub code: Code,
    /// The field that is to blame, by the dialect's name.
    pub field: Option<String>,
    /// What is wrong, with the limit; does not repeat the field.
    pub message: String,
    /// When to try again.
    pub retry_after: Option<Ns>,
}

impl ApiError {
    /// An error that no field is to blame for.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, field: None, message: message.into(), retry_after: None }
    }

    /// A field that cannot be accepted.
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

    /// The same error with the field under the dialect's name for it.
    pub(super) fn in_words_of(mut self, dialect: Dialect) -> Self {
        let Some(field) = &self.field else { return self };
        self.field = Some(match (field.as_str(), dialect) {
            ("query", Dialect::Nim) => "query.text".to_owned(),
            ("query", Dialect::Oip) => "QUERY".to_owned(),
            ("query", Dialect::VllmScore) => "text_1".to_owned(),
            ("pair_tokens_max", Dialect::Vllm | Dialect::VllmScore) => "truncate_prompt_tokens".to_owned(),
            (field, _) => match field.strip_prefix("documents") {
                Some(rest) => format!("{}{rest}", documents_field(dialect)),
                None => field.to_owned(),
            },
        });
        self
    }
}

impl From<&Refusal> for ApiError {
    fn from(refusal: &Refusal) -> Self {
        let (code, retry_after) = match refusal {
            Refusal::Overloaded { retry_after } => (Code::Overloaded, Some(*retry_after)),
            Refusal::BudgetTooShort { retry_after } => (Code::BudgetTooShort, Some(*retry_after)),
            Refusal::BudgetUnmeetable { .. } => (Code::BudgetTooShort, None),
            Refusal::QuotaExceeded { retry_after } => (Code::QuotaExceeded, Some(*retry_after)),
            Refusal::BudgetSpent { .. } => (Code::BudgetSpent, None),
            Refusal::Invalid { field, message } => return Self::invalid(field, message),
            Refusal::UnknownModel { .. } => (Code::UnknownModel, None),
            Refusal::ModelFailed => (Code::ModelFailed, None),
            Refusal::Unavailable | Refusal::Draining => (Code::Unavailable, Some(Ns::from_millis(1_000))),
        };
        Self { code, field: None, message: refusal.to_string(), retry_after }
    }
}

/// Encodes an error in a dialect's shape.
pub fn encode_error(dialect: Dialect, error: &ApiError, stamp: &Stamp) -> Encoded {
    let status = error.code.status(dialect);
    let message = error.full_message();
    let openai = || {
        value!({
            "message": message, "type": error.code.openai_type(), "param": error.field, "code": status.as_u16(),
        })
    };
    let body: Value = match dialect {
        Dialect::Podium => value!({"error": {
            "code": error.code.name(), "field": error.field, "message": message, "id": stamp.id,
            "retry_after_ms": error.retry_after.map(|after| after.0.div_ceil(1_000_000)),
        }}),
        // Whoever shares the path finds its own field.
        Dialect::Cohere => {
            value!({"message": message, "id": stamp.id, "detail": message, "error": openai()})
        }
        Dialect::CohereV2 => value!({"message": message, "id": stamp.id}),
        Dialect::Jina | Dialect::Voyage | Dialect::Nim => value!({"detail": message}),
        Dialect::Tei => value!({"error": message, "error_type": error.code.tei_type()}),
        Dialect::Vllm | Dialect::VllmScore | Dialect::Infinity => value!({"error": openai()}),
        Dialect::Oip => value!({"error": message}),
    };
    let mut headers = vec![
        (HeaderName::from_static("x-podium-error"), HeaderValue::from_static(error.code.name())),
        super::declare::request_id(stamp),
    ];
    if let Some(after) = error.retry_after {
        // Whole seconds, rounded up: the header knows no fractions (RFC 9110, 10.2.3).
        headers.push((RETRY_AFTER, HeaderValue::from(after.0.div_ceil(1_000_000_000).max(1))));
    }
    Encoded { status, content_type: "application/json", headers, body: json(&body) }
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
            value!({"message": message, "type": "BadRequestError", "param": "documents[3]", "code": 400});
        let rows = [
            (Dialect::CohereV2, 400, value!({"message": message, "id": "7"})),
            (Dialect::Jina, 422, value!({"detail": message})),
            (Dialect::Voyage, 400, value!({"detail": message})),
            (Dialect::Tei, 422, value!({"error": message, "error_type": "Validation"})),
            (Dialect::Vllm, 400, value!({"error": openai})),
            (Dialect::Oip, 400, value!({"error": message})),
        ];
        for (dialect, status, body) in rows {
            assert_eq!(encode(dialect, &error), (status, body), "{dialect:?}");
        }
        let (_, shared) = encode(Dialect::Cohere, &error);
        assert_eq!((&shared["message"], &shared["detail"]), (&value!(message), &value!(message)));
    }

    #[test]
    fn retry_after_is_in_whole_seconds_and_never_zero() {
        let stamp = Stamp { id: "7".into(), created_unix: 0 };
        for (millis, expected) in [(1, "1"), (1_000, "1"), (1_001, "2")] {
            let refusal = Refusal::Overloaded { retry_after: Ns::from_millis(millis) };
            let encoded = encode_error(Dialect::Tei, &ApiError::from(&refusal), &stamp);
            assert_eq!(encoded.status, 429);
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
        ];
        for (dialect, field, expected) in rows {
            let error = ApiError::from(&refusal(field)).in_words_of(dialect);
            assert_eq!(error.field.as_deref(), Some(expected));
        }
    }
}
