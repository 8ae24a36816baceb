//! A run of load: requests leave at their scheduled times, or when earlier ones return. Worker tasks keep separate
//! tallies.

use super::arrivals::Arrivals;
use super::client::{Client, Fault, Prepared, Sent};
use super::early::{Judge, Verdict};
use super::mix::{Kind, pick};
use super::tally::{SLICES, Tally};
use crate::base::Ns;
use crossbeam_channel::RecvTimeoutError;
use http::HeaderMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// Tasks that start the requests of an open loop.
const WORKERS: usize = 4;
/// The delay before the first request, in which the workers start.
const LEAD: Ns = Ns::from_millis(20);
/// The interval of progress reports.
const LOOK: Duration = Duration::from_millis(100);
/// The wait of a closed loop's client after a refused connection.
const REFUSED_WAIT: Duration = Duration::from_millis(20);

/// When requests are sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Pace {
    /// Open loop: at scheduled times, independent of earlier requests.
    Open {
        /// The arrival process.
        arrivals: Arrivals,
        /// Requests per second.
        rate: f64,
    },
    /// Closed loop: each client sends its next request when the last one is answered. A stalled server stops the
    /// clients too, so its tail latency is not seen.
    Closed {
        /// Number of clients.
        clients: usize,
    },
}

impl std::fmt::Display for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Open { arrivals, rate } => {
                write!(f, "open loop, {arrivals} arrivals at {rate:.2} requests a second")
            }
            Self::Closed { clients } => {
                write!(f, "closed loop, {clients} clients: the tail of a server that stalls is hidden")
            }
        }
    }
}

/// The target of a run and its requests.
pub struct Load {
    client: Client,
    cases: Vec<Prepared>,
    kinds: Vec<Kind>,
    headers: Vec<HeaderMap>,
}

impl Load {
    /// Encodes the cases. There must be at least one case and one kind.
    pub fn new(client: Client, cases: &[super::Case], kinds: Vec<Kind>) -> Self {
        let cases = cases.iter().map(|case| client.prepare(case)).collect();
        let headers = kinds.iter().map(Kind::headers).collect();
        Self { client, cases, kinds, headers }
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The kinds of requests.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }
}

/// Duration, rate and seed of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunPlan {
    /// When requests are sent.
    pub pace: Pace,
    /// The duration in which requests are sent and counted.
    pub duration: Ns,
    /// The warm-up: requests before that are sent but not counted.
    pub warmup: Ns,
    /// The seed of all random choices, the first case included.
    pub seed: u64,
    /// A service level that ends the run once the verdict is clear.
    pub slo: Option<Slo>,
    /// Requests before which no service level is called met.
    pub answers_min: u64,
}

/// A service level: a limit for a percentile of latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slo {
    /// The percentile, between 0 and 100.
    pub percentile: f64,
    /// The limit.
    pub limit: Ns,
    /// The least share of full answers, if any.
    pub full: Option<f64>,
}

impl Slo {
    /// The share of requests that may be over the limit.
    pub fn share(&self) -> f64 {
        1.0 - self.percentile / 100.0
    }
}

impl std::fmt::Display for Slo {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "p{} within {} ms", self.percentile, self.limit.as_millis_f64())?;
        match self.full {
            Some(full) => write!(f, ", {}% in full", 100.0 * full),
            None => Ok(()),
        }
    }
}

/// The progress of a run.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Time passed.
    pub passed: Ns,
    /// Total time, without the wait for the last answers.
    pub of: Ns,
    /// Requests sent.
    pub sent: u64,
    /// Requests answered or failed.
    pub done: u64,
    /// Requests failed.
    pub failed: u64,
}

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The tally of each kind.
    pub kinds: Vec<Tally>,
    /// The time from the end of the warm-up to the last send or answer, whichever is later.
    pub elapsed: Ns,
    /// The time for which requests were scheduled; shorter than planned if the run was ended early.
    pub offered: Ns,
    /// The verdict on the service level, with the answers counted and those over the limit.
    pub verdict: Option<(Verdict, u64, u64)>,
}

impl Found {
    /// The tally of all kinds together.
    pub fn all(&self) -> Tally {
        let mut all = Tally::default();
        self.kinds.iter().for_each(|kind| all.merge(kind));
        all
    }

