//! The life of a request: who asks, what, and the answer.

use super::auth::{Admin, Auth};
use super::pages;
use super::route::{Route, route};
use super::server::{Connections, ServerLimits};
use crate::base::Ns;
use crate::engine::{Caller, Handle, State};
use crate::wire::{
    ApiError, Code, Decoded, Dialect, Encoded, Settings, Stamp, decode, dialect_of, encode_error,
};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use rand::Rng;
use rand_pcg::Pcg64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// A body larger than this is decoded off the I/O threads; it takes about half a millisecond.
const DECODE_INLINE_MAX: usize = 256 << 10;

/// What the server answers with.
pub struct App {
    /// The engine.
    pub handle: Handle,
    /// What the dialects accept.
    pub settings: Arc<Settings>,
    /// Who may ask.
    pub auth: Auth,
    /// The bounds.
    pub limits: ServerLimits,
    /// The connections, for metrics.
    pub connections: Arc<Connections>,
    /// Makes requests' ids.
    pub ids: Mutex<Pcg64>,
    /// Set when an admin drains the server.
    pub drain: watch::Sender<bool>,
    /// Requests that were answered, with scores or an error.
    pub answered: AtomicU64,
}

impl App {
    /// Answers one request.
    pub async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let arrived = self.handle.now();
        match route(request.method(), request.uri().path()) {
            Route::Rank => self.rank(request, arrived).await,
            Route::Live => pages::text(StatusCode::OK, "live"),
            Route::Ready => pages::ready(self.handle.state()),
            Route::Metrics => pages::text(StatusCode::OK, ""),
            Route::Models => pages::json(&pages::models(self.handle.models())),
            Route::OpenApi => pages::bytes(crate::wire::openapi()),
            Route::Info => pages::json(&pages::info(&self.handle, &self.settings)),
            Route::OipServer => pages::json(&pages::oip_server()),
            Route::OipModel { model, version } => {
                match pages::oip_model(self.handle.models(), &model, version.as_deref()) {
                    Some(page) => pages::json(&page),
                    None => {
                        self.fail(Dialect::Oip, Code::UnknownModel, format!("model `{model}` is not served"))
                    }
                }
            }
            Route::OipModelReady { model, version } => {
                match pages::oip_model(self.handle.models(), &model, version.as_deref()) {
                    Some(_) => pages::ready(self.handle.state()),
                    None => {
                        self.fail(Dialect::Oip, Code::UnknownModel, format!("model `{model}` is not served"))
                    }
                }
            }
            Route::AdminDrain => self.admin(request.headers(), || {
                self.drain.send_replace(true);
                pages::text(StatusCode::OK, "draining")
            }),
            Route::WrongMethod { allow } => {
                let dialect = dialect_of(request.uri().path()).unwrap_or(Dialect::Podium);
                let message = format!("{} has no method {}; {allow}", request.uri().path(), request.method());
                let mut response = self.fail(dialect, Code::MethodNotAllowed, message);
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
                response
            }
            Route::Unknown => {
                let message =
                    format!("no path {}; /openapi.json lists those that there are", request.uri().path());
                self.fail(Dialect::Podium, Code::NotFound, message)
            }
        }
    }

    /// The main job.
    async fn rank(&self, request: Request<Incoming>, arrived: Ns) -> Response<Full<Bytes>> {
        let stamp = self.stamp();
        let (parts, body) = request.into_parts();
        let encoded = match self.read(parts, body).await {
            Err((dialect, error)) => encode_error(dialect, &error, &stamp),
            Ok((caller, decoded)) => {
                let Decoded { request, reply, warnings } = decoded;
                let caller = Caller { arrived, ..caller };
                match self.handle.rank(request.clone(), caller).await {
                    Ok(outcome) => reply.encode(&request, &outcome, &stamp, &warnings),
                    Err(refusal) => reply.refuse(&refusal, &stamp),
                }
            }
        };
        self.answered.fetch_add(1, Ordering::Relaxed);
        respond(encoded)
    }

    /// Who asks and for what; until here nothing has been spent on the request.
    async fn read(&self, parts: Parts, body: Incoming) -> Result<(Caller, Decoded), (Dialect, ApiError)> {
        let path = parts.uri.path();
        let dialect = dialect_of(path).expect("a path that ranks has a dialect");
        let in_dialect = |error| (dialect, error);
        let unauthorized = || {
            let message = "an API key is needed: authorization: Bearer KEY, or x-api-key";
            in_dialect(ApiError::new(Code::Unauthorized, message))
        };
        let tenant = self.auth.tenant(&parts.headers).ok_or_else(unauthorized)?;
        let body = self.body(&parts.headers, body).await.map_err(in_dialect)?;
        let decoded = if body.len() <= DECODE_INLINE_MAX {
            decode(path, &parts.headers, &body, &self.settings)?
        } else {
            let settings = self.settings.clone();
            let work = move || decode(parts.uri.path(), &parts.headers, &body, &settings);
            tokio::task::spawn_blocking(work).await.expect("decoding does not panic")?
        };
        // The arrival is the caller's to say.
        Ok((Caller { tenant, arrived: Ns::ZERO }, decoded))
    }

    /// Reads a body within its bounds of bytes and time.
    async fn body(&self, headers: &HeaderMap, body: Incoming) -> Result<Bytes, ApiError> {
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
                Err(ApiError::new(Code::InvalidRequest, format!("the body broke off: {error}")))
            }
            Err(_) => {
                let patience = self.limits.body_ms_max;
                Err(ApiError::new(Code::Timeout, format!("the body did not come within {patience} ms")))
            }
        }
    }

    fn admin(
        &self,
        headers: &HeaderMap,
        act: impl FnOnce() -> Response<Full<Bytes>>,
    ) -> Response<Full<Bytes>> {
        match self.auth.admin(headers) {
            Admin::Allowed => act(),
            Admin::Unknown => self.fail(Dialect::Podium, Code::Unauthorized, "the admin key is needed"),
            Admin::Closed => {
                let message = "closed, as no admin_key is configured";
                self.fail(Dialect::Podium, Code::Forbidden, message)
            }
        }
    }

    fn fail(&self, dialect: Dialect, code: Code, message: impl Into<String>) -> Response<Full<Bytes>> {
        respond(encode_error(dialect, &ApiError::new(code, message), &self.stamp()))
    }

    fn stamp(&self) -> Stamp {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let id = format!("{:016x}{:016x}", ids.next_u64(), ids.next_u64());
        Stamp { id, created_unix: self.handle.unix_seconds() }
    }

    /// Whether requests are taken.
    pub fn state(&self) -> State {
        self.handle.state()
    }
}

fn respond(encoded: Encoded) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(encoded.body));
    *response.status_mut() = encoded.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(encoded.content_type));
    for (name, value) in encoded.headers {
        response.headers_mut().append(name, value);
    }
    response
}
