//! The warm pool on scripted scorers: versions are swapped while requests come, and nothing is lost by it.

mod common;

use common::{block_on, logit, setup, up};
use podium::backend::{Play, Script, Scripted};
use podium::base::{ModelRef, Ns, TenantId, Tier};
use podium::deployments::{Deployments, Outcome as Ended};
use podium::engine::{
    Author, Caller, Change, Changed, Engine, Handle, Listed, ModelPool, ModelSetup, PoolError, RouteSetup,
    SelfCheck, Source,
};
use podium::model::Golden;
use podium::rerank::{Degradation, Options, Outcome, Policy, Refusal, Request, Served};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

async fn rank(handle: &Handle, model: Option<&str>, options: Options) -> Result<Outcome, Refusal> {
    let caller = Caller { tenant: TenantId(0), arrived: handle.now(), policy: Policy::Auto };
    let request = Request { model: model.map(str::to_owned), options, ..Request::new("ab", ["abc", "x y"]) };
    handle.rank(Arc::new(request), caller).await
}

async fn version(handle: &Handle, model: &str) -> String {
    rank(handle, Some(model), Options::default()).await.unwrap().receipt.version.to_string()
}

fn named(text: &str) -> ModelRef {
    text.parse().unwrap()
}

fn author() -> Author {
    Author { who: "ann".to_owned(), why: "a test".to_owned() }
}

/// A version of the primary of [`setup`], or of another name.
fn model(name: &str, version: &str, scorer: Scripted) -> ModelSetup {
    let mut model = setup(scorer, None).models.remove(0);
    (model.name, model.version) = (name.into(), version.into());
    model
}

/// Models that can be loaded.
struct Shelf(Vec<ModelSetup>);

impl Source for Shelf {
    fn list(&mut self) -> Result<Vec<Listed>, String> {
        let listed = |model: &ModelSetup| {
            let (name, version) = (model.name.to_string(), model.version.to_string());
            Listed { name, version, problem: None }
        };
        Ok(self.0.iter().map(listed).collect())
    }

    fn resolve(&mut self, model: &ModelRef) -> Result<ModelRef, String> {
        let of_name: Vec<_> = self.0.iter().filter(|known| *known.name == *model.name).collect();
        let found = match &model.version {
            Some(version) => of_name.iter().find(|known| *known.version == **version),
            None => of_name.last(),
        };
        let found = found.ok_or_else(|| format!("there is no model `{model}`"))?;
        Ok(ModelRef { version: Some(found.version.to_string()), ..model.clone() })
    }

    fn open(&mut self, model: &ModelRef) -> Result<ModelSetup, String> {
        let found = self.0.iter().find(|known| Some(&*known.version) == model.version.as_deref());
        let found = found.ok_or("it is gone")?.clone();
        assert!(*found.version != *"666", "a model that panics");
        if found.lanes.is_empty() { Err("its weights are cut short".to_owned()) } else { Ok(found) }
    }
}

/// An engine with version 1 of `large`, whose fallback is `small`, and a pool of versions.
async fn with_pool(versions: Vec<ModelSetup>, record: Option<&Path>) -> (Engine, ModelPool) {
    let mut setup = setup(Scripted::default(), Some(Scripted::default()));
    setup.models[0].version = "1".into();
    setup.any_model = false;
    let engine = up(setup).await;
    let deployments = record.map(|path| Deployments::open(path).unwrap());
    let pool = ModelPool::start(engine.handle(), Box::new(Shelf(versions)), deployments);
    pool.ready().await;
    (engine, pool)
}

async fn load(pool: &ModelPool, model: &str) -> Result<Changed, PoolError> {
    pool.change(Change::Load(named(model)), author()).await
}

fn lanes(handle: &Handle) -> Vec<String> {
    let text = handle.metrics().scrape(&podium::telemetry::metrics::ServerFacts {
        token_lookups: (0, 0),
        inside: 0,
        connections: 0,
        accepted: 0,
        rejected: 0,
        accept_failures: 0,
        ledger_failures: 0,
    });
    text.lines().filter(|line| line.starts_with("podium_lanes{")).map(str::to_owned).collect()
}

