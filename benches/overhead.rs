//! The server's overhead: requests per second of the whole server over a scorer that answers at once, relative to a
//! bare hyper server that only parses the same body.
//!
//!     cargo bench --bench overhead                        the ratio; 0.5 is the floor
//!     cargo bench --bench overhead -- --soak 1000000      resident memory over this many requests
//!
//! One query and 32 documents of 100 tokens, all in the token cache. Both servers run in this process, in turns, with
//! the same simple blocking clients.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock and waits")]

#[path = "../tests/common/mod.rs"]
mod common;

use bytes::Bytes;
use common::{Options, TestServer, post, setup};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use podium::backend::{ScoreError, Scorer, Scripted};
use podium::token::Packed;
use serde::Deserialize;
use std::convert::Infallible;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLIENTS: usize = 64;
const ROUNDS: usize = 21;
const ROUND: Duration = Duration::from_millis(500);

/// What the bare server parses.
#[derive(Deserialize)]
struct Body {
    query: String,
    documents: Vec<String>,
}

/// Answers at once.
struct Instantly;

impl Scorer for Instantly {
    fn score(&mut self, _: &Packed, logits: &mut [f32]) -> Result<(), ScoreError> {
        logits.iter_mut().zip(1_u8..).for_each(|(logit, place)| *logit = f32::from(place) / 8.0);
        Ok(())
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let soak = arguments.iter().position(|argument| argument == "--soak");
    let soak = soak.map(|place| arguments[place + 1].parse::<u64>().expect("--soak takes a number"));
    let mut setup = setup(Scripted::default(), None);
    setup.models[0].lanes[0].depth = 2;
    setup.models[0].lanes[0].batch_tokens_max = 1 << 14;
    setup.models[0].lanes[0].make = Arc::new(|| Ok(Box::new(Instantly)));
    let server = TestServer::start(setup, Options::default());
    let request = request();
    match soak {
        Some(requests) => soak_for(&server, &request, requests),
        None => compare(&server, bare(), &request),
    }
}

/// A query of 12 tokens and 32 documents of 100, in words of five letters.
fn request() -> Vec<u8> {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    let word = |n: usize| (0..5).map(|place| letter(n / (place + 1) + place)).collect::<String>();
    let document = |n: usize| (0..20).map(|w| word(n * 37 + w * 11)).collect::<Vec<_>>().join(" ");
    let documents: Vec<String> = (0..32).map(document).collect();
    let body = serde_json::json!({"query": "abc def ghi jkl", "documents": documents});
    post("/v1/rank", "", body.to_string())
}

fn compare(server: &TestServer, bare: SocketAddr, request: &[u8]) {
    for address in [server.address, bare] {
        load(address, request, 4 * ROUND);
    }
    // Each ratio compares neighbouring rounds, because the machine's speed drifts.
    let mut rounds: Vec<[f64; 3]> = (0..ROUNDS)
        .map(|_| {
            let [podium, bare] = [server.address, bare].map(|address| load(address, request, ROUND));
            [podium / bare, podium, bare]
        })
        .collect();
    rounds.sort_by(|a, b| a[0].total_cmp(&b[0]));
    for (name, place) in [("worst", 0), ("median", ROUNDS / 2), ("best", ROUNDS - 1)] {
        let [ratio, podium, bare] = rounds[place];
        println!("{name:>6}: podium {podium:6.0}/s, bare {bare:6.0}/s, ratio {ratio:.2} (floor 0.50)");
    }
}

fn soak_for(server: &TestServer, request: &[u8], requests: u64) {
    let mut done = 0;
    while done < requests {
        println!("{done:>9} requests: {:>7} kB resident", resident_kb());
        let part = (requests / 10).max(1);
        let sent = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    client(server.address, request, || sent.fetch_add(1, Ordering::Relaxed) < part)
                });
            }
        });
        done += part;
    }
    println!("{done:>9} requests: {:>7} kB resident", resident_kb());
}

/// Requests per second of [`CLIENTS`] clients, each with one request at a time.
fn load(address: SocketAddr, request: &[u8], time: Duration) -> f64 {
    let (going, answered) = (AtomicBool::new(true), AtomicU64::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let count = client(address, request, || going.load(Ordering::Relaxed));
                answered.fetch_add(count, Ordering::Relaxed);
            });
        }
        std::thread::sleep(time);
        going.store(false, Ordering::Relaxed);
    });
    answered.into_inner() as f64 / started.elapsed().as_secs_f64()
}

fn client(address: SocketAddr, request: &[u8], go_on: impl Fn() -> bool) -> u64 {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let mut buffer = vec![0; 64 << 10];
    let mut answered = 0;
    while go_on() {
        stream.write_all(request).expect("the server reads");
        let mut read = 0;
        while !is_whole(&buffer[..read]) {
            let more = stream.read(&mut buffer[read..]).expect("the server answers");
            assert!(more > 0, "the server closed the connection");
            read += more;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..read]));
        answered += 1;
    }
    answered
}

/// Whether a complete answer has arrived.
fn is_whole(answer: &[u8]) -> bool {
    let find = |what: &[u8]| answer.windows(what.len()).position(|window| window == what);
    let Some(end) = find(b"\r\n\r\n") else { return false };
    let length = find(b"content-length: ").expect("an answer has its length") + b"content-length: ".len();
    let digits = answer[length..].iter().take_while(|c| c.is_ascii_digit());
    let length = digits.fold(0, |length, digit| 10 * length + usize::from(digit - b'0'));
    answer.len() >= end + 4 + length
}

/// A server that reads and parses bodies and answers with a constant.
fn bare() -> SocketAddr {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            sender.send(listener.local_addr().expect("an address")).expect("the receiver is waiting");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let _ = stream.set_nodelay(true);
                let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| async {
                    let body = request.into_body().collect().await.expect("a whole body").to_bytes();
                    let body: Body = serde_json::from_slice(&body).expect("a body that is valid");
                    black_box((&body.query, &body.documents));
                    Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from_static(b"{}"))))
                });
                tokio::spawn(async move {
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    receiver.recv().expect("the server starts")
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this runs on Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it tells VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
