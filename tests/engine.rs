//! The engine on scripted scorers: outcomes are right, and faults stay contained.

mod common;

use common::{block_on, logit, setup, up};
use podium::backend::{DeviceState, Play, ScoreError, Scorer, Script, Scripted};
use podium::base::{DeviceNs, Ns, Side, TenantId, Tier, Tokens};
use podium::engine::{Caller, Engine, Handle, Journal, JournalEntry, SelfCheck, Setup, StartError, State};
use podium::model::Golden;
use podium::rerank::{
    Degradation, Options, Outcome, Overflow, PairTokens, Policy, Query, Refusal, Request, Served, Truncated,
    Truncation, TruncationDefaults,
};
use podium::sched::Event;
use podium::token::{Around, Instructed, Packed, Prompt, Tokenizer};
use serde_json::json;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

async fn rank(handle: &Handle, request: Request) -> Result<Outcome, Refusal> {
    let caller = Caller { tenant: TenantId(0), arrived: handle.now(), policy: Policy::Auto };
    handle.rank(Arc::new(request), caller).await
}

/// Some of an endless row of letters, each a word and a token.
fn words(range: Range<u32>) -> String {
    range
        .filter_map(|place| char::from_digit(10 + place % 26, 36))
        .map(|letter| format!("{letter} "))
        .collect()
}

fn plain() -> Request {
    Request::new("ab", ["abc", "x y z", ""])
}

fn with_budget(budget: Ns) -> Request {
    let options = Options { latency_budget: Some(budget), ..Options::default() };
    Request { options, ..plain() }
}

fn expected() -> Vec<f32> {
    ["abc", "x y z", ""].map(|document| logit("ab", document)).to_vec()
}

fn scripted(script: &Script) -> Scripted {
    Scripted { script: script.clone(), ..Scripted::default() }
}

/// A scorer with a queue. Its script is played when a batch is collected.
#[derive(Clone, Default)]
struct Queued {
    scorer: Scripted,
    in_flight: VecDeque<Packed>,
    /// While set, no batch ends.
    is_held: Arc<AtomicBool>,
    submitted: Arc<AtomicUsize>,
    /// The results of the next submissions.
    refusals: Arc<Mutex<VecDeque<Option<ScoreError>>>>,
}

impl Scorer for Queued {
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError> {
        assert!(self.in_flight.is_empty(), "only warm-up scores, while none is in flight");
        self.scorer.score(batch, logits)
    }

    fn submit(&mut self, batch: &Packed) -> Result<bool, ScoreError> {
        assert!(self.in_flight.len() < 2, "at most two are in flight");
        let refusal = self.refusals.lock().unwrap().pop_front().flatten();
        self.submitted.fetch_add(1, Ordering::SeqCst);
        if let Some(error) = refusal {
            return Err(error);
        }
        self.in_flight.push_back(batch.clone());
        Ok(true)
    }

    fn is_done(&self) -> bool {
        !self.is_held.load(Ordering::SeqCst)
    }

    fn collect(&mut self, logits: &mut [f32]) -> Result<(), ScoreError> {
        while !self.is_done() {
            std::thread::yield_now();
        }
        let batch = self.in_flight.pop_front().unwrap();
        self.scorer.score(&batch, logits)
    }
}

