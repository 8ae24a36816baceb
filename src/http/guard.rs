//! A stream that closes if a client does not begin its request or does not read its answer.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The bytes that distinguish HTTP/1 and HTTP/2 (RFC 9113, 3.4). hyper's own time limits begin after them.
const PREFACE: usize = 24;

/// Wraps a stream.
pub(super) struct Guarded<IO> {
    stream: IO,
    read: usize,
    /// Set until the preface has arrived.
    opening: Option<Pin<Box<Sleep>>>,
    write_patience: Duration,
    /// Set while the client reads nothing.
    writing: Option<Pin<Box<Sleep>>>,
    /// An answer that replaces hyper's, and the bytes of it that are sent.
    explained: Option<(Vec<u8>, usize)>,
}

impl<IO> Guarded<IO> {
    /// Allows the client `open_patience` for its first bytes, and `write_patience` for each wait of a write.
    pub fn new(stream: IO, open_patience: Duration, write_patience: Duration) -> Self {
        let opening = Some(Box::pin(sleep(open_patience)));
        Self { stream, read: 0, opening, write_patience, writing: None, explained: None }
    }
}

/// The beginning of hyper's own answers to malformed requests.
const REFUSED: &[u8] = b"HTTP/1.1 4";
/// The end of those answers, which have no body; ours always have one.
const BARE: &str = "content-length: 0\r\n";

/// An answer that hyper makes itself, with a body that names the error; none for any other.
fn explained(head: &[u8]) -> Option<Vec<u8>> {
    let head = std::str::from_utf8(head.starts_with(REFUSED).then_some(head)?).ok()?;
    let (code, message) = match head.get(9..12)? {
        "400" => ("invalid_request", "this is not HTTP, or it is TLS, and this port is plain: use http://"),
        "408" => ("timeout", "the header did not come in time (http.header_ms_max)"),
        "414" => ("header_too_large", "the path is too long (http.header_bytes_max)"),
        "431" => {
            let message =
                "the header is too large (http.header_bytes_max) or has too many fields (http.headers_max)";
            ("header_too_large", message)
        }
        _ => return None,
    };
    let bare = head.contains(BARE) && head.ends_with("\r\n\r\n");
    bare.then(|| {
        let body = format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#);
        let length = body.len();
        let fields = format!(
            "content-type: application/json\r\nx-podium-error: {code}\r\ncontent-length: {length}\r\n"
        );
        (head.replacen(BARE, &fields, 1) + &body).into_bytes()
    })
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(result) => {
                this.read += buffer.filled().len() - before;
                if this.read >= PREFACE {
                    this.opening = None;
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                let Some(opening) = &mut this.opening else { return Poll::Pending };
                ready!(opening.as_mut().poll(cx));
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> Guarded<IO> {
    fn patient<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut IO>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match poll(Pin::new(&mut self.stream), cx) {
            Poll::Ready(result) => {
                self.writing = None;
                Poll::Ready(result)
            }
            Poll::Pending => {
                let patience = self.write_patience;
                let writing = self.writing.get_or_insert_with(|| Box::pin(sleep(patience)));
                ready!(writing.as_mut().poll(cx));
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some((text, mut sent)) = self.explained.take().or_else(|| Some((explained(bytes)?, 0))) else {
            return self.patient(cx, |stream, cx| stream.poll_write(cx, bytes));
        };
        while sent < text.len() {
            match self.patient(cx, |stream, cx| stream.poll_write(cx, &text[sent..])) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(more)) => sent += more,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.explained = Some((text, sent));
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.patient(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.patient(cx, |stream, cx| stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            [head, rest @ ..] if head.starts_with(REFUSED) && rest.iter().all(|slice| slice.is_empty()) => {
                self.poll_write(cx, head)
            }
            _ => self.patient(cx, |stream, cx| stream.poll_write_vectored(cx, slices)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(3_600);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        // Paused time jumps to the next timer if nothing else happens.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(future)
    }

    #[test]
    fn an_answer_without_a_body_gets_one_that_says_what_is_wrong() {
        for (status, code) in [("400 Bad Request", "invalid_request"), ("431 Too Large", "header_too_large")]
        {
            let bare = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            block_on(async {
                // The pipe is smaller than the answer.
                let (mut client, server) = duplex(16);
                let mut guarded = Guarded::new(server, LONG, LONG);
                let write = async {
                    guarded.write_all(bare.as_bytes()).await.unwrap();
                    drop(guarded);
                };
                let mut answer = String::new();
                let (read, ()) = tokio::join!(client.read_to_string(&mut answer), write);
                read.unwrap();
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                assert_eq!(body["error"]["code"], code);
            });
        }
        let ours = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(explained(ours), None);
    }

    #[test]
    fn a_client_that_says_nothing_is_given_up() {
        block_on(async {
            let (_client, server) = duplex(64);
            let error = Guarded::new(server, SHORT, LONG).read_u8().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_client_that_has_begun_is_hyper_s_business() {
        block_on(async {
            let (mut client, server) = duplex(64);
            let mut guarded = Guarded::new(server, SHORT, LONG);
            client.write_all(&[7; PREFACE]).await.unwrap();
            guarded.read_exact(&mut [0; PREFACE]).await.unwrap();
            assert!(tokio::time::timeout(10 * SHORT, guarded.read_u8()).await.is_err());
        });
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up() {
        block_on(async {
            let (_client, server) = duplex(64);
            let mut guarded = Guarded::new(server, LONG, SHORT);
            let error = guarded.write_all(&[7; 100]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        });
    }
}
