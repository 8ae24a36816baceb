//! An HTTP/1.1 client with pooled, bounded connections and a timeout per request.

use super::{Case, Kind};
use crate::base::Ns;
use crate::engine::Clock;
use crate::wire::{Ask, Dialect};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::sync::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Most bytes of an answer: enough for 10,000 documents that are returned.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Characters of an error's body that are kept: enough for a message.
const ERROR_CHARS_MAX: usize = 200;

/// A server and its dialect.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its address, `http://HOST[:PORT][/PREFIX]`.
    pub url: String,
    /// Its dialect.
    pub dialect: Dialect,
    /// The model name in requests.
    pub model: Option<String>,
}

/// The client's limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClientLimits {
    /// Most connections. A request that finds all of them busy waits; the wait counts as the client's lag.
    pub connections_max: usize,
    /// The timeout of a request, including the wait for a connection.
    pub timeout: Ns,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self { connections_max: 1_024, timeout: Ns::from_millis(30_000) }
    }
}

/// Why a request has no scores.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// No connection could be made.
    Refused(String),
    /// The connection closed before the answer.
    Lost(String),
    /// The request timed out.
    TimedOut,
    /// The status is not a success.
    Status {
        /// The status.
        code: u16,
        /// Podium's error code, if the server is Podium.
        error: Option<String>,
        /// The beginning of the body.
        body: String,
    },
    /// The answer does not follow the dialect.
    Malformed(String),
}

impl Fault {
    /// The label under which it is counted.
    pub fn kind(&self) -> String {
        match self {
            Self::Refused(_) => "refused".to_owned(),
            Self::Lost(_) => "connection lost".to_owned(),
            Self::TimedOut => "timed out".to_owned(),
            Self::Status { code, error: None, .. } => format!("status {code}"),
            Self::Status { code, error: Some(error), .. } => format!("status {code} {error}"),
            Self::Malformed(_) => "malformed".to_owned(),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Refused(reason) | Self::Lost(reason) | Self::Malformed(reason) => {
                write!(f, "{}: {reason}", self.kind())
            }
            Self::Status { body, .. } if !body.is_empty() => write!(f, "{}: {body}", self.kind()),
            Self::TimedOut | Self::Status { .. } => write!(f, "{}", self.kind()),
        }
    }
}

/// A decoded answer. Servers other than Podium send only scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Scores, in the order of the documents.
    pub scores: Vec<f64>,
    /// `full`, `topk` or `fallback`.
    pub tier: Option<String>,
    /// The reason for a degraded answer.
    pub degraded: Option<String>,
    /// Device time of the request.
    pub device_ns: Option<u64>,
    /// Price of the request.
    pub nanodollars: Option<u64>,
}

/// The result of a request.
#[derive(Debug)]
pub struct Sent {
    /// When the request got a connection.
    pub began: Ns,
    /// When the answer arrived or the request failed.
    pub ended: Ns,
    /// The answer, or the failure.
    pub result: Result<Answer, Fault>,
}

/// An encoded request, made before it is due.
#[derive(Clone, Debug)]
pub struct Prepared {
    body: Bytes,
    documents: usize,
}

impl Prepared {
    /// The number of documents.
    pub fn documents(&self) -> usize {
        self.documents
    }
}

/// Sends requests to one server.
pub struct Client {
    target: Target,
    limits: ClientLimits,
    clock: Clock,
    host: String,
    port: u16,
    uri: Uri,
    authority: HeaderValue,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    free: Semaphore,
}

