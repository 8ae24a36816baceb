//! The loop that feeds the scheduler what happened and does what it asks for.

use super::answer::Entry;
use super::books::Books;
use super::clock::Clock;
use super::handle::Shared;
use super::lane::{News, Report, Spawn, Work};
use super::mailbox::{Mailbox, Post};
use super::prepare::Prepared;
use super::{StartError, TierSetup};
use crate::base::{Ns, PerTier, Tier};
use crate::forecast::predict::Measured;
use crate::rerank::{Outcome, Refusal};
use crate::sched::{Action, Arrival, BatchId, Config, Dispatch, Event, JobId, LaneId, Scheduler, Slice};
use crossbeam_channel::RecvTimeoutError;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;

/// A scorer that cannot be made is tried again after this, doubling to 256 times as much.
const RETRY_NS_MIN: Ns = Ns::from_millis(100);

/// Arrivals that are taken together; lanes are looked after at least this often.
const ARRIVALS_MAX: usize = 64;

/// What the driver can be told.
pub(super) enum Message {
    Submit(Box<Submission>),
    Cancel(JobId),
    Report(Report),
    Drain,
    /// Hands the books' news on, unless that was done no longer ago than this, and says so.
    HandOver {
        ago: Ns,
        done: oneshot::Sender<()>,
    },
    /// Ends the loop; jobs still inside are refused as draining.
    Stop,
}

/// A tokenised request at the scheduler's door.
pub(super) struct Submission {
    pub arrival: Arrival,
    pub prepared: Prepared,
    pub budget: Option<Ns>,
    pub reply: oneshot::Sender<Result<Outcome, Refusal>>,
}

/// How a lane's thread is made, for the first time and after each fault.
pub(super) struct LaneSeat {
    pub tier: Tier,
    /// Makes a spawn for a generation, that waits so long first; generation 0 warms up in full.
    pub spawn: Box<dyn Fn(u32, Ns) -> Spawn + Send>,
}

/// A lane's thread as the driver sees it.
struct Seat {
    seat: LaneSeat,
    generation: u32,
    /// Times in a row that its scorer could not be made.
    failures: u32,
    work: Post<Work>,
    /// What it was sent and has not answered.
    running: VecDeque<(BatchId, Vec<Slice>, u64)>,
}

pub(super) struct Driver {
    pub clock: Clock,
    pub inbox: Mailbox<Message>,
    pub shared: Arc<Shared>,
    pub books: Books,
    pub tiers: PerTier<Option<TierSetup>>,
    pub config: Config,
    pub seats: Vec<LaneSeat>,
    /// Told once whether every lane came up.
    pub started: oneshot::Sender<Result<(), StartError>>,
}

/// The driver once every lane is up.
struct Running {
    clock: Clock,
    inbox: Mailbox<Message>,
    /// A message that came while arrivals were taken together.
    next: Option<Message>,
    books: Books,
    tiers: PerTier<Option<TierSetup>>,
    sched: Scheduler,
    seats: Vec<Seat>,
    entries: HashMap<JobId, Entry>,
    actions: Vec<Action>,
    /// Events that must come before any other.
    replies: VecDeque<Event>,
}

impl Driver {
    /// Brings the lanes up, then runs until told to stop.
    pub fn run(mut self) {
        let mut seats: Vec<Seat> = self
            .seats
            .into_iter()
            .map(|seat| {
                let work = (seat.spawn)(0, Ns::ZERO).start();
                Seat { seat, generation: 0, failures: 0, work, running: VecDeque::new() }
            })
            .collect();
        let mut config = self.config;
        match warm_up(&self.inbox, &seats, &mut self.books) {
            Ok(seeds) => config.seeds = seeds,
            Err(error) => {
                seats.clear();
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
            seats,
            entries: HashMap::new(),
            actions: Vec::new(),
            replies: VecDeque::new(),
        };
        for lane in 0..running.seats.len() as u32 {
            running.step(Event::LaneUp { lane: LaneId(lane) });
        }
        // A drain that came while loading must not be undone.
        self.shared.loaded();
        let _ = self.started.send(Ok(()));
        running.run();
    }
}

/// Waits until every lane is up and returns what they measured, by tier.
fn warm_up(
    inbox: &Mailbox<Message>,
    seats: &[Seat],
    books: &mut Books,
) -> Result<PerTier<Vec<Measured>>, StartError> {
    let mut seeds: PerTier<Vec<Measured>> = PerTier::default();
    let mut missing = seats.len();
    while missing > 0 {
        match inbox.recv_until(None) {
            Ok(Message::Report(Report { lane, news: News::Up(measured), .. })) => {
                seeds[seats[lane.0 as usize].seat.tier].extend(measured);
                missing -= 1;
            }
            Ok(Message::Report(Report { lane, news: News::Down(why), .. })) => {
                return Err(StartError::Lane { lane: lane.0, why });
            }
            Ok(Message::Report(Report { lane, news: News::Device(state), .. })) => books.device(lane, state),
            Ok(Message::Report(Report { news: News::Ended { .. }, .. })) => {
                unreachable!("no batch is sent before every lane is up")
            }
            // The handle refuses requests while loading; only one that raced gets here.
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
                Ok(message) => self.hear(message),
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

    fn hear(&mut self, message: Message) {
        match message {
            Message::Submit(submission) => {
                let mut arrivals = vec![self.enter(*submission)];
                // Who else stands at the door comes along: a lane that is free takes them together.
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
                // A client that left before its submission came is seen when the reply is closed.
                self.entries.remove(&job);
                self.step(Event::Cancel { job });
            }
            Message::Report(report) => self.hear_lane(report),
            Message::Drain => self.step(Event::Drain),
            Message::HandOver { ago, done } => {
                self.books.hand_over_after(ago, self.clock.now(), &self.sched);
                // Whoever asked may have gone.
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

    fn hear_lane(&mut self, report: Report) {
        let seat = &mut self.seats[report.lane.0 as usize];
        if report.generation != seat.generation {
            tracing::info!(lane = report.lane.0, "a lane that was given up has returned");
            return;
        }
        match report.news {
            News::Up(_) => {
                seat.failures = 0;
                self.step(Event::LaneUp { lane: report.lane });
            }
            News::Device(state) => self.books.device(report.lane, state),
            News::Down(why) => {
                tracing::error!(lane = report.lane.0, why, "a lane did not come up again; it is retried");
                seat.failures += 1;
                self.restart(report.lane);
            }
            News::Ended { mut done, logits } => {
                let (batch, slices, tokens) =
                    seat.running.pop_front().expect("a lane reports only batches that it was sent");
                assert_eq!(batch, done.batch, "a lane runs its batches in order");
                let tier = seat.seat.tier;
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

    /// Tells the scheduler, and does what it asks for until it is content.
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
        let seat = &mut self.seats[dispatch.lane.0 as usize];
        let tier = seat.seat.tier;
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
        seat.running.push_back((dispatch.batch, dispatch.slices, tokens));
        // A lane whose thread has ended is about to report it, and is then restarted.
        let _ = seat.work.send(Work { batch: dispatch.batch, slices });
    }

    fn restart(&mut self, lane: LaneId) {
        let seat = &mut self.seats[lane.0 as usize];
        seat.generation += 1;
        seat.running.clear();
        let wait = match seat.failures {
            0 => Ns::ZERO,
            failures => Ns(RETRY_NS_MIN.0 << failures.min(8)),
        };
        seat.work = (seat.seat.spawn)(seat.generation, wait).start();
    }
}
