//! The loop that passes events to the scheduler and executes its actions.

use super::answer::Entry;
use super::books::Books;
use super::clock::Clock;
use super::handle::Shared;
use super::lane::{LaneEvent, Report, Spawn, Work};
use super::mailbox::{Mailbox, Post};
use super::pairs::Prepared;
use super::{StartError, TierSetup};
use crate::base::{Ns, PerTier, Tier};
use crate::forecast::predict::Measured;
use crate::rerank::{Outcome, Refusal};
use crate::sched::{Action, Arrival, BatchId, Config, Dispatch, Event, JobId, LaneId, Scheduler, Slice};
use crossbeam_channel::RecvTimeoutError;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;

/// The wait before the second attempt to make a scorer; it doubles with each failure, up to 256 times this.
const RETRY_NS_MIN: Ns = Ns::from_millis(100);

/// Most arrivals in one event. Other messages are handled at least this often.
const ARRIVALS_MAX: usize = 64;

/// A message to the driver.
pub(super) enum Message {
    Submit(Box<Submission>),
    Cancel(JobId),
    Report(Report),
    Drain,
    /// Flushes the books, unless that was done less than `ago` before now; then signals `done`.
    HandOver {
        ago: Ns,
        done: oneshot::Sender<()>,
    },
    /// Ends the loop. Jobs still inside are refused with [`Refusal::Draining`].
    Stop,
}

/// A tokenised request.
pub(super) struct Submission {
    pub arrival: Arrival,
    pub prepared: Prepared,
    /// How long tokenising took, with the wait for the pool.
    pub tokenise: Ns,
    pub budget: Option<Ns>,
    pub reply: oneshot::Sender<Result<Outcome, Refusal>>,
}

/// Makes a lane's thread, at the start and after each fault.
pub(super) struct LaneFactory {
    pub tier: Tier,
    /// From a generation and a time to wait first. Generation 0 warms up in full.
    pub spawn: Box<dyn Fn(u32, Ns) -> Spawn + Send>,
}

/// A lane's thread as the driver sees it.
struct LaneThread {
    factory: LaneFactory,
    generation: u32,
    /// Consecutive failures to make its scorer.
    failures: u32,
    work: Post<Work>,
    /// Batches sent to the thread and not reported: id, slices and tokens, the oldest first.
    running: VecDeque<(BatchId, Vec<Slice>, u64)>,
}

pub(super) struct Driver {
    pub clock: Clock,
    pub inbox: Mailbox<Message>,
    pub shared: Arc<Shared>,
    pub books: Books,
    pub tiers: PerTier<Option<TierSetup>>,
    pub config: Config,
    pub factories: Vec<LaneFactory>,
    /// Receives once whether every lane came up.
    pub started: oneshot::Sender<Result<(), StartError>>,
}

/// The driver after every lane came up.
struct Running {
    clock: Clock,
    inbox: Mailbox<Message>,
    /// The message that ended a series of arrivals, to be handled next.
    next: Option<Message>,
    books: Books,
    tiers: PerTier<Option<TierSetup>>,
    sched: Scheduler,
    threads: Vec<LaneThread>,
    entries: HashMap<JobId, Entry>,
    actions: Vec<Action>,
    /// Events for the scheduler that precede any message.
    replies: VecDeque<Event>,
}

impl Driver {
    /// Brings the lanes up, then runs until told to stop.
    pub fn run(mut self) {
        let mut threads: Vec<LaneThread> = self
            .factories
            .into_iter()
            .map(|factory| {
                let work = (factory.spawn)(0, Ns::ZERO).start();
                LaneThread { factory, generation: 0, failures: 0, work, running: VecDeque::new() }
            })
            .collect();
        let mut config = self.config;
        match warm_up(&self.inbox, &threads, &mut self.books) {
            Ok(seeds) => config.seeds = seeds,
            Err(error) => {
                threads.clear();
                let _ = self.started.send(Err(error));
                return;
            }
        }
        self.books.begin(&config);
        let mut running = Running {
            clock: self.clock,
            inbox: self.inbox,
            next: None,
            books: self.books,
            tiers: self.tiers,
            sched: Scheduler::new(&config),
            threads,
            entries: HashMap::new(),
            actions: Vec::new(),
            replies: VecDeque::new(),
        };
        for lane in 0..running.threads.len() as u32 {
            running.step(Event::LaneUp { lane: LaneId(lane) });
        }
        // A drain that came while loading must not be undone.
        self.shared.loaded();
        let _ = self.started.send(Ok(()));
        running.run();
    }
}

