//! The main promise, on a real server with real models: four times the primary's capacity for a minute, each request
//! with a budget of 300 ms.
//!
//!     cargo bench --bench overload                       limits: 99% in budget, under 2% discarded
//!     cargo bench --bench overload -- --seconds 20
//!
//! The primary is the teacher in `$PODIUM_DATA` or `../shared/data`, the fallback the bundled student. Capacity is
//! measured first in a closed loop. Then requests are sent in an open loop at Poisson times; latency counts from the
//! scheduled time.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock and waits")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Reply, data, post};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const CANDIDATES: usize = 4;
const WORDS: usize = 20;
const CLIENTS: usize = 128;
const BUDGET: Duration = Duration::from_millis(300);
const OVERLOAD: f64 = 4.0;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = arguments.iter().position(|argument| argument == "--seconds");
    let seconds =
        seconds.map_or(60.0, |place| arguments[place + 1].parse().expect("--seconds takes a number"));
    let Some(data) = data() else { return };
    let teacher = data.join("models/ms-marco-MiniLM-L-12-v2");
    let place = tempfile::tempdir().expect("a folder can be made");
    let ledger = place.path().join("ledger.sqlite");
    let mut server = Serving::start(&teacher, &ledger);
    let texts = Texts::read(&data.join("distill"));
    let mut books = Books::default();
    let capacity = capacity(&server, &texts, &mut books);
    let rate = OVERLOAD * capacity;
    println!(
        "the primary alone scores {capacity:.1} requests a second; {rate:.1} are offered for {seconds} s"
    );
    let replies = offer(&server, &texts, rate, seconds);
    report(&replies);
    replies.iter().for_each(|sent| books.add(&sent.reply));
    audit(&mut server, &ledger, &books);
}

/// The program in its own process.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(primary: &Path, ledger: &Path) -> Self {
        let config = ledger.with_extension("toml");
        let path = |path: &Path| path.to_str().expect("a path is text").to_owned();
        let text = format!(
            "ledger = {:?}\n[primary]\nmodel = {:?}\n\
             [[prices.devices]]\nname = \"cpu\"\ndollars_per_hour = 0.05\n",
            path(ledger),
            path(primary),
        );
        std::fs::write(&config, text).expect("the folder is ours");
        let mut child = Command::new(env!("CARGO_BIN_EXE_podium"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config", &path(&config)])
            .env("NO_COLOR", "1")
            .env_remove("PODIUM_PRIMARY")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary is there");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let mut address = String::new();
        for line in lines.by_ref() {
            let line = line.expect("the log is text");
            if let Some((_, found)) = line.split_once("listening on http://") {
                address = found.trim().to_owned();
            }
            if line.contains("ready") {
                break;
            }
        }
        thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn connect(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_nodelay(true).expect("a socket is ours");
        BufReader::new(stream)
    }

    fn terminate(&mut self) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().expect("there is a kill");
        assert!(killed.success());
        assert!(self.child.wait().expect("it ends").success(), "the server drains and ends well");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(stream: &mut BufReader<TcpStream>, body: &Value) -> Reply {
    stream.get_mut().write_all(&post("/v1/rank", "", body.to_string())).expect("the server reads");
    Reply::read(stream).expect("each request is answered")
}

/// Real queries and passages.
struct Texts {
    queries: Vec<String>,
    passages: Vec<String>,
}

impl Texts {
    fn read(folder: &Path) -> Self {
        let column = |file: &str| -> Vec<String> {
            let text = std::fs::read_to_string(folder.join(file)).expect("the data is there");
            text.lines().filter_map(|line| Some(line.split_once('\t')?.1.to_owned())).collect()
        };
        Self { queries: column("queries.tsv"), passages: column("passages.tsv") }
    }

    fn request(&self, seed: u64, budget: Option<Duration>) -> Value {
        let mut random = Pcg64::seed_from_u64(seed);
        let mut pick = |texts: &[String]| texts[random.random_range(0..texts.len())].clone();
        let words = |text: String| text.split(' ').take(WORDS).collect::<Vec<_>>().join(" ");
        let documents: Vec<String> = (0..CANDIDATES).map(|_| words(pick(&self.passages))).collect();
        let mut body = json!({"query": pick(&self.queries), "documents": documents});
        match budget {
            Some(budget) => body["latency_budget_ms"] = json!(budget.as_millis() as u64),
            None => body["policy"] = json!("full"),
        }
        body
    }
}

/// Requests per second that the primary answers when it always has work.
fn capacity(server: &Serving, texts: &Texts, books: &mut Books) -> f64 {
    let (started, answered) = (Instant::now(), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for client in 0..4 {
            let answered = &answered;
            scope.spawn(move || {
                let mut stream = server.connect();
                let mut seed = 1 << (40 + client);
                while started.elapsed() < Duration::from_secs(10) {
                    seed += 1;
                    let reply = send(&mut stream, &texts.request(seed, None));
                    assert_eq!(reply.status, 200, "{}", reply.text());
                    answered.lock().expect("no thread panics").push(reply);
                }
            });
        }
    });
    let answered = answered.into_inner().expect("no thread panics");
    answered.iter().for_each(|reply| books.add(reply));
    answered.len() as f64 / started.elapsed().as_secs_f64()
}

struct Sent {
    reply: Reply,
    latency: Duration,
    behind: Duration,
}

/// Sends requests at their scheduled times, and returns all replies.
fn offer(server: &Serving, texts: &Texts, rate: f64, seconds: f64) -> Vec<Sent> {
    let mut random = Pcg64::seed_from_u64(1);
    let mut at = 0.0;
    let mut schedule = Vec::new();
    loop {
        at -= (1.0 - random.random::<f64>()).ln() / rate;
        if at > seconds {
            break;
        }
        schedule.push(Duration::from_secs_f64(at));
    }
    let (next, replies) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut stream = server.connect();
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&at) = schedule.get(place) else { return };
                    let body = texts.request(place as u64, Some(BUDGET));
                    thread::sleep(at.saturating_sub(started.elapsed()));
                    let behind = started.elapsed().saturating_sub(at);
                    let reply = send(&mut stream, &body);
                    let latency = started.elapsed().saturating_sub(at);
                    replies.lock().expect("no thread panics").push(Sent { reply, latency, behind });
                }
            });
        }
    });
    let replies = replies.into_inner().expect("no thread panics");
    assert_eq!(replies.len(), schedule.len(), "each request is answered exactly once");
    replies
}