impl Queued {
    /// Sends two requests one after the other, so that each is a batch, and ends them once both are submitted.
    async fn two(&self, engine: &Engine) -> [Result<Outcome, Refusal>; 2] {
        self.is_held.store(true, Ordering::SeqCst);
        let submitted_before = self.submitted.load(Ordering::SeqCst);
        let handle = engine.handle();
        let (mut first, mut second) = (pin!(rank(&handle, plain())), pin!(rank(&handle, other())));
        let both_submitted = async {
            for (number, request) in [(1, first.as_mut()), (2, second.as_mut())] {
                let mut request: std::pin::Pin<&mut dyn Future<Output = _>> = request;
                while self.submitted.load(Ordering::SeqCst) < submitted_before + number {
                    assert!(poll_fn(|cx| Poll::Ready(request.as_mut().poll(cx))).await.is_pending());
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), both_submitted)
            .await
            .expect("the second is submitted meanwhile");
        self.is_held.store(false, Ordering::SeqCst);
        [first.await, second.await]
    }
}

fn other() -> Request {
    Request::new("xy", ["q", "r r"])
}

fn expected_other() -> Vec<f32> {
    ["q", "r r"].map(|document| logit("xy", document)).to_vec()
}

#[test]
fn a_batch_is_queued_behind_the_one_that_is_at_work() {
    block_on(async {
        let queued = Queued::default();
        let engine = up(setup(queued.clone(), None)).await;
        let started = engine.handle().now();
        let [first, second] = queued.two(&engine).await.map(Result::unwrap);
        assert_eq!((first.scores, second.scores), (expected(), expected_other()));
        let charged = first.receipt.device + second.receipt.device;
        assert!(Ns(charged.0) <= engine.handle().now() - started, "no time is charged twice: {charged:?}");
    });
}

#[test]
fn a_batch_that_cannot_be_queued_takes_nothing_from_the_one_at_work() {
    for error in [ScoreError::OutOfMemory, ScoreError::Failed("the test says so".to_owned())] {
        block_on(async {
            let queued = Queued::default();
            let engine = up(setup(queued.clone(), None)).await;
            queued.refusals.lock().unwrap().extend([None, Some(error.clone())]);
            let [first, second] = queued.two(&engine).await.map(Result::unwrap);
            assert_eq!((first.scores, second.scores), (expected(), expected_other()), "{error}");
        });
    }
}

#[test]
fn a_fault_of_the_batch_at_work_is_survived_by_the_one_behind_it() {
    for play in [Play::Panic, Play::NonFinite, Play::Fail, Play::OutOfMemory] {
        block_on(async {
            let script = Script::default();
            let queued = Queued { scorer: scripted(&script), ..Queued::default() };
            let engine = up(setup(queued.clone(), Some(Scripted::default()))).await;
            script.extend([play.clone()]);
            let [first, second] = queued.two(&engine).await.map(Result::unwrap);
            assert_eq!((first.scores, second.scores), (expected(), expected_other()), "{play:?}");
            assert_eq!(script.left(), 0);
        });
    }
}

#[test]
fn scores_come_back_in_the_caller_s_order_with_a_receipt() {
    block_on(async {
        let engine = up(setup(Scripted::default(), None)).await;
        let outcome = rank(&engine.handle(), plain()).await.unwrap();
        assert_eq!(outcome.scores, expected());
        assert_eq!(outcome.truncated, [false; 3]);
        assert_eq!(outcome.tokens.0, 8 + 8 + 5);
        let receipt = outcome.receipt;
        assert_eq!((receipt.served, receipt.degraded), (Served::Full, None));
        assert_eq!((&*receipt.model, &*receipt.version), ("large", "0123456789ab"));
        assert_eq!(receipt.elapsed, receipt.queue + receipt.compute);
        assert!(receipt.device.0 > 0);
    });
}

#[test]
fn a_device_that_tells_is_believed_up_to_the_lane_s_own_clock() {
    block_on(async {
        let state = DeviceState { memory_bytes: 1 << 30, watts: Some(500.0) };
        let ask = async |told: DeviceNs| {
            let device = Some((told, state));
            let scorer = Scripted { per_token: Duration::from_micros(100), device, ..Scripted::default() };
            let engine = up(setup(scorer, None)).await;
            rank(&engine.handle(), plain()).await.unwrap().receipt
        };
        let receipt = ask(DeviceNs(1_000)).await;
        assert_eq!((receipt.device, receipt.joules), (DeviceNs(1_000), Some(500e-6)));
        let receipt = ask(DeviceNs(u64::MAX)).await;
        assert!((2_100_000..10_000_000_000).contains(&receipt.device.0), "{receipt:?}");
        let engine = up(setup(Scripted::default(), None)).await;
        assert_eq!(rank(&engine.handle(), plain()).await.unwrap().receipt.joules, None);
    });
}

#[test]
fn no_candidates_are_an_answer_and_not_an_error() {
    block_on(async {
        let engine = up(setup(Scripted::default(), None)).await;
        let outcome = rank(&engine.handle(), Request::new("ab", [""; 0])).await.unwrap();
        assert!(outcome.scores.is_empty());
    });
}

#[test]
fn ten_thousand_documents_are_one_request_and_a_small_one_passes_it() {
    block_on(async {
        let slow = Scripted { per_token: Duration::from_micros(10), ..Scripted::default() };
        let engine = up(setup(slow, None)).await;
        let documents: Vec<String> = (0..10_000).map(|n| format!("{n:o}").replace(['0', '1'], "q")).collect();
        let handle = engine.handle();
        let mut large = pin!(rank(&handle, Request::new("ab", &documents)));
        // The large request is sent first and is still unanswered when the small one is answered.
        assert!(poll_fn(|cx| Poll::Ready(large.as_mut().poll(cx))).await.is_pending());
        assert_eq!(rank(&handle, plain()).await.unwrap().scores, expected());
        assert!(poll_fn(|cx| Poll::Ready(large.as_mut().poll(cx))).await.is_pending());
        let outcome = large.await.unwrap();
        let wanted: Vec<f32> = documents[..50].iter().map(|document| logit("ab", document)).collect();
        assert_eq!(outcome.scores[..50], wanted);
        assert_eq!(outcome.scores.len(), 10_000);
    });
}

#[test]
fn a_query_that_leaves_no_room_is_cut_and_said_unless_a_refusal_is_asked_for() {
    block_on(async {
        let engine = up(setup(Scripted::default(), None)).await;
        let (query, long) = (words(0..180), words(200..290));
        let ask = async |truncation: Truncation| {
            let request = Request { truncation, ..Request::new(query.clone(), ["x", &long]) };
            rank(&engine.handle(), request).await
        };
        // The model reads 128 tokens, 3 of them special. 3/4 are 96, and 29 are left to a document.
        let outcome = ask(Truncation::default()).await.unwrap();
        let cut = words(0..96);
        assert_eq!(outcome.scores, [logit(&cut, "x"), logit(&cut, &words(200..229))]);
        assert_eq!(outcome.truncated, [false, true]);
        assert_eq!(outcome.receipt.truncated, Truncated { documents: 1, query_tokens: 84 });
        assert_eq!(outcome.tokens, Tokens(96 + 1 + 3 + 128));
        // The longer of the two gives way, and each document sees another query.
        let outcome = ask(Truncation::by(Overflow::LongestFirst)).await.unwrap();
        let expected = [logit(&words(0..124), "x"), logit(&words(0..63), &words(200..262))];
        assert_eq!(outcome.scores, expected);
        assert_eq!(outcome.receipt.truncated, Truncated { documents: 1, query_tokens: 117 });
        // What is left out is left out at the same end of both.
        let outcome = ask(Truncation { side: Some(Side::Left), ..Truncation::default() }).await.unwrap();
        let cut = words(84..180);
        assert_eq!(outcome.scores, [logit(&cut, "x"), logit(&cut, &words(261..290))]);
        for policy in [Overflow::DocumentOnly, Overflow::Refuse] {
            assert_eq!(
                ask(Truncation::by(policy)).await.unwrap_err().to_string(),
                "query: the query has 180 tokens and must have fewer than 125 to leave room for a document",
                "{policy:?}"
            );
        }
    });
}

#[test]
fn a_request_that_says_nothing_is_cut_as_the_server_is_configured() {
    block_on(async {
        let truncation =
            TruncationDefaults { policy: Overflow::Truncate, side: Side::Left, query_permille: 250 };
        let engine = up(Setup { truncation, ..setup(Scripted::default(), None) }).await;
        let (query, document) = (words(0..120), words(200..320));
        let outcome = rank(&engine.handle(), Request::new(query.clone(), [&document])).await.unwrap();
        assert_eq!(outcome.scores, [logit(&words(88..120), &words(227..320))]);
        let truncation = TruncationDefaults { policy: Overflow::Refuse, ..TruncationDefaults::default() };
        let engine = up(Setup { truncation, ..setup(Scripted::default(), None) }).await;
        let refusal = rank(&engine.handle(), Request::new(query, [document])).await.unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "documents[0]: the pair has 243 tokens, of which 3 stand around its texts, and the limit is 128"
        );
    });
}