    /// Adds another run of the same load.
    pub(super) fn merge(&mut self, other: &Self) {
        self.kinds.resize(other.kinds.len(), Tally::default());
        self.kinds.iter_mut().zip(&other.kinds).for_each(|(kind, other)| kind.merge(other));
        self.elapsed += other.elapsed;
        self.offered += other.offered;
    }
}

/// The state that the tasks of a run share.
struct Shared {
    load: Arc<Load>,
    plan: RunPlan,
    /// When the run began, by the client's clock.
    start: Ns,
    sent: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    judge: Option<Mutex<Judge>>,
    /// The position of the first request that is counted.
    first: u64,
}

/// A task's own state.
#[derive(Default)]
struct Kept {
    kinds: Vec<Tally>,
    last: Ns,
}

impl Shared {
    /// Sends the request at this position, due at this time.
    async fn send(self: Arc<Self>, place: u64, due: Ns) -> (u64, Ns, usize, Sent) {
        let Load { client, cases, kinds, headers } = &*self.load;
        let kind = pick(kinds, self.plan.seed, place);
        self.sent.fetch_add(1, Ordering::Relaxed);
        let mut sending = pin!(client.send(&cases[self.case(place)], &headers[kind]));
        if let Some(slo) = self.plan.slo {
            let left = (due + slo.limit).saturating_sub(client.clock().now());
            match tokio::time::timeout(left.into(), &mut sending).await {
                Ok(sent) => return (place, due, kind, sent),
                // It is over the limit already, whatever the answer.
                Err(_) => self.judge(place, due, true),
            }
        }
        (place, due, kind, sending.await)
    }

    /// Records a request with the judge, if there is one and the warm-up is over.
    fn judge(&self, place: u64, due: Ns, over: bool) {
        if let Some(judge) =
            self.judge.as_ref().filter(|_| due.saturating_sub(self.start) >= self.plan.warmup)
        {
            judge
                .lock()
                .expect("no thread panics while it holds the lock")
                .answered(place - self.first, over);
        }
    }

    fn case(&self, place: u64) -> usize {
        // Other seeds begin at other cases.
        let first = self.plan.seed.wrapping_mul(7_919);
        (first.wrapping_add(place) % self.load.cases.len() as u64) as usize
    }

    /// Counts the result of a request, unless it was due in the warm-up.
    fn keep(&self, kept: &mut Kept, (place, due, kind, sent): (u64, Ns, usize, Sent)) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(u64::from(sent.result.is_err()), Ordering::Relaxed);
        let since = due.saturating_sub(self.start);
        if since < self.plan.warmup {
            return;
        }
        if let Some(slo) = self.plan.slo {
            self.judge(place, due, sent.result.is_err() || sent.ended.saturating_sub(due) > slo.limit);
        }
        let slice = (since - self.plan.warmup).0 / (self.plan.duration.0 / SLICES).max(1);
        kept.kinds.resize(self.load.kinds.len(), Tally::default());
        let documents = self.load.cases[self.case(place)].documents();
        kept.kinds[kind].add(due, documents, slice, &sent);
        kept.last = kept.last.max(sent.ended);
    }

    fn verdict(&self) -> Option<(Verdict, u64, u64)> {
        let judge = self.judge.as_ref()?.lock().expect("no thread panics while it holds the lock");
        let (answers, over) = judge.counts();
        Some((judge.verdict(), answers, over))
    }
}