#[test]
fn versions_are_swapped_under_load_and_no_request_is_lost() {
    let slow = || Scripted { per_token: Duration::from_micros(50), ..Scripted::default() };
    let versions = vec![model("large", "2", slow()), model("large", "1", slow())];
    block_on(async {
        let (engine, pool) = with_pool(versions, None).await;
        let (handle, done) = (engine.handle(), Arc::new(AtomicBool::new(false)));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (handle, done) = (handle.clone(), done.clone());
                std::thread::spawn(move || {
                    block_on(async {
                        let mut seen = Vec::new();
                        while !done.load(Ordering::SeqCst) {
                            let live = |handle: &Handle| handle.models()[0].version.clone();
                            let before = live(&handle);
                            let answer = rank(&handle, Some("large"), Options::default()).await.unwrap();
                            assert_eq!(
                                (answer.receipt.served, answer.receipt.degraded),
                                (Served::Full, None)
                            );
                            assert_eq!(answer.scores, ["abc", "x y"].map(|document| logit("ab", document)));
                            let version = answer.receipt.version;
                            // Between two looks there may have been swaps to and fro.
                            assert!(["1", "2"].contains(&&*version) && ["1", "2"].contains(&&*before));
                            seen.push(version);
                        }
                        seen
                    })
                })
            })
            .collect();
        for swap in 0..10 {
            let (next, last) = if swap % 2 == 0 { ("large@2", "large@1") } else { ("large@1", "large@2") };
            let changed = load(&pool, next).await.unwrap();
            assert_eq!(changed, Changed { up: vec![named(next)], down: vec![named(last)] });
            // Retired means that no later answer is by that version.
            assert_eq!(version(&handle, "large").await, next[6..]);
        }
        done.store(true, Ordering::SeqCst);
        let seen: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        let of = |version: &str| seen.iter().filter(|seen| ***seen == *version).count();
        assert!(of("1") > 10 && of("2") > 10, "{} {}", of("1"), of("2"));
        handle.hand_over(Ns::ZERO).await;
        let found = lanes(&handle);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(|line| line.contains(r#"model="large",version="1""#)), "{found:?}");
    });
}

#[test]
fn a_version_that_is_not_fit_changes_nothing_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("deployments.db");
    let mut cut_short = model("large", "2", Scripted::default());
    cut_short.lanes.clear();
    let mut unmade = model("large", "3", Scripted::default());
    unmade.lanes[0].make = Arc::new(|| Err("no such device".to_owned()));
    let mut wrong = model("large", "4", Scripted::default());
    let golden = Golden::parse(br#"[{"query": "ab", "document": "a", "logit": 1000.0}]"#).unwrap();
    let check =
        SelfCheck::new(&golden, (Tier::Primary, "large"), wrong.tokenizer.clone(), (128, 128), "float32");
    wrong.self_check = Some(Arc::new(check.unwrap()));
    let script = Script::default();
    script.extend([Play::NonFinite]);
    let panics = model("large", "666", Scripted::default());
    let broken = model("large", "5", Scripted { script, ..Scripted::default() });
    block_on(async {
        let (engine, pool) = with_pool(vec![cut_short, unmade, wrong, broken, panics], Some(&record)).await;
        for (asked, expected) in [
            ("large@2", "its weights are cut short"),
            ("large@3", "no such device"),
            ("large@4", "the self-check of the primary large in float32 failed"),
            ("large@5", "a warm-up score is not finite"),
            ("large@666", "opening it panicked"),
            ("large@6", "there is no model `large@6`"),
            ("huge", "there is no model `huge`"),
        ] {
            let error = load(&pool, asked).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{asked}: {error}");
            assert_eq!(version(&engine.handle(), "large").await, "1", "{asked}");
        }
    });
    let (live, history) = Deployments::read(&record, None).unwrap();
    assert_eq!(live[0].served.primaries, [named("large@1")]);
    let reasons: Vec<String> = history
        .iter()
        .filter_map(|swap| match &swap.outcome {
            Ended::Abandoned { reason } => Some(format!("{} {reason}", swap.intent.to.primaries[0])),
            Ended::Open | Ended::Switched { .. } => None,
        })
        .collect();
    assert_eq!(reasons.len(), 5, "{reasons:?}");
    assert!(reasons[4].starts_with("large@2 its weights are cut short"), "{reasons:?}");
}

#[test]
fn a_route_is_rolled_back_to_what_was_live_before() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("deployments.db");
    let versions = vec![model("large", "1", Scripted::default()), model("large", "2", Scripted::default())];
    block_on(async {
        let (engine, pool) = with_pool(versions, Some(&record)).await;
        let roll_back = |route: &str| pool.change(Change::RollBack { route: route.to_owned() }, author());
        let error = roll_back("large").await.unwrap_err();
        assert!(matches!(error, PoolError::NotFound(_)), "nothing was live before: {error}");
        assert!(matches!(roll_back("other").await.unwrap_err(), PoolError::NotFound(_)));
        load(&pool, "large").await.unwrap();
        assert_eq!(version(&engine.handle(), "large").await, "2", "the newest where none is named");
        assert_eq!(load(&pool, "large@2").await.unwrap(), Changed::default(), "it serves already");
        let changed = roll_back("large").await.unwrap();
        assert_eq!(changed, Changed { up: vec![named("large@1")], down: vec![named("large@2")] });
        assert_eq!(version(&engine.handle(), "large").await, "1");
        assert_eq!(pool.list().await.unwrap().len(), 2);
    });
    let (live, history) = Deployments::read(&record, Some("large")).unwrap();
    assert_eq!(live[0].served.primaries, [named("large@1")]);
    assert_eq!((history.len(), &*history[0].intent.who), (3, "ann"));
    assert!(history.iter().all(|swap| matches!(swap.outcome, Ended::Switched { note: None })), "{history:?}");
}