#[test]
fn limits_of_texts_and_pairs_are_kept_and_said() {
    block_on(async {
        let engine = up(setup(Scripted::default(), None)).await;
        let ask = async |truncation: Truncation| {
            let request = Request { truncation, ..Request::new("abcdef", ["ghijklmnop", "x"]) };
            rank(&engine.handle(), request).await
        };
        let texts =
            Truncation { query_tokens_max: Some(2), document_tokens_max: Some(3), ..Truncation::default() };
        let outcome = ask(texts).await.unwrap();
        assert_eq!(outcome.scores, [logit("ab", "ghi"), logit("ab", "x")]);
        assert_eq!((outcome.truncated, outcome.receipt.truncated.query_tokens), (vec![true, false], 4));
        for (pair_tokens, expected) in [
            // 3/4 of 10 are 7, but 6 leave one to the document.
            (PairTokens::AtMost(10), ("abcdef", "g")),
            (PairTokens::Within(12), ("abcdef", "ghi")),
            (PairTokens::Within(128), ("abcdef", "ghijklmnop")),
            (PairTokens::AtMost(129), ("abcdef", "ghijklmnop")),
            (PairTokens::Model, ("abcdef", "ghijklmnop")),
        ] {
            let outcome = ask(Truncation { pair_tokens, ..Truncation::default() }).await.unwrap();
            assert_eq!(outcome.scores[0], logit(expected.0, expected.1), "{pair_tokens:?}");
        }
        for (pair_tokens, expected) in [
            (PairTokens::Within(129), "129 is more than the 128 tokens that the model reads"),
            (
                PairTokens::AtMost(4),
                "4 tokens have no room for a query and a document beside 3 special tokens; the least is 5",
            ),
        ] {
            let refusal = ask(Truncation { pair_tokens, ..Truncation::default() }).await.unwrap_err();
            assert_eq!(refusal.to_string(), format!("pair_tokens_max: {expected}"));
        }
    });
}

#[test]
fn an_over_long_pair_has_the_same_score_in_any_company() {
    block_on(async {
        let engine = up(setup(Scripted::default(), None)).await;
        let query = words(0..160);
        let documents: Vec<String> = (0..40).map(|number| words(0..4 * number)).collect();
        for policy in [Overflow::Truncate, Overflow::LongestFirst] {
            let request = |documents: &[String]| Request {
                truncation: Truncation::by(policy),
                ..Request::new(query.clone(), documents)
            };
            let together = rank(&engine.handle(), request(&documents)).await.unwrap();
            for (place, document) in documents.iter().enumerate() {
                let alone = rank(&engine.handle(), request(std::slice::from_ref(document))).await.unwrap();
                assert_eq!(alone.scores, together.scores[place..=place]);
                assert_eq!(alone.truncated, together.truncated[place..=place]);
            }
        }
    });
}

