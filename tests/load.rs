//! The load harness against servers with scripted behaviour: it must measure what they did.
//!
//! These tests take real time. The servers are slow, so that 2% of a latency is more than the noise of a busy machine.

mod common;

use common::{Options, TestServer, logit, setup};
use podium::backend::Scripted;
use podium::base::{Ns, TenantId};
use podium::engine::Clock;
use podium::load::{
    Arrivals, Case, Client, ClientLimits, Figures, Found, Kind, Load, Pace, RunPlan, RunReport, Slo,
    SweepPlan, Target, VersusPlan, run, sweep, versus,
};
use podium::rerank::sigmoid;
use podium::wire::Dialect;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};

/// What a scripted server does with a request.
enum Play {
    /// Answers with a score after this long.
    Answer(Duration),
    /// Answers with a score at this time since the server's first request.
    AnswerAt(Duration),
    /// Answers with this status and body.
    Say(u16, &'static str),
    /// Closes the connection.
    Close,
    /// Never answers.
    Hang,
}

/// Starts a server that asks its script about each request, by number and time since the first one. It lives as long as
/// the test.
fn scripted(script: impl Fn(usize, Duration) -> Play + Send + Sync + 'static) -> SocketAddr {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            let (script, count) = (Arc::new(script), Arc::new(AtomicUsize::new(0)));
            let first = Arc::new(std::sync::OnceLock::new());
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, count, first) = (script.clone(), count.clone(), first.clone());
                tokio::spawn(async move {
                    stream.set_nodelay(true).unwrap();
                    let mut stream = BufReader::new(stream);
                    while read(&mut stream).await.is_some() {
                        let first = *first.get_or_init(Instant::now);
                        let play = script(count.fetch_add(1, Ordering::Relaxed), first.elapsed());
                        let (status, body) = match play {
                            Play::Answer(after) => {
                                sleep(after).await;
                                (200, r#"{"results":[{"index":0,"score":1.5}]}"#)
                            }
                            Play::AnswerAt(at) => {
                                sleep_until(first + at).await;
                                (200, r#"{"results":[{"index":0,"score":1.5}]}"#)
                            }
                            Play::Say(status, body) => (status, body),
                            Play::Close => return,
                            Play::Hang => std::future::pending().await,
                        };
                        let length = body.len();
                        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}");
                        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
    receiver.recv().unwrap()
}

/// Reads a request; none at the end of the connection.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    stream.read_exact(&mut vec![0; length]).await.ok()?;
    Some(())
}

fn case() -> Case {
    Case { query: "q".to_owned(), documents: vec!["a".to_owned()], instruction: None }
}

fn load(address: SocketAddr, limits: ClientLimits) -> Arc<Load> {
    let target = Target { url: format!("http://{address}"), dialect: Dialect::Podium, model: None };
    let client = Client::new(target, limits, Clock::start()).unwrap();
    Arc::new(Load::new(client, &[case()], vec![Kind::default()]))
}

fn plan(pace: Pace, seconds: u64) -> RunPlan {
    RunPlan {
        pace,
        duration: Ns::from_millis(1_000 * seconds),
        warmup: Ns::ZERO,
        seed: 1,
        slo: None,
        answers_min: 0,
    }
}

fn constant(rate: f64) -> Pace {
    Pace::Open { arrivals: Arrivals::Constant, rate }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn figures(load: &Arc<Load>, plan: &RunPlan) -> Figures {
    let found: Found = block_on(run(load, plan, &mut |_| {}));
    RunReport::of(load, plan, &found, Ns::from_millis(5)).all
}

#[test]
fn a_known_distribution_is_recovered_within_two_percent() {
    // 320 requests at distinct quantiles of an exponential tail above 200 ms, in a mixed order.
    const REQUESTS: usize = 320;
    let latency = |n: usize| {
        let left = 1.0 - ((n * 117) % REQUESTS) as f64 / REQUESTS as f64;
        Duration::from_secs_f64(0.2 - 0.1 * left.ln())
    };
    let server = scripted(move |n, _| Play::Answer(latency(n)));
    let found = figures(&load(server, ClientLimits::default()), &plan(constant(40.0), 8));
    assert_eq!((found.sent, found.answered), (320, 320), "{:?}", found.failed);
    let mut right: Vec<f64> = (0..REQUESTS).map(|n| 1e3 * latency(n).as_secs_f64()).collect();
    right.sort_by(f64::total_cmp);
    for percentile in [50.0, 90.0, 95.0, 99.0] {
        let rank = (percentile / 100.0 * REQUESTS as f64).ceil() as usize;
        let (found, right) = (found.percentile(percentile), right[rank - 1]);
        assert!((found / right - 1.0).abs() < 0.02, "p{percentile}: {found} in place of {right}");
    }
}

#[test]
fn an_open_loop_shows_the_tail_of_a_stall_and_a_closed_loop_hides_it() {
    // 50 ms, but no answers during the second second.
    let stall = |_: usize, now: Duration| match now.as_secs_f64() {
        1.0..2.0 => Play::AnswerAt(Duration::from_secs(2)),
        _ => Play::Answer(Duration::from_millis(50)),
    };
    let open = figures(&load(scripted(stall), ClientLimits::default()), &plan(constant(50.0), 4));
    let closed = load(scripted(stall), ClientLimits::default());
    let closed = figures(&closed, &plan(Pace::Closed { clients: 4 }, 4));
    assert_eq!((open.failures(), closed.failures()), (0, 0));
    // A quarter of the schedule falls into the stall. The overall p95 is at four fifths of it.
    let tail = open.percentile(95.0);
    assert!((700.0..950.0).contains(&tail), "the open loop's p95 is {tail} ms");
    // The stall hits only four requests, one of each client.
    let tail = closed.percentile(95.0);
    assert!(closed.answered > 100 && tail < 150.0, "the closed loop's p95 is {tail} ms");
}

#[test]
fn what_goes_wrong_is_counted_apart_and_not_waited_for() {
    let server = scripted(|n, _| match n % 6 {
        0 => Play::Answer(Duration::ZERO),
        1 => Play::Say(200, "{}"),
        2 => Play::Say(200, r#"{"results":[{"index":7,"score":1}]}"#),
        3 => Play::Say(503, "later"),
        4 => Play::Close,
        _ => Play::Hang,
    });
    let limits = ClientLimits { timeout: Ns::from_millis(500), ..ClientLimits::default() };
    let found = figures(&load(server, limits), &plan(constant(60.0), 1));
    let counted: Vec<(&str, u64)> =
        found.failed.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(found.answered, 10);
    assert_eq!(counted, [("connection lost", 10), ("malformed", 20), ("status 503", 10), ("timed out", 10)]);
}

#[test]
fn a_server_that_refuses_is_told_by_both_loops() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for pace in [constant(20.0), Pace::Closed { clients: 2 }] {
        let found = figures(&load(address, ClientLimits::default()), &plan(pace.clone(), 1));
        assert!(found.answered == 0 && found.failed["refused"] == found.sent && found.sent > 0, "{pace}");
        assert!(found.failed_first.unwrap().contains("refused: "));
    }
}

#[test]
fn a_client_without_a_free_connection_says_that_it_fell_behind() {
    let load = load(
        scripted(|_, _| Play::Answer(Duration::from_millis(200))),
        ClientLimits { connections_max: 1, ..ClientLimits::default() },
    );
    let plan = plan(constant(20.0), 1);
    let found = block_on(run(&load, &plan, &mut |_| {}));
    let report = RunReport::of(&load, &plan, &found, Ns::from_millis(5));
    assert!(report.invalid.unwrap().contains("fell behind"));
}

#[test]
fn every_dialect_gets_its_scores_from_our_own_server() {
    let server = TestServer::start(setup(Scripted::default(), None), Options::default());
    let documents = ["abc", "x y z", "b a", "q"];
    let case = Case {
        query: "ab".to_owned(),
        documents: documents.iter().map(|text| (*text).to_owned()).collect(),
        instruction: None,
    };
    let logits = documents.map(|document| f64::from(logit("ab", document)));
    let probabilities = documents.map(|document| f64::from(sigmoid(logit("ab", document))));
    for dialect in Dialect::ALL {
        let model = dialect.needs_model().then(|| "large".to_owned());
        let target = Target { url: format!("http://{}/", server.address), dialect, model };
        let client = Client::new(target, ClientLimits::default(), Clock::start()).unwrap();
        let answer = block_on(async {
            client
                .probe(&case, &Kind::default())
                .await
                .unwrap_or_else(|fault| panic!("{}: {fault}", dialect.name()));
            client.send(&client.prepare(&case), &Default::default()).await.result.unwrap()
        });
        let right = if dialect == Dialect::Nim { &logits } else { &probabilities };
        for (found, right) in answer.scores.iter().zip(right) {
            assert!((found - right).abs() < 1e-6, "{}: {:?}", dialect.name(), answer.scores);
        }
        assert_eq!((answer.scores.len(), answer.tier.as_deref()), (4, Some("full")), "{}", dialect.name());
        assert!(answer.device_ns.is_some_and(|ns| ns > 0) && answer.nanodollars.is_none());
    }
}

#[test]
fn tiers_degradations_and_tenants_of_a_mix_are_told_by_kind() {
    let options = Options { keys: vec![("key-of-acme", TenantId(0))], ..Options::default() };
    let server = TestServer::start(setup(Scripted::default(), Some(Scripted::default())), options);
    let kind = |text: &str| {
        let env = |name: &str| (name == "ACME").then(|| "key-of-acme".to_owned());
        Kind::default().with(text, &env).unwrap()
    };
    let kinds =
        vec![kind("policy=full,key-env=ACME"), kind("policy=fallback,key-env=ACME"), kind("weight=2")];
    let target = Target { url: format!("http://{}", server.address), dialect: Dialect::Tei, model: None };
    let client = Client::new(target, ClientLimits::default(), Clock::start()).unwrap();
    let load = Arc::new(Load::new(client, &[case()], kinds));
    let plan = plan(constant(100.0), 2);
    let found = block_on(run(&load, &plan, &mut |_| {}));
    let report = RunReport::of(&load, &plan, &found, Ns::from_millis(5));
    let [full, fallback, stranger] = &report.kinds[..] else { panic!("{:?}", report.kinds) };
    assert!(full.tiers["full"] == full.sent && fallback.tiers["fallback"] == fallback.sent);
    assert!(stranger.answered == 0 && stranger.failed.keys().all(|kind| kind.starts_with("status 401")));
    assert_eq!(full.sent + fallback.sent + stranger.sent, 200);
    assert!((70..130).contains(&stranger.sent) && report.all.documents == full.sent + fallback.sent);
    let moments: u64 =
        report.moments.iter().map(|moment| moment.failed + moment.tiers.values().sum::<u64>()).sum();
    assert_eq!(moments, 200);
}

#[test]
fn a_sweep_finds_the_capacity_of_a_server_with_one_lane() {
    // 20 ms per request, one after the other: 50 per second.
    let free_ms = AtomicUsize::new(0);
    let server = scripted(move |_, now| {
        let now = now.as_millis() as usize;
        let done = free_ms.load(Ordering::Relaxed).max(now) + 20;
        free_ms.store(done, Ordering::Relaxed);
        Play::Answer(Duration::from_millis((done - now) as u64))
    });
    let plan = SweepPlan {
        arrivals: Arrivals::Constant,
        slo: Slo { percentile: 90.0, limit: Ns::from_millis(100), full: None },
        first: 10.0,
        limits: (1.0, 1_000.0),
        ratio: 1.2,
        step_min: Ns::from_millis(2_000),
        warmup: Ns::ZERO,
        lag_max: Ns::from_millis(50),
        seed: 1,
    };
    let found = block_on(sweep(&load(server, ClientLimits::default()), &plan, &mut |_, _| {}));
    let (good, bad) = (found.good.unwrap(), found.bad.unwrap());
    assert!((30.0..=52.0).contains(&good) && bad > 40.0 && bad / good <= 1.2, "{}", found.summary());
    assert!(found.steps.iter().filter(|step| step.verdict == "met").all(|step| step.answers >= 44));
    assert!(found.summary().contains("with 99% confidence"));
}

#[test]
fn two_sides_take_turns_and_their_ratio_is_found() {
    let [a, b] = [100, 200].map(|millis| {
        let server = scripted(move |_, _| Play::Answer(Duration::from_millis(millis)));
        load(server, ClientLimits::default())
    });
    let plan = VersusPlan { turn: plan(constant(20.0), 1), rounds: 3, lag_max: Ns::from_millis(50) };
    let mut turns = String::new();
    let found = block_on(versus(&[a, b], &plan, &mut |side, _, _| {
        if !turns.ends_with(side) {
            turns.push(side);
        }
    }));
    assert_eq!(turns, "ABABAB");
    let median = found.ratios.iter().find(|ratio| ratio.name == "p50 ms").unwrap();
    assert!((median.ratio - 2.0).abs() < 0.05 && median.low <= median.ratio && median.ratio <= median.high);
    assert_eq!((found.a.all.sent, found.b.all.answered), (60, 60));
}

fn podium(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_podium"))
        .arg("load")
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_prints_a_table_and_writes_a_page_and_its_figures() {
    let server = TestServer::start(setup(Scripted::default(), None), Options::default());
    let folder = tempfile::tempdir().unwrap();
    let (html, json) = (folder.path().join("load.html"), folder.path().join("load.json"));
    let url = format!("http://{}", server.address);
    let common =
        ["--url", &url, "--documents", "3", "--words", "5", "--lag-ms-max", "200", "--warmup-seconds", "0"];
    let files = ["--html", html.to_str().unwrap(), "--json", json.to_str().unwrap()];
    let rows: [(&[&str], &str, usize); 4] = [
        (
            &["--rate", "50", "--seconds", "1", "--mix", "budget=500", "--mix", "policy=full,weight=2"],
            "open loop, Poisson",
            3,
        ),
        (&["--clients", "2", "--seconds", "1"], "closed loop, 2 clients", 3),
        (
            &[
                "--slo",
                "p80=1000",
                "--rate",
                "60",
                "--rate-max",
                "60",
                "--arrivals",
                "constant",
                "--step-seconds",
                "1",
            ],
            "p80 within 1000 ms is met at 60.00",
            5,
        ),
        (&["--versus", "dialect=tei", "--rounds", "2", "--rate", "30", "--seconds", "0.5"], "B / A", 5),
    ];
    for (arguments, expected, plots) in rows {
        let (code, out, error) = podium(&[&common[..], &files[..], arguments].concat());
        assert_eq!(code, 0, "{arguments:?}: {out}{error}");
        assert!(out.contains(expected), "{arguments:?}: {out}");
        let page = std::fs::read_to_string(&html).unwrap();
        assert_eq!(page.matches("<svg").count(), plots, "{arguments:?}");
        assert!(!page.contains("NaN") && !page.contains("inf\"") && page.ends_with("</html>\n"));
        assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href="));
        let figures: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(figures["side"]["url"], json!(url), "{arguments:?}");
    }
}

#[test]
fn bad_input_is_refused_with_its_flag_or_line_and_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (broken, empty) = (
        file("broken.jsonl", "{\"query\": \"q\", \"documents\": [\"a\"]}\n{\"query\": 1}\n"),
        file("empty.jsonl", "\n"),
    );
    let unknown = file("unknown.jsonl", "{\"query\": \"q\", \"documents\": [\"a\"], \"top\": 1}\n");
    let trace = format!("trace={}", file("trace", "1\n0\n"));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refusing = format!("http://{closed}");
    let hanging = format!("http://{}", scripted(|_, _| Play::Hang));
    let foreign = format!("http://{}", scripted(|_, _| Play::Say(404, "what?")));
    let wrong = format!("http://{}", scripted(|_, _| Play::Say(200, "[]")));
    let rows: [(&[&str], i32, &str); 32] = [
        (&["--requests", &broken], 65, "broken.jsonl:2: "),
        (&["--requests", &unknown], 65, "unknown.jsonl:1: unknown field `top`"),
        (&["--requests", &empty], 65, "empty.jsonl: there is no request in it"),
        (&["--requests", "/nowhere.jsonl"], 66, "/nowhere.jsonl: "),
        (&["--set", "/nowhere"], 66, "/nowhere/corpus.jsonl: "),
        (&["--arrivals", &trace], 65, "trace:2: 0 comes after a later time"),
        (&["--arrivals", "trace=/nowhere"], 66, "/nowhere: "),
        (&["--arrivals", "often"], 64, "--arrivals: `often` is not poisson"),
        (&["--arrivals", "bursts=0:1"], 64, "--arrivals: `bursts=0:1` has no period from 0.001"),
        (&["--arrivals", "bursts=1:2"], 64, "--arrivals: `bursts=1:2` has no share"),
        (&["--rate", "0"], 64, "--rate: 0 is not between 0.001 and 1000000"),
        (&["--rate", "nan"], 64, "--rate: NaN"),
        (&["--rate", "1000000", "--seconds", "1000"], 64, "--rate: 1001000000 requests are more than"),
        (&["--seconds", "0"], 64, "--seconds: 0 is not between"),
        (&["--clients", "0"], 64, "--clients"),
        (&["--clients", "2", "--rate", "2"], 64, "cannot be used with"),
        (&["--slo", "99"], 64, "p99=200"),
        (&["--slo", "p100=5"], 64, "a percentile from 1 to 99.99"),
        (&["--slo", "p99=5", "--slo-full", "2"], 64, "--slo-full: 2 is not between 0 and 1"),
        (&["--precision", "0"], 64, "--precision: 0 is not between"),
        (&["--documents", "0"], 64, "a median from 1 to 10000"),
        (&["--mix", "budget"], 64, "--mix: `budget` is not a name"),
        (&["--mix", "weight=0"], 64, "--mix: weight: `0` is not a number from 0.000001"),
        (&["--mix", "tier=full"], 64, "--mix: `tier` is not one of budget"),
        (&["--versus", "dialect=klingon"], 64, "--versus: dialect: `klingon` is not one of podium"),
        (&["--dialect", "voyage"], 64, "--url: the dialect voyage needs a model"),
        (&["--url", "https://localhost"], 64, "--url: `https://localhost` is not http://HOST"),
        (&["--html", "/nowhere/load.html"], 74, "/nowhere/load.html: its folder does not exist"),
        (&["--url", &refusing], 69, "refused: "),
        (&["--url", &hanging, "--timeout-ms", "100"], 69, "timed out"),
        (&["--url", &foreign], 69, "status 404"),
        (&["--url", &wrong], 69, "malformed: "),
    ];
    for (arguments, code, expected) in rows {
        let (found, out, error) = podium(arguments);
        assert_eq!((found, out.as_str()), (code, ""), "{arguments:?}: {error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
}

#[test]
fn a_run_that_is_not_valid_or_not_answered_says_so_and_by_its_code() {
    let slow = format!("http://{}", scripted(|_, _| Play::Answer(Duration::from_millis(200))));
    let shared = ["--seconds", "1", "--warmup-seconds", "0", "--rate", "20", "--documents", "1"];
    let (code, out, error) = podium(&[&["--url", &slow, "--connections", "1"], &shared[..]].concat());
    assert_eq!(code, 75, "{error}");
    assert!(out.contains("INVALID: the client fell behind") && error.contains("fell behind"), "{out}{error}");
    let full = format!("http://{}", scripted(|_, _| Play::Say(503, "")));
    let (code, out, error) = podium(&[&["--url", &full], &shared[..]].concat());
    assert_eq!(code, 69, "{error}");
    assert!(out.contains("status 503 100.0%") && error.contains("no request was answered: status 503"));
}