/// Waits until every lane is up and returns their warm-up measurements, by tier.
fn warm_up(
    inbox: &Mailbox<Message>,
    threads: &[LaneThread],
    books: &mut Books,
) -> Result<PerTier<Vec<Measured>>, StartError> {
    let mut seeds: PerTier<Vec<Measured>> = PerTier::default();
    let mut missing = threads.len();
    while missing > 0 {
        match inbox.recv_until(None) {
            Ok(Message::Report(Report { lane, event: LaneEvent::Up(measured), .. })) => {
                seeds[threads[lane.0 as usize].factory.tier].extend(measured);
                missing -= 1;
            }
            Ok(Message::Report(Report { lane, event: LaneEvent::Down(why), .. })) => {
                return Err(StartError::Lane { lane: lane.0, why });
            }
            Ok(Message::Report(Report { event: LaneEvent::Unfit(why), .. })) => {
                return Err(StartError::Unfit { why });
            }
            Ok(Message::Report(Report { lane, event: LaneEvent::Device(state), .. })) => {
                books.device(lane, state)
            }
            Ok(Message::Report(Report { event: LaneEvent::Ended { .. }, .. })) => {
                unreachable!("no batch is sent before every lane is up")
            }
            // The handle refuses requests while loading; this one raced with the start.
            Ok(Message::Submit(submission)) => {
                let _ = submission.reply.send(Err(Refusal::Unavailable));
            }
            Ok(Message::Cancel(_) | Message::Drain | Message::HandOver { .. }) => {}
            Ok(Message::Stop) | Err(_) => {
                return Err(StartError::Stopped);
            }
        }
    }
    Ok(seeds)
}