#[test]
fn the_scheduler_gets_the_prefix_where_scorers_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("journal.jsonl");
    block_on(async {
        let mut setup = setup(Scripted::default(), Some(Scripted::default()));
        setup.models[0].shares_prefixes = true;
        setup.books.journal = Some(Journal::create(&place).unwrap());
        let engine = up(setup).await;
        rank(&engine.handle(), Request::new("ab", ["abc", "x"])).await.unwrap();
        let queries = Query::PerDocument(["ab", "c"].map(Into::into).to_vec());
        rank(&engine.handle(), Request { query: queries, ..Request::new("", ["abc", "x"]) }).await.unwrap();
    });
    let journal = std::fs::read_to_string(place).unwrap();
    let arrivals: Vec<_> = journal
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str::<JournalEntry>(line).unwrap().event)
        .flat_map(|event| if let Event::Arrive(arrivals) = event { arrivals } else { Vec::new() })
        .map(|arrival| {
            arrival.primaries.into_iter().chain(arrival.fallback).map(|ask| (ask.prefix, ask.lengths))
        })
        .map(Vec::from_iter)
        .collect();
    let asks = |prefix, primary: [u32; 2], fallback: [u32; 2]| {
        vec![(prefix, Arc::<[u32]>::from(primary)), (0, Arc::from(fallback))]
    };
    // Of [CLS] a b [SEP] a b c [SEP] scorers keep the first token, and compute the next three once.
    assert_eq!(
        arrivals,
        [asks(3, [4, 2], [8, 6]), asks(0, [7, 4], [8, 5])],
        "the second request has a query for each document"
    );
}

#[test]
fn a_top_k_declares_what_either_tier_did_not_read() {
    block_on(async {
        let mut setup = setup(Scripted::default(), Some(Scripted::default()));
        setup.models[1].pair_tokens_max = 16;
        let engine = up(setup).await;
        let ask = async |policy: Policy| {
            let options = Options { policy: Some(policy), top_k: Some(1), ..Options::default() };
            let documents = ["x", &words(0..20), &words(0..130)];
            rank(&engine.handle(), Request { options, ..Request::new("ab", documents) }).await.unwrap()
        };
        assert_eq!(ask(Policy::Full).await.truncated, [false, false, true]);
        for policy in [Policy::Fallback, Policy::TopK] {
            let outcome = ask(policy).await;
            assert_eq!(outcome.truncated, [false, true, true]);
            assert_eq!(outcome.receipt.truncated, Truncated { documents: 2, query_tokens: 0 });
        }
    });
}

#[test]
fn a_pair_that_may_not_be_cut_is_refused_only_if_a_tier_that_the_policy_needs_cannot_read_it() {
    block_on(async {
        let long = words(0..20);
        for (primary, fallback, answered, refused) in [
            (128, 16, [None, Some(Policy::Auto), Some(Policy::Full)], [Policy::TopK, Policy::Fallback]),
            (16, 128, [Some(Policy::Fallback); 3], [Policy::Auto, Policy::Full]),
        ] {
            let mut setup = setup(Scripted::default(), Some(Scripted::default()));
            setup.models[0].pair_tokens_max = primary;
            setup.models[1].pair_tokens_max = fallback;
            let engine = up(setup).await;
            let ask = async |policy: Option<Policy>| {
                let options = Options { policy, ..Options::default() };
                let truncation = Truncation::by(Overflow::Refuse);
                rank(&engine.handle(), Request { options, truncation, ..Request::new("ab", ["x", &long]) })
                    .await
            };
            for policy in answered {
                let outcome = ask(policy).await.unwrap();
                let served = if primary > fallback { Served::Full } else { Served::Fallback };
                assert_eq!((outcome.receipt.served, outcome.receipt.degraded), (served, None), "{policy:?}");
                assert_eq!(outcome.scores, [logit("ab", "x"), logit("ab", &long)]);
            }
            let pair_tokens = PairTokens::Within(17);
            let options = Options { policy: Some(refused[1]), ..Options::default() };
            let truncation = Truncation { pair_tokens, ..Truncation::default() };
            let within = Request { options, truncation, ..plain() };
            let refusal = rank(&engine.handle(), within).await.unwrap_err().to_string();
            assert_eq!(refusal, "pair_tokens_max: 17 is more than the 16 tokens that the model reads");
            for policy in refused {
                let refusal = ask(Some(policy)).await.unwrap_err().to_string();
                assert_eq!(
                    refusal,
                    "documents[1]: the pair has 25 tokens, of which 3 stand around its texts, and the limit is 16",
                    "{policy:?}"
                );
            }
        }
    });
}

#[test]
fn a_document_that_may_not_be_cut_is_named() {
    block_on(async {
        let engine = up(setup(Scripted::default(), None)).await;
        let long = "a ".repeat(200);
        let request =
            Request { truncation: Truncation::by(Overflow::Refuse), ..Request::new("ab", ["x", &long]) };
        let refusal = rank(&engine.handle(), request).await.unwrap_err().to_string();
        assert_eq!(
            refusal,
            "documents[1]: the pair has 205 tokens, of which 3 stand around its texts, and the limit is 128"
        );
    });
}

#[test]
fn each_document_may_have_its_own_query() {
    block_on(async {
        let engine = up(setup(Scripted::default(), None)).await;
        let query = Query::PerDocument(vec!["ab".into(), "cd".into()]);
        let request = Request { query, ..Request::new("", ["x", "y"]) };
        let outcome = rank(&engine.handle(), request).await.unwrap();
        assert_eq!(outcome.scores, [logit("ab", "x"), logit("cd", "y")]);
    });
}

#[test]
fn a_fault_of_the_primary_is_answered_by_the_fallback_and_said() {
    for play in [Play::Panic, Play::NonFinite, Play::Fail] {
        block_on(async {
            let script = Script::default();
            let engine = up(setup(scripted(&script), Some(Scripted::default()))).await;
            script.extend([play.clone()]);
            let outcome = rank(&engine.handle(), plain()).await.unwrap();
            assert_eq!(outcome.scores, expected());
            assert_eq!(outcome.receipt.served, Served::Fallback, "{play:?}");
            assert_eq!(outcome.receipt.degraded, Some(Degradation::PrimaryFailed));
            assert_eq!(&*outcome.receipt.model, "small");
        });
    }
}

