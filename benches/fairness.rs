//! Fairness on a real server: how much a flood of one tenant moves another's p99.
//!
//!     cargo bench --bench fairness        the limit is one batch time
//!
//! The scorer sleeps 0.5 ms per pair. One tenant sends an open loop at 40% of capacity. The other tenant, of equal
//! weight, first sends nothing, then has 256 requests waiting at all times.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock and waits")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Options, Reply, TestServer, post, setup};
use podium::backend::Scripted;
use podium::base::{Ns, TenantId};
use podium::sched::TenantConfig;
use serde_json::json;
use std::io::{BufReader, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const DOCUMENTS: usize = 8;
const BATCH: Duration = Duration::from_millis(20);
const CALM: &str = "authorization: Bearer calm-key\r\n";
const FLOOD: &str = "authorization: Bearer flood-key\r\n";
const SECONDS: f64 = 15.0;

fn main() {
    let primary = Scripted { per_token: Duration::from_micros(50), ..Scripted::default() };
    let mut setup = setup(primary, None);
    setup.tenants = ["calm", "flood"].map(|name| (name.into(), TenantConfig::default())).to_vec();
    setup.limits.batch_ns_max = Ns(BATCH.as_nanos() as u64);
    let keys = vec![("calm-key", TenantId(0)), ("flood-key", TenantId(1))];
    let server = TestServer::start(setup, Options { keys, ..Options::default() });
    let capacity = closed_loop(&server, CALM, 8, Duration::from_secs(3)) as f64 / 3.0;
    println!("capacity: {capacity:.0} requests a second");
    for round in 1..=2 {
        let alone = quantiles(&server, 0.4 * capacity);
        let (going, answered) = (AtomicBool::new(true), AtomicU64::new(0));
        let beside = thread::scope(|scope| {
            for _ in 0..256 {
                scope.spawn(|| {
                    let mut stream = BufReader::new(server.connect());
                    while going.load(Ordering::Relaxed) {
                        send(&mut stream, FLOOD);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let beside = quantiles(&server, 0.4 * capacity);
            going.store(false, Ordering::Relaxed);
            beside
        });
        let moved = beside.1.saturating_sub(alone.1);
        println!(
            "round {round}: p50 {:.1?} alone, {:.1?} beside the flood; p99 {:.1?} alone, {:.1?} beside it: \
             moved by {moved:.1?} (ceiling {BATCH:?}); the flood got {:.0}% of capacity",
            alone.0,
            beside.0,
            alone.1,
            beside.1,
            answered.load(Ordering::Relaxed) as f64 / SECONDS / capacity * 100.0
        );
    }
}

fn send(stream: &mut BufReader<std::net::TcpStream>, key: &str) {
    let documents = vec!["abcdefg"; DOCUMENTS];
    let body = json!({"query": "a", "documents": documents});
    stream.get_mut().write_all(&post("/v1/rank", key, body.to_string())).expect("the server reads");
    let reply = Reply::read(stream).expect("each request is answered");
    assert_eq!(reply.status, 200, "{}", reply.text());
}

fn closed_loop(server: &TestServer, key: &str, clients: usize, time: Duration) -> u64 {
    let (started, answered) = (Instant::now(), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut stream = BufReader::new(server.connect());
                while started.elapsed() < time {
                    send(&mut stream, key);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    answered.into_inner()
}

/// p50 and p99 of the first tenant's latency, from the scheduled time, with constant distances.
fn quantiles(server: &TestServer, rate: f64) -> (Duration, Duration) {
    let count = (rate * SECONDS) as usize;
    let (next, latencies, started) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Instant::now());
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let mut stream = BufReader::new(server.connect());
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    if place >= count {
                        return;
                    }
                    let at = Duration::from_secs_f64(place as f64 / rate);
                    thread::sleep(at.saturating_sub(started.elapsed()));
                    send(&mut stream, CALM);
                    latencies.lock().expect("no thread panics").push(started.elapsed().saturating_sub(at));
                }
            });
        }
    });
    let mut latencies = latencies.into_inner().expect("no thread panics");
    latencies.sort();
    let quantile = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    (quantile(0.5), quantile(0.99))
}