impl Running {
    fn run(&mut self) {
        loop {
            let tick = self.sched.next_wake().unwrap_or(Ns::MAX);
            let wake = self.clock.instant(tick.min(self.books.due()));
            match self.next.take().map_or_else(|| self.inbox.recv_until(Some(wake)), Ok) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) if tick <= self.clock.now() => self.step(Event::Tick),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = self.clock.now();
            if self.books.due() <= now {
                self.books.hand_over(now, &self.sched);
            }
        }
        self.books.hand_over(self.clock.now(), &self.sched);
        for (_, entry) in self.entries.drain() {
            entry.refuse(Refusal::Draining);
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Submit(submission) => {
                let mut arrivals = vec![self.enter(*submission)];
                // Arrivals that already wait join this event, so that a free lane gets them as one batch.
                while arrivals.len() < ARRIVALS_MAX {
                    match self.inbox.try_recv() {
                        Some(Message::Submit(submission)) => arrivals.push(self.enter(*submission)),
                        other => {
                            self.next = other;
                            break;
                        }
                    }
                }
                self.step(Event::Arrive(arrivals));
            }
            Message::Cancel(job) => {
                // The job is unknown if its client left before it was submitted.
                self.entries.remove(&job);
                self.step(Event::Cancel { job });
            }
            Message::Report(report) => self.handle_report(report),
            Message::Drain => self.step(Event::Drain),
            Message::HandOver { ago, done } => {
                self.books.hand_over_after(ago, self.clock.now(), &self.sched);
                // The receiver may have been dropped.
                let _ = done.send(());
            }
            Message::Stop => unreachable!("the loop ends on it"),
        }
    }

    fn enter(&mut self, submission: Submission) -> Arrival {
        let (arrival, entry) = Entry::new(submission);
        self.entries.insert(arrival.job, entry);
        arrival
    }

    fn handle_report(&mut self, report: Report) {
        let thread = &mut self.threads[report.lane.0 as usize];
        if report.generation != thread.generation {
            tracing::info!(
                lane = report.lane.0,
                "a lane that was given up has reported; the report is ignored"
            );
            return;
        }
        match report.event {
            LaneEvent::Up(_) => {
                thread.failures = 0;
                self.step(Event::LaneUp { lane: report.lane });
            }
            LaneEvent::Device(state) => self.books.device(report.lane, state),
            LaneEvent::Down(why) | LaneEvent::Unfit(why) => {
                tracing::error!(lane = report.lane.0, why, "a lane did not restart; it is tried again");
                thread.failures += 1;
                self.restart(report.lane);
            }
            LaneEvent::Ended { mut done, logits } => {
                let (batch, slices, tokens) =
                    thread.running.pop_front().expect("a lane reports only batches that it was sent");
                assert_eq!(batch, done.batch, "a lane runs its batches in order");
                let tier = thread.factory.tier;
                if done.result.is_ok() {
                    let mut rest = &logits[..];
                    for slice in &slices {
                        let (part, tail) = rest.split_at(slice.range.len());
                        rest = tail;
                        if let Some(entry) = self.entries.get_mut(&slice.job) {
                            entry.keep(tier, slice, part);
                        }
                    }
                }
                self.books.end_batch(self.clock.now(), &mut done, (logits.len(), tokens));
                self.step(Event::Done(done));
            }
        }
    }

    /// Passes an event to the scheduler and executes its actions, until no further event results.
    fn step(&mut self, event: Event) {
        self.replies.push_back(event);
        while let Some(event) = self.replies.pop_front() {
            let now = self.clock.now();
            let mut actions = std::mem::take(&mut self.actions);
            let journaled = self.books.is_journaling().then(|| event.clone());
            self.sched.step(now, event, &mut actions);
            if let Some(event) = journaled {
                self.books.step(now, event, &actions);
            }
            for action in actions.drain(..) {
                self.act(now, action);
            }
            self.actions = actions;
        }
    }

    fn act(&mut self, now: Ns, action: Action) {
        match action {
            Action::Dispatch(dispatch) => self.dispatch(now, dispatch),
            Action::Rank { job } => {
                let order = match self.entries.get_mut(&job) {
                    Some(entry) => entry.rank(),
                    None => Arc::from([]),
                };
                self.replies.push_back(Event::Ranked { job, order });
            }
            Action::Answer { job, answer } => {
                let Some(entry) = self.entries.remove(&job) else { return };
                let price = self.books.charge(entry.tenant(), entry.candidates(), &answer);
                entry.answer(now, &answer, price, &self.tiers);
            }
            Action::Refuse { job, refusal } => {
                if let Some(entry) = self.entries.remove(&job) {
                    entry.refuse(refusal);
                }
            }
            Action::Restart { lane, fault } => {
                tracing::error!(lane = lane.0, ?fault, "a lane is restarted");
                self.books.restart(now, lane);
                self.restart(lane);
            }
            Action::GaveUp { .. } | Action::Discard { .. } => self.books.act(now, &action),
        }
    }

    fn dispatch(&mut self, now: Ns, dispatch: Dispatch) {
        self.books.begin_batch(now, dispatch.lane);
        let thread = &mut self.threads[dispatch.lane.0 as usize];
        let tier = thread.factory.tier;
        let mut tokens = 0;
        let slices = dispatch
            .slices
            .iter()
            .map(|slice| {
                let entry = self.entries.get(&slice.job).expect("a job that is dispatched has its entry");
                tokens += entry.tokens(tier, slice);
                (slice.clone(), entry.pairs(tier))
            })
            .collect();
        thread.running.push_back((dispatch.batch, dispatch.slices, tokens));
        // Fails if the lane's thread has ended. Its report is on the way, and then the lane is restarted.
        let _ = thread.work.send(Work { batch: dispatch.batch, slices });
    }

    fn restart(&mut self, lane: LaneId) {
        let thread = &mut self.threads[lane.0 as usize];
        thread.generation += 1;
        thread.running.clear();
        let wait = match thread.failures {
            0 => Ns::ZERO,
            failures => Ns(RETRY_NS_MIN.0 << failures.min(8)),
        };
        thread.work = (thread.factory.spawn)(thread.generation, wait).start();
    }
}
