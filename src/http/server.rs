//! Connections: accepted up to a limit, closed if slow, drained at the end.

use super::guard::Guarded;
use super::handler::App;
use crate::base::Ns;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// The wait before accepting again when no file descriptor is free.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// A system that is out of descriptors fails again with each try; the log says so this often.
const ACCEPT_FAILURES_TOLD_EVERY: Ns = Ns::from_millis(10_000);

/// The backlog of connections to accept; the system limits it too. With a smaller one a burst of clients is rejected
/// and retries only after a second.
const BACKLOG: u32 = 4_096;

/// The server's limits, each with its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerLimits {
    /// Most open connections. Bounds memory: an idle one takes a few kilobytes.
    pub connections_max: usize,
    /// Most bytes of a request's header: enough for tokens and traces.
    pub header_bytes_max: usize,
    /// Most fields of a request's header.
    pub headers_max: usize,
    /// Most bytes of a body: enough for 10,000 documents of 1,600 bytes.
    pub body_bytes_max: usize,
    /// Most milliseconds from accept, or from the last answer, to the end of the next header. Closes idle and slow
    /// clients.
    pub header_ms_max: u64,
    /// Most milliseconds from the end of the header to the end of the body.
    pub body_ms_max: u64,
    /// Most milliseconds in which a client reads nothing of its answer.
    pub write_ms_max: u64,
    /// Most concurrent requests of an HTTP/2 connection.
    pub streams_max: u32,
    /// Milliseconds in which requests inside are finished when the server drains.
    pub drain_ms_max: u64,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            header_bytes_max: 32 << 10,
            headers_max: 100,
            body_bytes_max: 16 << 20,
            header_ms_max: 60_000,
            body_ms_max: 30_000,
            write_ms_max: 30_000,
            streams_max: 256,
            drain_ms_max: 30_000,
        }
    }
}

impl ServerLimits {
    /// Checks the values.
    ///
    /// # Errors
    /// The message names the key and the limit.
    pub fn check(&self) -> Result<(), String> {
        let rows = [
            ("connections_max", self.connections_max as u64, 1),
            // hyper's own minimum.
            ("header_bytes_max", self.header_bytes_max as u64, 8_192),
            ("headers_max", self.headers_max as u64, 16),
            ("body_bytes_max", self.body_bytes_max as u64, 1_024),
            ("header_ms_max", self.header_ms_max, 1),
            ("body_ms_max", self.body_ms_max, 1),
            ("write_ms_max", self.write_ms_max, 1),
            ("streams_max", u64::from(self.streams_max), 1),
        ];
        match rows.iter().find(|(_, value, min)| value < min) {
            Some((key, value, min)) => Err(format!("{key}: {value} is less than {min}")),
            None => Ok(()),
        }
    }
}

/// Counts of connections, for metrics.
#[derive(Debug, Default)]
pub struct Connections {
    /// Open now.
    pub open: AtomicUsize,
    /// Accepted since the start.
    pub accepted: AtomicU64,
    /// Turned away since the start, because too many were open.
    pub rejected: AtomicU64,
    /// Not to be had from the system since the start.
    pub failed: AtomicU64,
}

/// Listens on an address.
///
/// # Errors
/// As the system says: the port is taken, or not ours to take.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that is started again does not wait for its last connections' ends.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves connections.
#[derive(Clone)]
pub struct Server {
    /// Answers requests; its limits hold for connections too.
    pub app: Arc<App>,
    /// Without it connections are plain.
    pub tls: Option<TlsAcceptor>,
}

impl Server {
    /// Serves a listener until `drain` turns true and its connections have ended, or their time
    /// is up.
    pub async fn run(self, listener: TcpListener, mut drain: watch::Receiver<bool>) {
        let graceful = GracefulShutdown::new();
        let mut failures = Failures::default();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = drain.wait_for(|&draining| draining) => break,
            };
            match accepted {
                Ok((stream, _)) => self.accept(stream, &graceful),
                // A client that was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.app.connections.failed.fetch_add(1, Ordering::Relaxed);
                    if let Some(failures) = failures.count(self.app.handle.now()) {
                        tracing::warn!(%error, failures, "connections could not be accepted");
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        drop(listener);
        let grace = Duration::from_millis(self.app.limits.drain_ms_max);
        if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
            let open = self.app.connections.open.load(Ordering::Relaxed);
            tracing::warn!(open, "connections are still open at the end of the drain time");
        }
    }

