//! Faults of a primary lane on a real server under load: every request is answered once, in time or declared late, the
//! books balance, and the lane recovers.

mod common;

use common::{Options, Reply, TestServer, post, setup};
use podium::backend::{Play, Script, Scripted};
use podium::ledger::report::Query;
use podium::ledger::store::Store;
use serde_json::json;
use std::io::{BufReader, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const CLIENTS: usize = 8;
const BUDGET_MS: u64 = 500;

/// Counts of the answers that clients got.
#[derive(Default)]
struct Seen {
    answers: AtomicU64,
    degraded: AtomicU64,
    refused: AtomicU64,
    device_ns: AtomicU64,
}

impl Seen {
    /// Checks a reply's status, tier and reason.
    fn see(&self, reply: &Reply) {
        if reply.status != 200 {
            let code = reply.header("x-podium-error").unwrap();
            assert!(matches!(reply.status, 500 | 503), "{}: {}", reply.status, reply.text());
            assert!(matches!(code, "unavailable" | "budget_too_short" | "model_failed"), "{code}");
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.answers.fetch_add(1, Ordering::Relaxed);
        let number = |name| reply.header(name).unwrap().parse::<f64>().unwrap();
        self.device_ns.fetch_add(number("x-podium-device-ns") as u64, Ordering::Relaxed);
        let degraded = reply.header("x-podium-degraded");
        if number("x-podium-elapsed-ms") > BUDGET_MS as f64 {
            assert_eq!(degraded, Some("late"), "nothing late goes undeclared");
        }
        if reply.header("x-podium-tier") != Some("full") {
            let why = degraded.expect("an answer of less than the primary says why");
            assert!(why.starts_with("primary_") || why == "predicted_late" || why == "late", "{why}");
            self.degraded.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn request() -> Vec<u8> {
    let documents: Vec<String> = (0..4).map(|n| format!("abc {}", "d".repeat(n))).collect();
    let body = json!({"query": "ab", "documents": documents, "latency_budget_ms": BUDGET_MS});
    post("/v1/rank", "", body.to_string())
}

/// Plays each fault after a number of answers while clients send requests, waits until the primary answers again, and
/// audits the books.
fn drill(plays: Vec<Play>, apart: u64, stall: Option<Duration>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&folder.path().join("ledger.sqlite")).unwrap());
    let script = Script::default();
    let primary =
        Scripted { script: script.clone(), per_token: Duration::from_micros(20), ..Scripted::default() };
    let mut setup = setup(primary, Some(Scripted::default()));
    if let Some(stall) = stall {
        setup.limits.stall_ns_min = podium::base::Ns(stall.as_nanos() as u64);
    }
    setup.books.store = Some(store.clone());
    let server = TestServer::start(setup, Options::default());
    let (seen, going) = (Seen::default(), AtomicBool::new(true));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut stream = BufReader::new(server.connect());
                while going.load(Ordering::Relaxed) {
                    stream.get_mut().write_all(&request()).unwrap();
                    seen.see(&Reply::read(&mut stream).expect("each request is answered"));
                }
            });
        }
        while seen.answers.load(Ordering::Relaxed) < 50 {
            thread::yield_now();
        }
        assert_eq!(seen.degraded.load(Ordering::Relaxed), 0, "before the fault the primary answers");
        for play in plays {
            // Spaces the faults, so that they do not all hit the lane's next batches.
            let next = seen.answers.load(Ordering::Relaxed) + apart;
            script.extend([play]);
            while script.left() > 0 || seen.answers.load(Ordering::Relaxed) < next {
                thread::yield_now();
            }
        }
        // The primary has recovered when a burst of answers has no degraded one.
        let mut mark = (0, u64::MAX);
        loop {
            let (answers, degraded) =
                (seen.answers.load(Ordering::Relaxed), seen.degraded.load(Ordering::Relaxed));
            if degraded != mark.1 {
                mark = (answers, degraded);
            } else if answers >= mark.0 + 50 {
                break;
            }
            thread::yield_now();
        }
        going.store(false, Ordering::Relaxed);
    });
    assert_eq!(server.handle.inside(), 0, "no request is forgotten");
    let clients = seen.answers.into_inner();
    drop(server);
    store.flush();
    let rows = Store::query(store.path(), &Query::default()).unwrap();
    let sum = |of: fn(&podium::ledger::report::CostRow) -> u64| rows.iter().map(of).sum::<u64>();
    assert_eq!(sum(|row| row.requests), clients);
    assert_eq!(sum(|row| row.device_ns.0), seen.device_ns.into_inner(), "the ledger is the responses' sum");
}

#[test]
fn a_panic_under_load_costs_nobody_an_answer() {
    drill(vec![Play::Panic], 0, None);
}

#[test]
fn panics_one_after_the_other_cost_nobody_an_answer() {
    drill(vec![Play::Panic, Play::Answer, Play::Panic, Play::Panic], 0, None);
}

#[test]
fn a_nan_under_load_is_nobody_s_score() {
    drill(vec![Play::NonFinite], 0, None);
}

#[test]
fn a_failure_under_load_costs_nobody_an_answer() {
    drill(vec![Play::Fail], 0, None);
}

#[test]
fn memory_that_runs_out_under_load_makes_batches_smaller() {
    drill(vec![Play::OutOfMemory, Play::OutOfMemory], 0, None);
}

#[test]
fn a_lane_that_hangs_for_ten_seconds_is_given_up_and_made_anew() {
    drill(vec![Play::Hang(Duration::from_secs(10))], 0, Some(Duration::from_millis(300)));
}

#[test]
fn ten_thousand_answers_with_hedges_and_failures_are_in_the_ledger_to_the_nanosecond() {
    let hang = || Play::Hang(Duration::from_millis(900));
    let faults = [Play::Panic, Play::NonFinite, hang(), Play::OutOfMemory, Play::Fail, hang(), Play::Panic];
    let plays = faults.into_iter().chain([Play::NonFinite, hang(), Play::OutOfMemory]).collect();
    drill(plays, 1_000, Some(Duration::from_secs(5)));
}