#[test]
fn a_version_that_a_route_names_stays_beside_another() {
    let versions = vec![model("large", "2", Scripted::default()), model("other", "7", Scripted::default())];
    block_on(async {
        let mut setup = setup(Scripted::default(), Some(Scripted::default()));
        setup.models[0].version = "1".into();
        setup.any_model = false;
        let route = |name: &str, primary| RouteSetup {
            name: name.into(),
            primaries: vec![named(primary)],
            fallback: Some(named("small")),
            policy: Some(Policy::Full),
            ..RouteSetup::default()
        };
        setup.routes = vec![route("search", "large"), route("stable", "large@1")];
        let engine = up(setup).await;
        let handle = engine.handle();
        let pool = ModelPool::start(handle.clone(), Box::new(Shelf(versions)), None);
        let changed = load(&pool, "large@2").await.unwrap();
        assert_eq!(changed, Changed { up: vec![named("large@2")], down: Vec::new() });
        for (asked, expected) in
            [("search", "2"), ("stable", "1"), ("large", "2"), ("large@1", "1"), ("large@2", "2")]
        {
            assert_eq!(version(&handle, asked).await, expected, "{asked}");
        }
        let unknown = rank(&handle, Some("large@3"), Options::default()).await.unwrap_err();
        assert_eq!(unknown, Refusal::UnknownModel { name: "large@3".to_owned() });
        // The fallback answers where it is named.
        let answer = rank(&handle, Some("small"), Options::default()).await.unwrap();
        assert_eq!((answer.receipt.served, &*answer.receipt.model), (Served::Fallback, "small"));
        // A model of no route serves under its own name.
        load(&pool, "other").await.unwrap();
        assert_eq!(version(&handle, "other").await, "7");
        let unload = |model: &str| pool.change(Change::Unload(named(model)), author());
        let error = unload("large@1").await.unwrap_err();
        assert!(matches!(&error, PoolError::Conflict(why) if why.contains("`stable`")), "{error}");
        assert!(matches!(unload("large").await.unwrap_err(), PoolError::Conflict(_)));
        assert!(matches!(unload("huge").await.unwrap_err(), PoolError::NotFound(_)));
        assert_eq!(unload("other").await.unwrap().down, [named("other@7")]);
        let unknown = rank(&handle, Some("other"), Options::default()).await.unwrap_err();
        assert_eq!(unknown, Refusal::UnknownModel { name: "other".to_owned() });
    });
}

#[test]
fn a_route_answers_by_its_second_primary_where_the_first_is_late() {
    block_on(async {
        let mut setup = setup(Scripted { per_token: Duration::from_millis(5), ..Scripted::default() }, None);
        setup.models.push(model("middle", "1", Scripted::default()));
        setup.routes[0].primaries.push(named("middle"));
        let engine = up(setup).await;
        let within = |millis| Options {
            latency_budget: Some(Ns::from_millis(millis)),
            policy: Some(Policy::Full),
            ..Options::default()
        };
        let patient = rank(&engine.handle(), None, within(10_000)).await.unwrap().receipt;
        assert_eq!((&*patient.model, patient.degraded), ("large", None));
        let hasty = rank(&engine.handle(), None, within(40)).await.unwrap().receipt;
        assert_eq!((&*hasty.model, hasty.degraded), ("middle", Some(Degradation::PredictedLate)));
    });
}

#[test]
fn a_route_that_names_nothing_is_an_error_at_the_start() {
    let wrong = |change: fn(&mut RouteSetup)| {
        let mut setup = setup(Scripted::default(), Some(Scripted::default()));
        change(&mut setup.routes[0]);
        Engine::start(setup).err().expect("it must not start").to_string()
    };
    let nothing = wrong(|route| *route = RouteSetup { name: "empty".into(), ..RouteSetup::default() });
    assert_eq!(nothing, "route `empty`: it names no model");
    let unknown = wrong(|route| route.fallback = Some("huge".parse().unwrap()));
    assert_eq!(unknown, "route `large`: there is no model `huge`; there are large, small");
    let version = wrong(|route| route.primaries = vec!["large@9".parse().unwrap()]);
    assert!(version.contains("there is no model `large@9`"), "{version}");
    let twice = wrong(|route| route.fallback = Some("large".parse().unwrap()));
    assert_eq!(twice, "route `large`: it names the model `large` twice");
}
