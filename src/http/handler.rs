//! The life of a request: caller, route, body and answer.

use super::auth::Auth;
use super::pages;
use super::policy::Policies;
use super::rank::{Answer, Ask};
use super::route::{Route, route};
use super::server::{Connections, ServerLimits};
use crate::base::Ns;
use crate::engine::{Caller, Handle, ModelPool, State};
use crate::ledger::store::Store;
use crate::telemetry::metrics::ServerFacts;
use crate::telemetry::spans::Spans;
use crate::telemetry::trace::TraceContext;
use crate::wire::{ApiError, Code, Dialect, Encoded, ModelRef, Place, Settings, Stamp, encode_error};
use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use rand::Rng;
use rand_pcg::Pcg64;
use serde_json::Value;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tracing::Instrument;

/// A scrape shows events up to this long ago, so that many scrapes take no more of the driver's time.
const SCRAPE_NS_MIN: Ns = Ns::from_millis(100);

/// The state that requests share.
pub struct App {
    /// The engine.
    pub handle: Handle,
    /// The limits of the dialects.
    pub settings: Arc<Settings>,
    /// API keys and tenants.
    pub auth: Auth,
    /// The server's limits.
    pub limits: ServerLimits,
    /// The policies of requests that name none.
    pub policies: Policies,
    /// The connections, for metrics.
    pub connections: Arc<Connections>,
    /// The source of request ids.
    pub ids: Mutex<Pcg64>,
    /// Set when an admin drains the server.
    pub drain: watch::Sender<bool>,
    /// Loads and unloads models, if they come from a repository.
    pub pool: Option<ModelPool>,
    /// The ledger on disk, if one is kept.
    pub store: Option<Arc<Store>>,
    /// The exporter of spans, if configured.
    pub spans: Option<Arc<Spans>>,
}

