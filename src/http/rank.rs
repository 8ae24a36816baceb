//! A request that ranks, from the bytes of its body to those of its answer; independent of the transport.

use super::handler::App;
use super::pages;
use crate::base::TenantId;
use crate::engine::Caller;
use crate::rerank::Receipt;
use crate::telemetry::spans::SpanFacts;
use crate::wire::{ApiError, Code, Decoded, Dialect, Encoded, ModelRef, Place, Stamp, decode, encode_error};
use bytes::Bytes;
use http::HeaderMap;
use std::sync::Arc;

/// A larger body is decoded off the I/O threads, which takes about half a millisecond.
const DECODE_INLINE_MAX: usize = 256 << 10;

/// Characters of an unknown model's name in a header.
const NAME_CHARS_MAX: usize = 64;

/// The warning of a model that does not read a request's instruction.
fn ignored_instruction(model: &str) -> String {
    format!("instruction was ignored by `{model}`: its prompt has no place for one")
}

/// A received request.
pub(super) struct Ask {
    pub place: Place,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub caller: Caller,
}

/// What a request's model and version name.
enum Named {
    /// What serves by that name.
    AsAsked,
    /// One of several versions, by this name.
    Version(String),
    /// Nothing; the warning says what answers.
    Unknown(String),
}

/// An answer or an error in the dialect's shape, with the facts for its span.
pub(super) type Answer = (Encoded, SpanFacts);

impl App {
    /// Decodes, ranks and encodes.
    pub(super) async fn rank(&self, ask: Ask, stamp: &Stamp) -> Answer {
        let caller = ask.caller;
        let version = ask.place.version().map(str::to_owned);
        let Decoded { mut request, reply, mut warnings } = match self.decode(ask).await {
            Ok(decoded) => decoded,
            Err((dialect, error)) => return self.refuse(dialect, Some(caller.tenant), &error, stamp),
        };
        match self.named(request.model.as_deref(), version) {
            Ok(Named::AsAsked) => {}
            Ok(Named::Version(model)) => Arc::make_mut(&mut request).model = Some(model),
            Ok(Named::Unknown(warning)) => warnings.push(warning),
            Err(error) => return self.refuse(reply.dialect(), Some(caller.tenant), &error, stamp),
        }
        match self.handle.rank(request.clone(), caller).await {
            Ok(outcome) => {
                let (metrics, dialect) = (self.handle.metrics(), reply.dialect().name());
                metrics.answered(dialect, caller.tenant, &outcome);
                let Receipt { served, degraded, elapsed, .. } = &outcome.receipt;
                tracing::debug!(served = served.name(), ?degraded, ms = elapsed.as_millis_f64(), "answered");
                if request.instruction.is_some() {
                    warnings
                        .extend(outcome.without_instruction.iter().map(|model| ignored_instruction(model)));
                }
                let encoded = reply.encode(&request, &outcome, stamp, &warnings);
                let documents = outcome.scores.len();
                let tenant = Some(metrics.tenant(caller.tenant));
                (encoded, SpanFacts { dialect, tenant, outcome: Ok((outcome.receipt, documents)) })
            }
            Err(refusal) => self.refuse(reply.dialect(), Some(caller.tenant), &reply.error(&refusal), stamp),
        }
    }

    /// Checks the model and version that a request names.
    ///
    /// # Errors
    /// If the version is not served. The engine checks the model.
    fn named(&self, model: Option<&str>, version: Option<String>) -> Result<Named, ApiError> {
        let found = model.and_then(|_| self.handle.answering(model));
        let is_known = model.is_none() || found.is_some();
        if is_known && version.is_none() {
            return Ok(Named::AsAsked);
        }
        let first = || self.handle.answering(None).unwrap_or_else(|| self.handle.models()[0].clone());
        let answers = found.unwrap_or_else(first);
        if let Some(version) = version.filter(|version| *answers.version != **version) {
            let asked = ModelRef { name: model.unwrap_or_default().to_owned(), version: Some(version) };
            let exact = asked.to_string();
            return match self.handle.answering(Some(&exact)) {
                Some(_) => Ok(Named::Version(exact)),
                None if pages::is_any_version(&asked) => Ok(Named::AsAsked),
                None => Err(ApiError::new(Code::UnknownModel, pages::not_served(&asked))),
            };
        }
        if is_known {
            return Ok(Named::AsAsked);
        }
        let name: String = model.unwrap_or_default().chars().take(NAME_CHARS_MAX).collect();
        let message =
            format!("model `{name}` is not served: `{}` answers, as any_model is true", answers.name);
        Ok(Named::Unknown(message))
    }

    /// An error answer; counts it.
    pub(super) fn refuse(
        &self,
        dialect: Dialect,
        tenant: Option<TenantId>,
        error: &ApiError,
        stamp: &Stamp,
    ) -> Answer {
        let (metrics, code) = (self.handle.metrics(), error.code.name());
        metrics.refused(dialect.name(), tenant, code);
        tracing::debug!(code, message = error.full_message(), "refused");
        let tenant = tenant.map(|tenant| metrics.tenant(tenant));
        let facts = SpanFacts { dialect: dialect.name(), tenant, outcome: Err(code) };
        (encode_error(dialect, error, stamp), facts)
    }

    async fn decode(&self, ask: Ask) -> Result<Decoded, (Dialect, ApiError)> {
        let settings = self.settings.clone();
        let inline = ask.body.len() <= DECODE_INLINE_MAX;
        let work = move || decode(&ask.place, &ask.headers, &ask.body, &settings);
        if inline {
            return work();
        }
        tokio::task::spawn_blocking(work).await.expect("decoding does not panic")
    }
}
