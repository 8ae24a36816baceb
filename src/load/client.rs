//! A client over HTTP/1.1: connections are kept and bounded, and each request has its time.

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

/// Bytes of an answer: 10,000 documents that are given back.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Characters of an error's body that are kept: a message, and not a page.
const ERROR_CHARS_MAX: usize = 200;

/// A server and how to speak to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its address, `http://HOST[:PORT][/PREFIX]`.
    pub url: String,
    /// Its language.
    pub dialect: Dialect,
    /// The model that requests name.
    pub model: Option<String>,
}

/// A client's bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClientLimits {
    /// Connections at once. A request that finds all taken waits, and that wait is the client's lag.
    pub connections_max: usize,
    /// How long a request may take, the wait for a connection included.
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
    /// The connection ended before the answer.
    Lost(String),
    /// It was not answered in its time.
    TimedOut,
    /// It was answered with a status that is no success.
    Status {
        /// The status.
        code: u16,
        /// Podium's stable code of the error, where there is one.
        error: Option<String>,
        /// The beginning of its body.
        body: String,
    },
    /// The answer is not what the dialect says.
    Malformed(String),
}

impl Fault {
    /// What it is counted as.
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

/// What an answer says of itself; a server that is not Podium says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Scores, in the order of the documents.
    pub scores: Vec<f64>,
    /// `full`, `topk` or `fallback`.
    pub tier: Option<String>,
    /// Why it is less than the best.
    pub degraded: Option<String>,
    /// The device's time on it.
    pub device_ns: Option<u64>,
    /// Its price.
    pub nanodollars: Option<u64>,
}

/// What became of a request.
#[derive(Debug)]
pub struct Sent {
    /// When a connection was there to send it on.
    pub began: Ns,
    /// When its answer was there, or it failed.
    pub ended: Ns,
    /// The answer.
    pub result: Result<Answer, Fault>,
}

/// A request's bytes, made before its time comes.
#[derive(Clone, Debug)]
pub struct Prepared {
    body: Bytes,
    documents: usize,
}

impl Prepared {
    /// How many documents it has.
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
    /// Makes a client; it connects when it sends.
    ///
    /// # Errors
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
        // What comes after the host is a port, or nothing; another would be taken for 80.
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

    /// The clock by which requests are sent.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Encodes a request.
    pub fn prepare(&self, case: &Case) -> Prepared {
        let ask = Ask { query: &case.query, documents: &case.documents };
        let body = self.target.dialect.ask(self.target.model.as_deref(), ask);
        Prepared { body: body.into(), documents: case.documents.len() }
    }

    /// Sends a request and waits for its answer, until its time is up.
    pub async fn send(&self, request: &Prepared, headers: &HeaderMap) -> Sent {
        let mut began = None;
        let answer = tokio::time::timeout(self.limits.timeout.into(), async {
            let _one = self.free.acquire().await.expect("the semaphore is never closed");
            began = Some(self.clock.now());
            self.exchange(request, headers).await
        });
        let answer = answer.await.unwrap_or(Err(Fault::TimedOut));
        // Reading the scores is the client's work, and not in the latency.
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
            let kept = self.idle.lock().expect("nobody panics with the lock").pop();
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
                        self.idle.lock().expect("nobody panics with the lock").push(connection);
                    }
                    return Ok((Response::from_parts(head, ()), body));
                }
                // The server closed a connection that had been idle before it saw the request.
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
        // A request is small, and waits for nothing that would fill the packet.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| refused(&error))?;
        // It ends with the connection; what broke it is told to who waits for the answer.
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

    /// Asks once, so that what is wrong with the address, the dialect or the key is told before a load of it.
    /// A server that is only busy, or that a budget is too short for, is fine.
    ///
    /// # Errors
    /// What would become of every other request, too.
    pub async fn probe(&self, case: &Case, kind: &Kind) -> Result<(), Fault> {
        match self.send(&self.prepare(case), &kind.headers()).await.result {
            Ok(_) | Err(Fault::Status { code: 429 | 503 | 504, .. }) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}