fn report(replies: &[Sent]) {
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let (mut latencies, mut answered, mut in_budget, mut silent) = (Vec::new(), 0, 0, 0);
    for Sent { reply, latency, .. } in replies {
        if reply.status != 200 {
            let error = reply.header("x-podium-error").unwrap_or("no code");
            assert!(matches!(reply.status, 429 | 503 | 504), "{}: {}", reply.status, reply.text());
            *outcomes.entry(format!("refused: {error}")).or_default() += 1;
            continue;
        }
        answered += 1;
        latencies.push(*latency);
        in_budget += u64::from(*latency <= BUDGET);
        let tier = reply.header("x-podium-tier").expect("an answer declares its tier");
        let why = reply.header("x-podium-degraded").unwrap_or("-");
        silent += u64::from(why == "-" && (tier != "full" || *latency > BUDGET + Duration::from_millis(50)));
        *outcomes.entry(format!("{tier}, degraded: {why}")).or_default() += 1;
    }
    latencies.sort();
    let quantile = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let behind = replies.iter().map(|sent| sent.behind).max().unwrap_or_default();
    println!("{} requests, {answered} answered; the clients were at most {behind:.0?} behind", replies.len());
    for (outcome, count) in &outcomes {
        println!("    {count:>6} {outcome}");
    }
    println!(
        "{:.2}% of answers in budget (floor 99%), p50 {:.0?}, p99 {:.0?}, longest {:.0?}; {silent} undeclared",
        100.0 * in_budget as f64 / answered as f64,
        quantile(0.5),
        quantile(0.99),
        quantile(1.0),
    );
}

/// The sums of the responses.
#[derive(Default)]
struct Books {
    answers: u64,
    device_ns: u64,
    nanodollars: u64,
}

impl Books {
    fn add(&mut self, reply: &Reply) {
        if reply.status == 200 {
            let number = |name| reply.header(name).expect("it is declared").parse::<u64>().expect("a number");
            self.answers += 1;
            self.device_ns += number("x-podium-device-ns");
            self.nanodollars += number("x-podium-cost-nanodollars");
        }
    }
}

/// Compares the ledger with the responses.
fn audit(server: &mut Serving, ledger: &Path, books: &Books) {
    let mut stream = server.connect();
    stream.get_mut().write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").expect("the server reads");
    let metrics = Reply::read(&mut stream).expect("metrics are answered").text();
    let device = |r#use: &str| -> f64 {
        let wanted = format!("use=\"{use}\"");
        let lines = metrics.lines().filter(|line| line.starts_with("podium_device_seconds_total{"));
        let values = lines.filter(|line| line.contains(&wanted)).filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<f64>().expect("a number")).sum()
    };
    let (charged, discarded) = (device("charged"), device("discarded"));
    for line in metrics.lines().filter(|line| line.starts_with("podium_hedges")) {
        println!("    {line}");
    }
    println!(
        "{:.2}% of worked device time discarded (ceiling 2%)",
        100.0 * discarded / (charged + discarded)
    );
    drop(stream);
    // The ledger flushes its last entries when the server ends.
    server.terminate();
    let costs = Command::new(env!("CARGO_BIN_EXE_podium"))
        .args(["costs", "--format", "json", "--ledger"])
        .arg(ledger)
        .output()
        .expect("the binary is there");
    let rows: Vec<Value> = serde_json::from_slice(&costs.stdout).expect("costs prints JSON");
    let sum = |column: &str| rows.iter().filter_map(|row| row[column].as_u64()).sum::<u64>();
    for (what, said, kept) in [
        ("answers", books.answers, sum("requests")),
        ("device ns", books.device_ns, sum("device_ns")),
        ("nanodollars", books.nanodollars, sum("nanodollars")),
    ] {
        println!("{what}: {said} on responses, {kept} by `podium costs`");
        assert_eq!(said, kept, "the ledger's {what} are the responses'");
    }
}