/// Runs a load and waits for the last answers. `watch` is called about ten times a second. Needs a tokio runtime with
/// time and I/O.
pub async fn run(load: &Arc<Load>, plan: &RunPlan, watch: &mut (dyn FnMut(Progress) + Send)) -> Found {
    let clock = load.client.clock();
    let start = clock.now() + LEAD;
    let length = plan.warmup + plan.duration;
    let (times, first) = match &plan.pace {
        Pace::Closed { .. } => (Vec::new(), 0),
        Pace::Open { arrivals, rate } => {
            let times = arrivals.schedule(*rate, length, plan.seed);
            let first = times.partition_point(|&at| at < plan.warmup) as u64;
            (times.into_iter().map(|at| start + at).collect(), first)
        }
    };
    let shared = Arc::new(Shared {
        load: load.clone(),
        plan: plan.clone(),
        start,
        sent: AtomicU64::new(0),
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        judge: plan.slo.map(|slo| Mutex::new(Judge::new(slo.share(), plan.answers_min))),
        first,
    });
    let mut tasks = JoinSet::new();
    // Dropping the sender ends the pacer.
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let mut stop = Some(stop);
    match plan.pace {
        Pace::Open { .. } => {
            let (senders, inboxes): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| unbounded_channel()).unzip();
            inboxes.into_iter().for_each(|inbox| drop(tasks.spawn(open(shared.clone(), inbox))));
            // The pacer is a thread: the runtime's timers are a millisecond late, a thread's about 0.05 ms.
            std::thread::spawn(move || pace(&times, &senders, |at| stopped.recv_deadline(clock.instant(at))));
        }
        Pace::Closed { clients } => {
            let next = Arc::new(AtomicU64::new(0));
            (0..clients).for_each(|_| drop(tasks.spawn(closed(shared.clone(), next.clone()))));
        }
    }
    let mut kept = Kept { kinds: vec![Tally::default(); load.kinds.len()], last: start + plan.warmup };
    let mut looks = tokio::time::interval(LOOK);
    let mut ended = length;
    loop {
        tokio::select! {
            task = tasks.join_next() => match task {
                Some(part) => {
                    let part: Kept = part.expect("a worker does not panic");
                    kept.kinds.iter_mut().zip(&part.kinds).for_each(|(kind, part)| kind.merge(part));
                    kept.last = kept.last.max(part.last);
                }
                None => break,
            },
            _ = looks.tick() => {
                let passed = clock.now().saturating_sub(start);
                if stop.is_some() && shared.verdict().is_some_and(|(verdict, ..)| verdict != Verdict::Undecided) {
                    stop = None;
                    ended = ended.min(passed);
                }
                let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let (sent, done, failed) = (count(&shared.sent), count(&shared.done), count(&shared.failed));
                watch(Progress { passed: passed.min(length), of: length, sent, done, failed });
            }
        }
    }
    drop(stop);
    let offered = ended.saturating_sub(plan.warmup);
    let elapsed = kept.last.saturating_sub(start + plan.warmup).max(offered);
    Found { kinds: kept.kinds, elapsed, offered, verdict: shared.verdict() }
}

/// Passes each request to a worker when it is due, until told to stop.
fn pace(
    times: &[Ns],
    workers: &[UnboundedSender<(u64, Ns)>],
    wait: impl Fn(Ns) -> Result<(), RecvTimeoutError>,
) {
    for (place, &due) in (0..).zip(times) {
        if wait(due) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        if workers[place as usize % workers.len()].send((place, due)).is_err() {
            return;
        }
    }
}

/// A worker of an open loop.
async fn open(shared: Arc<Shared>, mut inbox: UnboundedReceiver<(u64, Ns)>) -> Kept {
    let mut kept = Kept::default();
    let mut flying = JoinSet::new();
    let mut more = true;
    while more || !flying.is_empty() {
        tokio::select! {
            next = inbox.recv(), if more => match next {
                Some((place, due)) => drop(flying.spawn(shared.clone().send(place, due))),
                None => more = false,
            },
            Some(sent) = flying.join_next(), if !flying.is_empty() => {
                shared.keep(&mut kept, sent.expect("a request does not panic"));
            }
        }
    }
    kept
}

/// A client of a closed loop.
async fn closed(shared: Arc<Shared>, next: Arc<AtomicU64>) -> Kept {
    let mut kept = Kept::default();
    let clock = shared.load.client.clock();
    let end = shared.start + shared.plan.warmup + shared.plan.duration;
    loop {
        let due = clock.now();
        if due >= end {
            return kept;
        }
        let sent = shared.clone().send(next.fetch_add(1, Ordering::Relaxed), due).await;
        let refused = matches!(sent.3.result, Err(Fault::Refused(_)));
        shared.keep(&mut kept, sent);
        if refused {
            tokio::time::sleep(REFUSED_WAIT).await;
        }
    }
}
