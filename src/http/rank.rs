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

/// An answer or an error in the dialect's shape, with the facts for its span.
pub(super) type Answer = (Encoded, SpanFacts);

impl App {
    /// Decodes, ranks and encodes.
    pub(super) async fn rank(&self, ask: Ask, stamp: &Stamp) -> Answer {
        let caller = ask.caller;
        let version = ask.place.version().map(str::to_owned);
        let Decoded { request, reply, mut warnings } = match self.decode(ask).await {
            Ok(decoded) => decoded,
            Err((dialect, error)) => return self.refuse(dialect, Some(caller.tenant), &error, stamp),
        };
        match self.named(request.model.as_deref(), version) {
            Ok(None) => {}
            Ok(Some(warning)) => warnings.push(warning),
            Err(error) => return self.refuse(reply.dialect(), Some(caller.tenant), &error, stamp),
        }
        match self.handle.rank(request.clone(), caller).await {
            Ok(outcome) => {
                let (metrics, dialect) = (self.handle.metrics(), reply.dialect().name());
                metrics.answered(dialect, caller.tenant, &outcome);
                let Receipt { served, degraded, elapsed, .. } = &outcome.receipt;
                tracing::debug!(served = served.name(), ?degraded, ms = elapsed.as_millis_f64(), "answered");
                if request.instruction.is_some() {
                    let ignored = self.handle.without_instruction(*served);
                    warnings.extend(ignored.map(|model| ignored_instruction(&model.name)));
                }
                let encoded = reply.encode(&request, &outcome, stamp, &warnings);
                let documents = outcome.scores.len();
                let tenant = Some(metrics.tenant(caller.tenant));
                (encoded, SpanFacts { dialect, tenant, outcome: Ok((outcome.receipt, documents)) })
            }
            Err(refusal) => self.refuse(reply.dialect(), Some(caller.tenant), &reply.error(&refusal), stamp),
        }
    }

    /// Checks the model and version that a request names. Returns a warning for the caller, if any.
    ///
    /// # Errors
    /// If the version is not served. The engine checks the model.
    fn named(&self, model: Option<&str>, version: Option<String>) -> Result<Option<String>, ApiError> {
        let models = self.handle.models();
        let found = model.and_then(|name| models.iter().find(|model| *model.name == *name));
        let answers = found.unwrap_or(&models[0]);
        if version.as_deref().is_some_and(|version| !pages::is_version(answers, version)) {
            let asked = ModelRef { name: model.unwrap_or_default().to_owned(), version };
            return Err(ApiError::new(Code::UnknownModel, pages::not_served(&asked)));
        }
        let unknown = model.filter(|_| found.is_none());
        Ok(unknown.map(|name| {
            let name: String = name.chars().take(NAME_CHARS_MAX).collect();
            format!("model `{name}` is not served: `{}` answers, as any_model is true", answers.name)
        }))
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