#[test]
fn a_lane_that_broke_works_again() {
    block_on(async {
        let script = Script::default();
        let engine = up(setup(scripted(&script), Some(Scripted::default()))).await;
        script.extend([Play::Panic]);
        rank(&engine.handle(), plain()).await.unwrap();
        // While the lane rests the fallback answers and says so; the last answer is full again.
        loop {
            let receipt = rank(&engine.handle(), plain()).await.unwrap().receipt;
            match receipt.degraded {
                None => break assert_eq!(receipt.served, Served::Full),
                Some(_) => assert_eq!(receipt.served, Served::Fallback),
            }
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn without_a_fallback_a_fault_is_tried_once_more() {
    block_on(async {
        let script = Script::default();
        let engine = up(setup(scripted(&script), None)).await;
        script.extend([Play::Fail]);
        assert_eq!(rank(&engine.handle(), plain()).await.unwrap().scores, expected());
        // Each of the two attempts is a warm-up run and then the batch.
        script.extend([Play::Fail, Play::Answer, Play::Answer, Play::Fail]);
        assert_eq!(rank(&engine.handle(), plain()).await.unwrap_err(), Refusal::ModelFailed);
    });
}

#[test]
fn out_of_memory_makes_batches_smaller_and_loses_nothing() {
    block_on(async {
        let script = Script::default();
        let engine = up(setup(scripted(&script), None)).await;
        script.extend([Play::OutOfMemory, Play::OutOfMemory]);
        let outcome = rank(&engine.handle(), plain()).await.unwrap();
        assert_eq!(outcome.scores, expected());
        assert_eq!((outcome.receipt.degraded, script.left()), (None, 0));
    });
}

#[test]
fn a_lane_that_hangs_does_not_make_an_answer_late() {
    block_on(async {
        let script = Script::default();
        let mut setup = setup(scripted(&script), Some(Scripted::default()));
        // A long margin: other tests may keep this machine busy when the fallback must start.
        setup.limits.answer_ns_margin = Ns::from_millis(100);
        let engine = up(setup).await;
        script.extend([Play::Hang(Duration::from_secs(2))]);
        let receipt = rank(&engine.handle(), with_budget(Ns::from_millis(200))).await.unwrap().receipt;
        assert_eq!((receipt.served, receipt.degraded), (Served::Fallback, Some(Degradation::PrimaryLate)));
        assert!(receipt.within_budget(), "{receipt:?}");
    });
}

#[test]
fn a_policy_without_its_tier_is_refused_by_name() {
    block_on(async {
        let engine = up(setup(Scripted::default(), None)).await;
        let options = Options { policy: Some(Policy::Fallback), ..Options::default() };
        let refusal = rank(&engine.handle(), Request { options, ..plain() }).await.unwrap_err().to_string();
        assert_eq!(refusal, "policy: `fallback` needs a fallback model, and none is configured");
    });
}

#[test]
fn naming_the_fallback_s_model_gets_it_without_a_degradation() {
    block_on(async {
        let engine = up(setup(Scripted::default(), Some(Scripted::default()))).await;
        let request = Request { model: Some("small".into()), ..plain() };
        let receipt = rank(&engine.handle(), request).await.unwrap().receipt;
        assert_eq!((receipt.served, receipt.degraded), (Served::Fallback, None));
    });
}

#[test]
fn an_unknown_model_is_refused_where_names_matter() {
    block_on(async {
        let engine = up(Setup { any_model: false, ..setup(Scripted::default(), None) }).await;
        let request = Request { model: Some("other".into()), ..plain() };
        let refusal = rank(&engine.handle(), request).await.unwrap_err();
        assert_eq!(refusal, Refusal::UnknownModel { name: "other".into() });
    });
}

#[test]
fn a_client_that_leaves_takes_its_work_along() {
    block_on(async {
        let slow = Scripted { per_token: Duration::from_micros(100), ..Scripted::default() };
        let engine = up(setup(slow, None)).await;
        let handle = engine.handle();
        {
            let mut gone = pin!(rank(&handle, Request::new("ab", vec!["abc"; 5_000])));
            assert!(poll_fn(|cx| Poll::Ready(gone.as_mut().poll(cx))).await.is_pending());
            assert_eq!(handle.inside(), 1);
        }
        assert_eq!(handle.inside(), 0);
        assert_eq!(rank(&handle, plain()).await.unwrap().scores, expected());
    });
}

#[test]
fn a_draining_engine_answers_what_is_inside_and_takes_nothing_more() {
    block_on(async {
        let slow = Scripted { per_token: Duration::from_micros(100), ..Scripted::default() };
        let engine = up(setup(slow, None)).await;
        let handle = engine.handle();
        let mut inside = pin!(rank(&handle, plain()));
        assert!(poll_fn(|cx| Poll::Ready(inside.as_mut().poll(cx))).await.is_pending());
        handle.drain();
        assert_eq!(handle.state(), State::Draining);
        assert_eq!(rank(&handle, plain()).await.unwrap_err(), Refusal::Draining);
        assert_eq!(inside.await.unwrap().scores, expected());
    });
}

#[test]
fn a_model_s_golden_pairs_are_scored_before_it_is_ready() {
    let right = [logit("ab", "abc"), logit("ab", "x y z")];
    let file = |logits: [f32; 2]| {
        let pair = |document: &str, logit: f32| json!({"query": "ab", "document": document, "logit": logit});
        json!([pair("abc", logits[0]), pair("x y z", logits[1])]).to_string()
    };
    let started = |json: &str, dtype: &str| {
        block_on(async {
            let golden = Golden::parse(json.as_bytes()).unwrap();
            let mut setup = setup(Scripted::default(), None);
            let tier = &mut setup.models[0];
            let (limits, tokenizer) = ((128, 4_096), tier.tokenizer.clone());
            let check = SelfCheck::new(&golden, (Tier::Primary, "m"), tokenizer, limits, dtype).unwrap();
            tier.self_check = Some(Arc::new(check));
            let mut engine = Engine::start(setup).unwrap();
            engine.ready().await.map_err(|error| error.to_string())
        })
    };
    assert_eq!(started(&file(right), "float32"), Ok(()));
    let near = [right[0], right[1] + 0.01];
    // Rounding is a share of the largest logit.
    assert_eq!(started(&file(near), "bfloat16"), Ok(()));
    let error = started(&file(near), "float32").unwrap_err();
    let expected = format!(
        "the self-check of the primary m in float32 failed: 1 of 2 golden pairs have other scores than they must: pair 1 (\"ab\", \
         \"x y z\"): logit {} expected, {} got, 0.002 allowed; ",
        near[1], right[1]
    );
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("--no-self-check"), "{error}");
    // A probability, and a tolerance that the file states.
    let probability = 1.0 / (1.0 + (-right[0]).exp()) + 0.004;
    let one =
        |more: &str| format!(r#"[{{"query": "ab", "document": "abc", "probability": {probability}{more}}}]"#);
    assert_eq!(started(&one(r#", "tolerance": 0.01"#), "float32"), Ok(()));
    assert!(started(&one(""), "float32").unwrap_err().contains("probability"));
}

/// Starts an engine whose scorer plays a script and that has this many golden pairs of 7 tokens, in batches of 35 tokens.
fn start_with_golden(script: &Script, pairs: usize) -> Result<(), String> {
    block_on(async {
        let pair = json!({"query": "ab", "document": "ab", "logit": logit("ab", "ab")});
        let golden = Golden::parse(json!(vec![pair; pairs]).to_string().as_bytes()).unwrap();
        let mut setup = setup(scripted(script), None);
        let tier = &mut setup.models[0];
        let (limits, tokenizer) = ((128, 35), tier.tokenizer.clone());
        let check = SelfCheck::new(&golden, (Tier::Primary, "m"), tokenizer, limits, "float32").unwrap();
        tier.self_check = Some(Arc::new(check));
        Engine::start(setup).unwrap().ready().await.map_err(|error| error.to_string())
    })
}

#[test]
fn golden_pairs_without_a_score_are_told() {
    let script = Script::default();
    script.extend([Play::Fail]);
    let error = start_with_golden(&script, 1).unwrap_err();
    assert!(error.contains("failed: golden pair 0 could not be scored: "), "{error}");
    let script = Script::default();
    script.extend([Play::Answer, Play::Fail]);
    let error = start_with_golden(&script, 12).unwrap_err();
    assert!(error.contains("a batch of the golden pairs 5 to 9 could not be scored: "), "{error}");
}

#[test]
fn golden_pairs_are_scored_in_batches_of_the_lane() {
    let script = Script::default();
    // Three batches; a fourth one would be that of the warm-up.
    script.extend([Play::Answer, Play::Answer, Play::Answer, Play::Fail]);
    let error = start_with_golden(&script, 12).unwrap_err();
    assert!(error.contains("the warm-up failed"), "{error}");
    // A batch that the device has no memory for is divided: 5, 2, 3, and then the rest.
    let script = Script::default();
    script.extend([Play::OutOfMemory, Play::Answer, Play::Answer, Play::Answer, Play::Fail]);
    let error = start_with_golden(&script, 12).unwrap_err();
    assert!(error.contains("golden pairs 10 to 11 could not be scored"), "{error}");
    let script = Script::default();
    script.extend([Play::OutOfMemory]);
    let error = start_with_golden(&script, 1).unwrap_err();
    assert!(error.contains("golden pair 0 could not be scored: the device is out of memory"), "{error}");
}

#[test]
fn a_golden_pair_s_instruction_has_a_place_or_is_an_error() {
    let json = r#"[{"query": "ab", "document": "a", "logit": 1},
        {"query": "ab", "document": "a", "instruction": "", "logit": 1}]"#;
    let golden = Golden::parse(json.as_bytes()).unwrap();
    let tokenizer = setup(Scripted::default(), None).models.remove(0).tokenizer;
    let check = SelfCheck::new(&golden, (Tier::Primary, "m"), tokenizer, (128, 128), "float32");
    let expected = "pair 1: instruction: the model's prompt has no place for one; remove it from the pair";
    assert_eq!(check.unwrap_err().to_string(), expected);
    let instructed = SelfCheck::new(&golden, (Tier::Primary, "m"), instructed(), (128, 128), "float32");
    assert!(instructed.is_ok());
}

#[test]
fn a_scorer_that_cannot_be_made_is_told_at_the_start() {
    block_on(async {
        let mut setup = setup(Scripted::default(), None);
        setup.models[0].lanes[0].make = Arc::new(|| Err("no such device".to_owned()));
        let mut engine = Engine::start(setup).unwrap();
        let error = engine.ready().await.unwrap_err();
        assert_eq!(error.to_string(), "lane 0 did not start: no such device");
        let refusal = rank(&engine.handle(), plain()).await.unwrap_err();
        assert_eq!(refusal, Refusal::Unavailable);
    });
}

#[test]
fn a_tier_without_a_lane_is_an_error() {
    let mut setup = setup(Scripted::default(), None);
    setup.models[0].lanes.clear();
    assert!(matches!(Engine::start(setup), Err(StartError::Incomplete { what: "no lane", .. })));
}

#[test]
fn a_crowd_is_answered_once_each_whatever_breaks() {
    let scripts = || (Script::default(), Script::default());
    let (primary, fallback) = scripts();
    crowd(setup(scripted(&primary), Some(scripted(&fallback))), &primary, &fallback);
    let (primary, fallback) = scripts();
    let queued = Queued { scorer: scripted(&primary), ..Queued::default() };
    crowd(setup(queued, Some(scripted(&fallback))), &primary, &fallback);
}

fn crowd(setup: Setup, primary: &Script, fallback: &Script) {
    block_on(async {
        let engine = up(setup).await;
        let faults = [Play::Answer, Play::Panic, Play::Answer, Play::OutOfMemory, Play::NonFinite];
        primary.extend(faults.iter().cycle().take(200).cloned());
        fallback.extend([Play::Answer, Play::Answer, Play::Answer, Play::OutOfMemory, Play::Answer]);
        let handle = engine.handle();
        let crowd: Vec<_> = (0..500)
            .map(|number| {
                let handle = handle.clone();
                let document = format!("{number:o}").replace(|digit: char| digit.is_ascii_digit(), "w");
                async move {
                    let outcome = rank(&handle, Request::new("ab", [&document, "x"])).await.unwrap();
                    assert_eq!(outcome.scores, [logit("ab", &document), logit("ab", "x")]);
                }
            })
            .collect();
        let set: Vec<_> = crowd
            .into_iter()
            .map(|one| Box::pin(one) as std::pin::Pin<Box<dyn Future<Output = ()>>>)
            .collect();
        join_all(set).await;
        assert_eq!(handle.inside(), 0);
    });
}

async fn join_all(mut futures: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>>) {
    poll_fn(move |cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Sends requests with a budget one after the other; how many are answered in full.
async fn in_full(engine: &Engine, requests: usize) -> usize {
    let mut full = 0;
    for _ in 0..requests {
        let outcome = rank(&engine.handle(), with_budget(Ns::from_millis(80))).await.unwrap();
        full += usize::from(outcome.receipt.served == Served::Full);
    }
    full
}

#[test]
fn a_primary_that_was_slow_for_a_while_answers_in_full_again() {
    let script = Script::default();
    let slow = || std::iter::repeat_n(Play::Hang(Duration::from_millis(150)), 10_000);
    script.extend(slow());
    block_on(async {
        let engine = up(setup(scripted(&script), Some(Scripted::default()))).await;
        script.clear();
        // Warm-up says that nothing meets 80 ms; each request refutes it.
        assert!(in_full(&engine, 20).await >= 18, "slow while it warmed up");
        script.extend(slow());
        for _ in 0..5 {
            assert!(rank(&engine.handle(), plain()).await.is_ok());
        }
        assert!(in_full(&engine, 5).await == 0, "the fallback answers while the primary is slow");
        script.clear();
        // The estimate is in doubt a second after the last slow batch, of which some still run.
        let again = async { while in_full(&engine, 1).await == 0 {} };
        tokio::time::timeout(Duration::from_secs(10), again).await.expect("the primary is tried again");
        assert!(in_full(&engine, 20).await >= 18, "slow in mid-life");
    });
}

#[test]
fn one_document_is_answered_before_thousands_that_came_earlier() {
    let slow = Scripted { per_token: Duration::from_micros(20), ..Scripted::default() };
    block_on(async {
        let engine = up(setup(slow, None)).await;
        let handle = engine.handle();
        let large = Request::new("ab", vec!["x y z"; 10_000]);
        let mut large = pin!(rank(&handle, large));
        while engine.handle().inside() == 0 {
            assert!(poll_fn(|cx| Poll::Ready(large.as_mut().poll(cx))).await.is_pending());
            tokio::task::yield_now().await;
        }
        rank(&handle, plain()).await.unwrap();
        assert!(
            poll_fn(|cx| Poll::Ready(large.as_mut().poll(cx))).await.is_pending(),
            "it goes on meanwhile"
        );
        assert_eq!(large.await.unwrap().scores.len(), 10_000);
    });
}

#[test]
fn a_text_in_a_prompt_has_other_tokens_as_a_query_than_as_a_document() {
    block_on(async {
        let prompt = Prompt {
            before: vec!["q q".to_owned()],
            instructed: None,
            query: around("query "),
            between: Vec::new(),
            document: around("text "),
            after: vec!["z".to_owned()],
            cut: None,
        };
        let letters = std::fs::read(common::small_model().path().join("tokenizer.json")).unwrap();
        let tokenizer = Arc::new(Tokenizer::parse(&letters).unwrap().with_prompt(prompt).unwrap());
        let mut setup = setup(Scripted::default(), None);
        setup.models[0].tokenizer = tokenizer.clone();
        let engine = up(setup).await;
        let expected = |query: &str, document: &str| {
            let whole = tokenizer.encode(&format!("q q query {query} text {document} z")).unwrap();
            Scripted::logit(&whole)
        };
        for (query, documents) in [("ab", ["ab", "c"]), ("c", ["ab", "c"]), ("ab", ["c", "ab"])] {
            let outcome = rank(&engine.handle(), Request::new(query, documents)).await.unwrap();
            let expected = documents.map(|document| expected(query, document));
            assert_eq!(outcome.scores, expected, "{query} {documents:?}");
        }
    });
}

fn around(before: &str) -> Around {
    Around { before: before.to_owned(), ..Around::default() }
}

/// A tokenizer whose prompt has a place for an instruction.
fn instructed() -> Arc<Tokenizer> {
    let texts = |text: &str| vec![text.to_owned()];
    let place =
        Instructed { before: texts("q"), instruction: around("i "), after: Vec::new(), empty: texts("e") };
    let prompt = Prompt {
        before: texts("q q"),
        instructed: Some(place),
        query: Around::default(),
        between: texts("x"),
        document: Around::default(),
        after: texts("z"),
        cut: None,
    };
    let letters = std::fs::read(common::small_model().path().join("tokenizer.json")).unwrap();
    Arc::new(Tokenizer::parse(&letters).unwrap().with_prompt(prompt).unwrap())
}

#[test]
fn an_instruction_is_read_in_its_place_and_known_texts_stay_right() {
    block_on(async {
        let tokenizer = instructed();
        let mut setup = setup(Scripted::default(), None);
        setup.models[0].tokenizer = tokenizer.clone();
        let engine = up(setup).await;
        let expected = |instruction: Option<&str>, query: &str, document: &str| {
            let before = match instruction {
                None => "q q".to_owned(),
                Some("") => "e".to_owned(),
                Some(text) => format!("q i {text}"),
            };
            let whole = tokenizer.encode(&format!("{before} {query} x {document} z")).unwrap();
            Scripted::logit(&whole)
        };
        // The same text as an instruction, a query and a document, in turns, so that each could be known as another.
        for (instruction, query, documents) in [
            (Some("ab"), "c", ["ab", "c"]),
            (None, "ab", ["ab", "c"]),
            (Some("c"), "ab", ["ab", "c"]),
            (Some(""), "ab", ["c", "ab"]),
            (None, "c", ["c", "ab"]),
            (Some("ab"), "ab", ["ab", "ab"]),
        ] {
            let instructed = instruction.map(str::to_owned);
            let request = Request { instruction: instructed, ..Request::new(query, documents) };
            let outcome = rank(&engine.handle(), request).await.unwrap();
            let expected = documents.map(|document| expected(instruction, query, document));
            assert_eq!(outcome.scores, expected, "{instruction:?} {query} {documents:?}");
        }
    });
}

#[test]
fn an_instruction_that_is_too_long_is_refused_with_the_most_that_it_may_have() {
    block_on(async {
        let mut setup = setup(Scripted::default(), None);
        setup.models[0].tokenizer = instructed();
        let engine = up(setup).await;
        let with = |tokens: u32| Request { instruction: Some(words(0..tokens)), ..plain() };
        // The model reads 128 tokens: 3 of the prompt and 2 of texts leave 123, one of which stands before the text.
        let message = "instruction: the instruction takes 124 tokens, and may take at most 123 to leave room for a query \
                       and a document";
        let refusal = rank(&engine.handle(), with(123)).await.unwrap_err();
        assert!(matches!(refusal, Refusal::TooLong { .. }));
        assert_eq!(refusal.to_string(), message);
        assert!(rank(&engine.handle(), with(122)).await.is_ok());
        // It counts toward the tokens of a pair.
        let tokens = async |request| rank(&engine.handle(), request).await.unwrap().tokens.0;
        assert_eq!(tokens(with(10)).await, tokens(plain()).await + 3 * (1 + 10 - 1));
    });
}

#[test]
fn a_model_without_a_place_for_an_instruction_is_named() {
    block_on(async {
        let mut setup = setup(Scripted::default(), Some(Scripted::default()));
        setup.models[0].tokenizer = instructed();
        let engine = up(setup).await;
        for (policy, names) in
            [(Policy::Full, &[][..]), (Policy::TopK, &["small"]), (Policy::Fallback, &["small"])]
        {
            let options = Options { policy: Some(policy), ..Options::default() };
            let outcome = rank(&engine.handle(), Request { options, ..plain() }).await.unwrap();
            let found: Vec<&str> = outcome.without_instruction.iter().map(|name| &**name).collect();
            assert_eq!(found, names, "{policy:?}");
        }
        // It answers as it does without one, however long the instruction is.
        let options = Options { policy: Some(Policy::Fallback), ..Options::default() };
        let request = Request { instruction: Some(words(0..500)), options, ..plain() };
        assert_eq!(rank(&engine.handle(), request).await.unwrap().scores, expected());
    });
}
