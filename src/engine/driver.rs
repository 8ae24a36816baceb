//! The loop that passes events to the scheduler and executes its actions.

use super::answer::Entry;
use super::books::Books;
use super::clock::Clock;
use super::handle::Shared;
use super::lane::{LaneEvent, Report, Spawn, Work};
use super::loading::{Loading, Releasing, Starting};
use super::mailbox::{Mailbox, Post};
use super::pairs::Prepared;
use super::served::Served;
use super::{ModelSetup, RouteSetup, StartError};
use crate::base::{LaneId, ModelId, Ns, Slots};
use crate::rerank::{Outcome, Refusal};
use crate::sched::{Action, Arrival, BatchId, Config, Dispatch, Event, JobId, Scheduler, Slice};
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
    /// Loads a model beside those that serve. It serves once the router names it.
    Load {
        model: Box<ModelSetup>,
        done: oneshot::Sender<Result<Arc<Served>, StartError>>,
    },
    /// Retires a model that the router names no longer; signals `done` once its lanes are released.
    Retire {
        model: ModelId,
        done: oneshot::Sender<()>,
    },
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
    pub device: Arc<str>,
    pub batch_tokens_max: u64,
    pub depth: usize,
    /// From a generation and a time to wait first. Generation 0 warms up in full.
    pub spawn: Box<dyn Fn(u32, Ns) -> Spawn + Send>,
}

/// A lane's thread as the driver sees it.
pub(super) struct LaneThread {
    pub model: ModelId,
    pub factory: LaneFactory,
    generation: u32,
    /// Consecutive failures to make its scorer.
    failures: u32,
    work: Post<Work>,
    /// Batches sent to the thread and not reported: id, slices and tokens, the oldest first.
    running: VecDeque<(BatchId, Vec<Slice>, u64)>,
}

pub(super) struct Driver {
    pub(super) clock: Clock,
    /// For reports of lanes.
    pub(super) sender: Post<Message>,
    inbox: Mailbox<Message>,
    pub(super) shared: Arc<Shared>,
    /// The message that ended a series of arrivals, to be handled next.
    pub(super) next: Option<Message>,
    pub(super) books: Books,
    sched: Scheduler,
    pub(super) batch_ns_max: Ns,
    pub(super) threads: Slots<LaneId, LaneThread>,
    pub(super) starting: Option<Starting>,
    pub(super) loading: Vec<Loading>,
    pub(super) releasing: Vec<Releasing>,
    pub(super) next_model: u32,
    pub(super) next_lane: u32,
    entries: HashMap<JobId, Entry>,
    actions: Vec<Action>,
    /// Events for the scheduler that precede any message.
    replies: VecDeque<Event>,
}

impl LaneThread {
    /// Starts a lane of a model.
    pub fn start(model: ModelId, factory: LaneFactory) -> Self {
        let work = (factory.spawn)(0, Ns::ZERO).start();
        Self { model, factory, generation: 0, failures: 0, work, running: VecDeque::new() }
    }
}

impl Driver {
    pub fn new(
        (clock, sender, inbox): (Clock, Post<Message>, Mailbox<Message>),
        shared: Arc<Shared>,
        mut books: Books,
        config: Config,
    ) -> Self {
        books.begin(&config);
        Self {
            clock,
            sender,
            inbox,
            shared,
            next: None,
            books,
            sched: Scheduler::new(&config),
            batch_ns_max: config.limits.batch_ns_max,
            threads: Slots::default(),
            starting: None,
            loading: Vec::new(),
            releasing: Vec::new(),
            next_model: 0,
            next_lane: 0,
            entries: HashMap::new(),
            actions: Vec::new(),
            replies: VecDeque::new(),
        }
    }

    /// Brings the models up, then runs until told to stop.
    pub fn run(
        mut self,
        models: Vec<ModelSetup>,
        routes: Vec<RouteSetup>,
        started: oneshot::Sender<Result<(), StartError>>,
    ) {
        let missing = models.len();
        self.starting = Some(Starting { routes, models: Vec::new(), missing, started });
        models.into_iter().for_each(|model| self.load(model, None));
        self.work();
    }

    fn work(&mut self) {
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
            Message::Load { model, done } => self.load(*model, Some(done)),
            Message::Retire { model, done } => self.retire(model, done),
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
        let current = self.threads.get_mut(report.lane);
        let Some(thread) = current.filter(|thread| thread.generation == report.generation) else {
            let lane = report.lane.0;
            tracing::info!(lane, "a lane that was given up has reported; the report is ignored");
            return;
        };
        let model = thread.model;
        if let Some(place) = self.loading.iter().position(|loading| loading.id == model) {
            return self.report_of_loading(place, report.lane, report.event);
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
                if done.result.is_ok() {
                    let mut rest = &logits[..];
                    for slice in &slices {
                        let (part, tail) = rest.split_at(slice.range.len());
                        rest = tail;
                        if let Some(entry) = self.entries.get_mut(&slice.job) {
                            entry.keep(model, slice, part);
                        }
                    }
                }
                self.books.end_batch(self.clock.now(), &mut done, (logits.len(), tokens));
                self.step(Event::Done(done));
            }
        }
    }

    /// Passes an event to the scheduler and executes its actions, until no further event results.
    pub(super) fn step(&mut self, event: Event) {
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
                entry.answer(now, &answer, price);
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
            Action::Release { lane } => self.release(now, lane),
            Action::GaveUp { .. } | Action::Discard { .. } => self.books.act(now, &action),
        }
    }

    fn dispatch(&mut self, now: Ns, dispatch: Dispatch) {
        self.books.begin_batch(now, dispatch.lane);
        let thread = &mut self.threads[dispatch.lane];
        let model = thread.model;
        let mut tokens = 0;
        let slices = dispatch
            .slices
            .iter()
            .map(|slice| {
                let entry = self.entries.get(&slice.job).expect("a job that is dispatched has its entry");
                tokens += entry.tokens(model, slice);
                (slice.clone(), entry.pairs(model))
            })
            .collect();
        thread.running.push_back((dispatch.batch, dispatch.slices, tokens));
        // Fails if the lane's thread has ended. Its report is on the way, and then the lane is restarted.
        let _ = thread.work.send(Work { batch: dispatch.batch, slices });
    }

    fn restart(&mut self, lane: LaneId) {
        let thread = &mut self.threads[lane];
        thread.generation += 1;
        thread.running.clear();
        let wait = match thread.failures {
            0 => Ns::ZERO,
            failures => Ns(RETRY_NS_MIN.0 << failures.min(8)),
        };
        thread.work = (thread.factory.spawn)(thread.generation, wait).start();
    }
}