    fn accept(&self, stream: TcpStream, graceful: &GracefulShutdown) {
        if self.app.connections.open.fetch_add(1, Ordering::Relaxed) >= self.app.limits.connections_max {
            self.app.connections.open.fetch_sub(1, Ordering::Relaxed);
            self.app.connections.rejected.fetch_add(1, Ordering::Relaxed);
            // Plain text to a TLS client is noise, but so is silence.
            let _ = stream.try_write(
                b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
                  content-length: 0\r\n\r\n",
            );
            return;
        }
        self.app.connections.accepted.fetch_add(1, Ordering::Relaxed);
        let open = Open(self.app.connections.clone());
        // Answers are small and wait for nothing that would fill the packet.
        let _ = stream.set_nodelay(true);
        let watcher = graceful.watcher();
        let this = self.clone();
        tokio::spawn(async move {
            let _open = open;
            let patience = Duration::from_millis(this.app.limits.header_ms_max);
            match &this.tls {
                None => this.serve(stream, watcher).await,
                Some(tls) => {
                    let handshake = async {
                        match is_plain(&stream).await {
                            true => Err(stream),
                            false => Ok(tls.accept(stream).await),
                        }
                    };
                    match tokio::time::timeout(patience, handshake).await {
                        Ok(Ok(Ok(stream))) => this.serve(stream, watcher).await,
                        Ok(Ok(Err(error))) => tracing::debug!(%error, "a TLS handshake failed"),
                        Ok(Err(stream)) => turn_away(stream, "400 Bad Request", &WANTS_TLS).await,
                        Err(_) => tracing::debug!("a TLS handshake took too long"),
                    }
                }
            }
        });
    }

    async fn serve<IO>(&self, stream: IO, watcher: hyper_util::server::graceful::Watcher)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let limits = &self.app.limits;
        let patience = Duration::from_millis(limits.header_ms_max);
        let guarded = Guarded::new(stream, patience, Duration::from_millis(limits.write_ms_max));
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(limits.header_bytes_max)
            .max_headers(limits.headers_max)
            .half_close(false);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams_max)
            .max_header_list_size(limits.header_bytes_max as u32)
            // A peer that is gone without a word is noticed by its silence to pings.
            .keep_alive_interval(patience)
            .keep_alive_timeout(patience);
        let app = self.app.clone();
        let service = service_fn(move |request| {
            let app = app.clone();
            async move { Ok::<_, Infallible>(app.respond(request).await) }
        });
        let connection = builder.serve_connection(TokioIo::new(guarded), service);
        if let Err(error) = watcher.watch(connection.into_owned()).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// What a client that speaks plain HTTP to a port with TLS is told.
const WANTS_TLS: [&str; 2] = ["invalid_request", "this port speaks TLS: use https://"];

/// The type of the first record of a TLS connection (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// Whether a client speaks something else than TLS.
async fn is_plain(stream: &TcpStream) -> bool {
    let mut first = [HANDSHAKE];
    stream.peek(&mut first).await.is_ok_and(|read| read == 1) && first[0] != HANDSHAKE
}

/// Answers a client whatever it asked, and ends its connection.
async fn turn_away(mut stream: TcpStream, status: &str, [code, message]: &[&str; 2]) {
    // What has come is read: a connection that ends with some unread is reset, and its answer lost.
    let _ = stream.try_read(&mut [0; 4_096]);
    let body = format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#);
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         x-podium-error: {code}\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Failures to accept, and when the log last had them.
#[derive(Default)]
struct Failures {
    since: u64,
    told: Option<Ns>,
}

impl Failures {
    /// Counts one; how many there are since the log last had any, where it is to have them now.
    fn count(&mut self, now: Ns) -> Option<u64> {
        self.since += 1;
        if self.told.is_some_and(|told| now < told.saturating_add(ACCEPT_FAILURES_TOLD_EVERY)) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

/// Counts a connection until it is dropped.
struct Open(Arc<Connections>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_to_accept_are_told_at_once_and_then_every_ten_seconds() {
        let mut failures = Failures::default();
        let told: Vec<(u64, u64)> = (0..500_u64)
            .filter_map(|try_| Some((try_ * 50, failures.count(Ns::from_millis(try_ * 50))?)))
            .collect();
        assert_eq!(told, [(0, 1), (10_000, 200), (20_000, 200)]);
    }
}