impl App {
    /// Answers one request.
    pub async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let arrived = self.handle.now();
        let path = self.settings.canonical(request.uri().path());
        match route(request.method(), path) {
            Route::Rank(place) => self.ranked(place, request, arrived).await,
            Route::Live => pages::text(StatusCode::OK, "live"),
            Route::Health if !wants_text(request.headers()) => {
                pages::ready_json(self.handle.state(), self.handle.unix_ns())
            }
            Route::Health => pages::ready(self.handle.state()),
            Route::Ready => pages::ready(self.handle.state()),
            Route::Metrics => pages::metrics(self.metrics().await),
            Route::Models => pages::json(&pages::models(&self.handle.models())),
            Route::ModelStats => pages::json(&pages::model_stats(&self.handle)),
            Route::Version => pages::json(&pages::version()),
            Route::Tokenize => self.tokenize(request).await,
            Route::Decode => self.detokenize(request).await,
            Route::OpenApi => pages::bytes(crate::wire::openapi()),
            Route::Info => pages::json(&pages::info(&self.handle, &self.settings)),
            Route::OipServer => pages::json(&pages::oip_server()),
            Route::OipLive => pages::json(&pages::oip_live()),
            Route::OipReady => self.oip_ready(pages::oip_live()),
            Route::OipModel(model) => match pages::oip_model(&self.handle, &model) {
                Some(page) => pages::json(&page),
                None => self.not_served(&model),
            },
            Route::OipModelConfig(model) => match pages::oip_config(&self.handle, &model) {
                Some(page) => pages::json(&page),
                None => self.not_served(&model),
            },
            Route::OipModelReady(model) => match pages::oip_model(&self.handle, &model) {
                Some(_) => self.oip_ready(pages::oip_model_ready(&model)),
                None => self.not_served(&model),
            },
            Route::Costs => self.costs(&request).await,
            Route::Repository(path) => self.repository(path, request).await,
            Route::AdminDrain => self.begin_drain(request.headers()),
            Route::AdminRoutes => self.routes(request.headers()),
            Route::AdminRollback(route) => self.roll_back(route, request.headers()).await,
            Route::WrongMethod { allow, dialect } => {
                let message =
                    format!("{} does not support {}, only {allow}", request.uri().path(), request.method());
                let mut response = self.fail(dialect, Code::MethodNotAllowed, message);
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
                response
            }
            Route::Unknown { dialect } => {
                let message =
                    format!("there is no path {}; /openapi.json lists the paths", request.uri().path());
                self.fail(dialect, Code::NotFound, message)
            }
        }
    }

    /// A page of the Open Inference Protocol, unless the server is not ready.
    fn oip_ready(&self, page: Value) -> Response<Full<Bytes>> {
        match self.handle.state() {
            State::Ready => pages::json(&page),
            State::Loading => self.fail(Dialect::Oip, Code::Unavailable, "the models are loading"),
            State::Draining => self.fail(Dialect::Oip, Code::Unavailable, "the server is draining"),
        }
    }

    /// Answers a request that ranks.
    async fn ranked(&self, place: Place, request: Request<Incoming>, arrived: Ns) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let (trace, stamp) = self.trace(&parts.headers);
        let span = tracing::info_span!("rank", id = stamp.id, %trace);
        let answer = self.answer(place, parts.headers, body, arrived, &stamp).instrument(span);
        let (encoded, facts) = answer.await;
        if let Some(spans) = self.spans.as_ref().filter(|_| trace.sampled) {
            let elapsed = self.handle.now().saturating_sub(arrived);
            spans.record(&trace, self.handle.unix_ns().saturating_sub(elapsed.0), elapsed, &facts);
        }
        let mut response = respond(encoded);
        let trace = HeaderValue::try_from(trace.to_string()).expect("a trace is hexadecimal");
        response.headers_mut().insert("traceparent", trace);
        response
    }

    async fn answer(
        &self,
        place: Place,
        headers: HeaderMap,
        body: Incoming,
        arrived: Ns,
        stamp: &Stamp,
    ) -> Answer {
        // Until the body is read, the request has cost nothing.
        let Some(tenant) = self.auth.tenant(&headers) else {
            let message = "an API key is needed: authorization: Bearer KEY, or x-api-key";
            let error = ApiError::new(Code::Unauthorized, message);
            return self.refuse(place.dialect(), None, &error, stamp);
        };
        match self.body(&headers, body).await {
            Ok(body) => {
                let policy = self.policies.of(tenant, &place);
                let caller = Caller { tenant, arrived, policy };
                self.rank(Ask { place, headers, body, caller }, stamp).await
            }
            Err(error) => self.refuse(place.dialect(), Some(tenant), &error, stamp),
        }
    }

    /// Reads a body within its limits of bytes and time.
    pub(super) async fn body(&self, headers: &HeaderMap, body: Incoming) -> Result<Bytes, ApiError> {
        if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            let encoding = encoding.to_str().unwrap_or("?");
            let message = format!("content-encoding: {encoding} is not supported; send the body unencoded");
            return Err(ApiError::new(Code::UnsupportedMedia, message));
        }
        let limit = self.limits.body_bytes_max;
        let too_large = || ApiError::new(Code::TooLarge, format!("the body is longer than {limit} bytes"));
        let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if announced.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > limit as u64)
        {
            return Err(too_large());
        }
        let patience = Duration::from_millis(self.limits.body_ms_max);
        match tokio::time::timeout(patience, Limited::new(body, limit).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => {
                Err(ApiError::new(Code::InvalidRequest, format!("the body ended early: {error}")))
            }
            Err(_) => {
                let patience = self.limits.body_ms_max;
                Err(ApiError::new(Code::Timeout, format!("the body did not arrive within {patience} ms")))
            }
        }
    }

    fn not_served(&self, model: &ModelRef) -> Response<Full<Bytes>> {
        self.fail(Dialect::Oip, Code::UnknownModel, pages::not_served(model))
    }

    /// An error of a page.
    pub(super) fn fail(
        &self,
        dialect: Dialect,
        code: Code,
        message: impl Into<String>,
    ) -> Response<Full<Bytes>> {
        self.fail_with(dialect, &ApiError::new(code, message))
    }

    /// An error with the request's stamp.
    pub(super) fn fail_with(&self, dialect: Dialect, error: &ApiError) -> Response<Full<Bytes>> {
        let (_, stamp) = self.trace(&HeaderMap::new());
        respond(encode_error(dialect, error, &stamp))
    }

    async fn metrics(&self) -> String {
        self.handle.hand_over(SCRAPE_NS_MIN).await;
        let connections = &self.connections;
        self.handle.metrics().scrape(&ServerFacts {
            token_lookups: self.handle.token_lookups(),
            inside: self.handle.inside(),
            connections: connections.open.load(Ordering::Relaxed),
            accepted: connections.accepted.load(Ordering::Relaxed),
            rejected: connections.rejected.load(Ordering::Relaxed),
            accept_failures: self.connections.failed.load(Ordering::Relaxed),
            ledger_failures: self.store.as_ref().map_or(0, |store| store.failures()),
        })
    }

    /// A request's trace, and the stamp of its answer.
    fn trace(&self, headers: &HeaderMap) -> (TraceContext, Stamp) {
        let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok());
        let (id, trace, span) = {
            let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
            let mut random = || (u128::from(ids.next_u64()) << 64) | u128::from(ids.next_u64());
            (random(), random(), random() as u64)
        };
        let stamp = Stamp { id: format!("{id:032x}"), created_unix: self.handle.unix_seconds() };
        let sample = self.spans.as_ref().map_or(0.0, |spans| spans.sample());
        (TraceContext::continued(traceparent, (trace, span), sample), stamp)
    }
}

fn respond(encoded: Encoded) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(encoded.body));
    *response.status_mut() = encoded.status;
    // Content type, trace and date are added later.
    response.headers_mut().reserve(encoded.headers.len() + 3);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(encoded.content_type));
    for (name, value) in encoded.headers {
        response.headers_mut().append(name, value);
    }
    response
}

/// Whether the `accept` header asks for text.
fn wants_text(headers: &HeaderMap) -> bool {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accepted.is_some_and(|accepted| accepted.contains("text/"))
}
