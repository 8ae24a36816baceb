//! TEI's `/tokenize` and `/decode`: tokenises texts, and decodes ids.

use super::handler::App;
use super::pages;
use crate::token::{Piece, Tokenizer, TokenizerError};
use crate::wire::{ApiError, Code, Dialect, whole};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

/// Answers a body with at most the given number of elements.
type Work = fn(&Tokenizer, &Map<String, Value>, usize) -> Result<Value, ApiError>;

impl App {
    /// Texts to tokens.
    pub(super) async fn tokenize(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.tokens(request, tokenize).await
    }

    /// Ids to texts.
    pub(super) async fn detokenize(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.tokens(request, detokenize).await
    }

    async fn tokens(&self, request: Request<Incoming>, work: Work) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        if self.auth.tenant(&parts.headers).is_none() {
            return self.fail(
                Dialect::Tei,
                Code::Unauthorized,
                "an API key is needed: authorization: Bearer KEY",
            );
        }
        let body = match self.body(&parts.headers, body).await {
            Ok(body) => body,
            Err(error) => return self.fail_with(Dialect::Tei, &error),
        };
        let (tokenizer, most) = (self.handle.tokenizer().clone(), self.settings.documents_max);
        let work = move || {
            let fields = serde_json::from_slice(&body).map_err(|error| {
                ApiError::new(Code::InvalidRequest, format!("the body is not valid: {error}"))
            });
            work(&tokenizer, &fields?, most)
        };
        match tokio::task::spawn_blocking(work).await.expect("tokenising does not panic") {
            Ok(answer) => pages::json(&answer),
            Err(error) => self.fail_with(Dialect::Tei, &error),
        }
    }
}

fn tokenize(tokenizer: &Tokenizer, fields: &Map<String, Value>, most: usize) -> Result<Value, ApiError> {
    let wrong = || ApiError::invalid("inputs", "must be a string or a list of strings");
    let specials = flag(fields, "add_special_tokens")?;
    let texts: Vec<&str> = match fields.get("inputs") {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(texts)) => {
            bounded("inputs", texts.len(), most)?;
            texts.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    let token = |piece: Piece| {
        json!({
            "id": piece.id, "text": piece.text, "special": piece.place.is_none(),
            "start": piece.place.map(|(start, _)| start), "stop": piece.place.map(|(_, stop)| stop),
        })
    };
    let tokens = |text: &str| -> Result<Value, ApiError> {
        let pieces = tokenizer.pieces(text, specials).map_err(|error| failed("inputs", &error))?;
        Ok(pieces.into_iter().map(token).collect())
    };
    texts.into_iter().map(tokens).collect()
}

fn detokenize(tokenizer: &Tokenizer, fields: &Map<String, Value>, most: usize) -> Result<Value, ApiError> {
    let wrong = || ApiError::invalid("ids", "must be a list of ids or a list of such lists");
    let skip = flag(fields, "skip_special_tokens")?;
    let Some(Value::Array(ids)) = fields.get("ids") else { return Err(wrong()) };
    bounded("ids", ids.len(), usize::MAX)?;
    let decode = |ids: &[Value]| -> Result<Value, ApiError> {
        let id = |value: &Value| whole(value).and_then(|id| u32::try_from(id).ok());
        let ids: Vec<u32> = ids.iter().map(id).collect::<Option<_>>().ok_or_else(wrong)?;
        tokenizer.decode(&ids, skip).map(Value::String).map_err(|error| failed("ids", &error))
    };
    if ids.iter().all(Value::is_number) {
        return Ok(Value::Array(vec![decode(ids)?]));
    }
    bounded("ids", ids.len(), most)?;
    ids.iter().map(|ids| decode(ids.as_array().ok_or_else(wrong)?)).collect()
}

/// A boolean that is true by default.
fn flag(fields: &Map<String, Value>, name: &str) -> Result<bool, ApiError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(true),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(ApiError::invalid(name, "must be true or false")),
    }
}

fn bounded(field: &str, found: usize, most: usize) -> Result<(), ApiError> {
    let coded = |code, message: String| Err(ApiError { code, ..ApiError::invalid(field, message) });
    match found {
        0 => coded(Code::Empty, "must have at least one element".to_owned()),
        found if found > most => coded(Code::TooMany, format!("{found} are given, and the limit is {most}")),
        _ => Ok(()),
    }
}

fn failed(field: &str, error: &TokenizerError) -> ApiError {
    ApiError::invalid(field, error.to_string())
}