impl Client {
    /// Makes a client. It connects on the first request.
    ///
    /// # Errors
    /// The message says what is wrong with the address.
    /// Says what is wrong with the address.
    pub fn new(target: Target, limits: ClientLimits, clock: Clock) -> Result<Self, String> {
        let wrong = || format!("`{}` is not http://HOST[:PORT][/PREFIX]", target.url);
        let url: Uri = target.url.parse().map_err(|_| wrong())?;
        let host = url.host().filter(|_| url.scheme() == Some(&Scheme::HTTP)).ok_or_else(wrong)?;
        if url.query().is_some() || url.authority().is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(wrong());
        }
        let path = target.dialect.ask_path(target.model.as_deref());
        let uri = format!("{}{path}", url.path().trim_end_matches('/')).parse().map_err(|_| wrong())?;
        // Refuses anything but a port after the host; otherwise a mistyped port would silently become 80.
        let is_bare = url.authority().is_some_and(|authority| authority.as_str().ends_with(host));
        if url.port_u16().is_none() && !is_bare {
            return Err(wrong());
        }
        let authority = url.authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port_u16().unwrap_or(80),
            uri,
            authority: authority.ok_or_else(wrong)?,
            idle: Mutex::default(),
            free: Semaphore::new(limits.connections_max),
            target,
            limits,
            clock,
        })
    }

    /// The server.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The clock of send times.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Encodes a request.
    pub fn prepare(&self, case: &Case) -> Prepared {
        let Case { query, documents, instruction } = case;
        let ask = Ask { query, documents, instruction: instruction.as_deref() };
        let body = self.target.dialect.ask(self.target.model.as_deref(), ask);
        Prepared { body: body.into(), documents: case.documents.len() }
    }

    /// Sends a request and waits for the answer, at most until the timeout.
    pub async fn send(&self, request: &Prepared, headers: &HeaderMap) -> Sent {
        let mut began = None;
        let answer = tokio::time::timeout(self.limits.timeout.into(), async {
            let _one = self.free.acquire().await.expect("the semaphore is never closed");
            began = Some(self.clock.now());
            self.exchange(request, headers).await
        });
        let answer = answer.await.unwrap_or(Err(Fault::TimedOut));
        // The answer is decoded after `ended` is taken: decoding is the client's work and not part of the latency.
        let ended = self.clock.now();
        let result = answer.and_then(|(head, body)| self.read(request, head, &body));
        Sent { began: began.unwrap_or(ended), ended, result }
    }

    async fn exchange(
        &self,
        request: &Prepared,
        headers: &HeaderMap,
    ) -> Result<(Response<()>, Bytes), Fault> {
        let mut message = Request::post(self.uri.clone()).body(Full::new(request.body.clone()));
        if let Ok(message) = &mut message {
            *message.headers_mut() = headers.clone();
            message.headers_mut().insert(HOST, self.authority.clone());
            message.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let mut message = message.expect("an address that was checked makes a request");
        let lost = |error: &dyn std::fmt::Display| Fault::Lost(error.to_string());
        loop {
            let kept = self.idle.lock().expect("no thread panics while it holds the lock").pop();
            let reused = kept.is_some();
            let mut connection = match kept {
                Some(kept) if kept.is_closed() => continue,
                Some(kept) => kept,
                None => self.connect().await?,
            };
            match connection.try_send_request(message).await {
                Ok(answer) => {
                    let (head, body) = answer.into_parts();
                    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
                    let body = body.map_err(|error| Fault::Lost(error.to_string()))?.to_bytes();
                    if connection.ready().await.is_ok() {
                        self.idle.lock().expect("no thread panics while it holds the lock").push(connection);
                    }
                    return Ok((Response::from_parts(head, ()), body));
                }
                // The server closed an idle connection before it received the request.
                Err(mut error) => match error.take_message().filter(|_| reused) {
                    Some(unsent) => message = unsent,
                    None => return Err(lost(error.error())),
                },
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Fault> {
        let refused = |error: &dyn std::fmt::Display| Fault::Refused(error.to_string());
        let address = (self.host.as_str(), self.port);
        let stream = TcpStream::connect(address).await.map_err(|error| refused(&error))?;
        // Without delay: small requests must not wait for more data.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| refused(&error))?;
        // The task ends with the connection. Its errors reach the caller through the pending request.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn read(&self, request: &Prepared, head: Response<()>, body: &[u8]) -> Result<Answer, Fault> {
        let header = |name: &str| head.headers().get(name).and_then(|value| value.to_str().ok());
        if !head.status().is_success() {
            let error = header("x-podium-error").map(str::to_owned);
            let printable = |c: &char| !c.is_control();
            let body =
                String::from_utf8_lossy(body).chars().filter(printable).take(ERROR_CHARS_MAX).collect();
            return Err(Fault::Status { code: head.status().as_u16(), error, body });
        }
        let scores = self.target.dialect.scores(request.documents, body).map_err(Fault::Malformed)?;
        Ok(Answer {
            scores,
            tier: header("x-podium-tier").map(str::to_owned),
            degraded: header("x-podium-degraded").map(str::to_owned),
            device_ns: header("x-podium-device-ns").and_then(|value| value.parse().ok()),
            nanodollars: header("x-podium-cost-nanodollars").and_then(|value| value.parse().ok()),
        })
    }

    /// Sends one request, to detect a wrong address, dialect or key before a load. An overloaded server or a budget
    /// that is too short is not an error.
    ///
    /// # Errors
    /// The failure, if every other request would fail in the same way.
    pub async fn probe(&self, case: &Case, kind: &Kind) -> Result<(), Fault> {
        match self.send(&self.prepare(case), &kind.headers()).await.result {
            Ok(_) | Err(Fault::Status { code: 429 | 503 | 504, .. }) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}
