//! The file of deployments. Each step of a swap is one transaction, on disk before the step is made.
//!
//! After a kill, whatever the step, [`Deployments::recover`] ends the swaps that were open: those that had not switched are
//! abandoned, those that had are complete, because what was left to drain has ended with the process.

use super::error::{DeploymentError, Refusal, name};
use super::rows::{all_live, begin, end, history, live, open, signed, swap, swaps};
use super::schema::{APPLICATION, VERSION, create, is_new};
use super::swap::{Intent, Live, Served, Step, Swap};
use crate::base::Ns;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a step waits for another process that reads or writes.
const LOCKED: Duration = Duration::from_millis(250);

/// The file of deployments of a server, which owns it.
#[derive(Debug)]
pub struct Deployments {
    connection: Connection,
    path: PathBuf,
    /// Locked while this process owns the file. A file of its own, because closing a second handle of the database itself
    /// would end SQLite's locks.
    _owner: File,
}

impl Deployments {
    /// Opens the file, and makes it where there is none.
    ///
    /// # Errors
    /// [`DeploymentError`]; nothing is written to a file that is not ours, or that another process owns.
    pub fn open(path: &Path) -> Result<Self, DeploymentError> {
        let failed = |error| name(path, &error);
        let owner = own(path)?;
        let mut connection = Connection::open(path).map_err(failed)?;
        connection.busy_timeout(LOCKED).map_err(failed)?;
        if is_new(&connection).map_err(failed)? {
            create(&mut connection).map_err(failed)?;
        }
        check(&connection, path)?;
        if connection.is_readonly("main").map_err(failed)? {
            let what = "it is read-only, and the server writes to it".to_owned();
            return Err(DeploymentError::Failed { path: path.to_owned(), what });
        }
        connection.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        // Swaps are rare: each step is on disk before it is made, also if the machine fails.
        connection.pragma_update(None, "synchronous", "full").map_err(failed)?;
        Ok(Self { connection, path: path.to_owned(), _owner: owner })
    }

    /// Whether [`Deployments::open`] would accept an existing file; writes nothing.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn check(path: &Path) -> Result<(), DeploymentError> {
        if !path.exists() {
            return Ok(());
        }
        let failed = |error| name(path, &error);
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        connection.busy_timeout(LOCKED).map_err(failed)?;
        if is_new(&connection).map_err(failed)? { Ok(()) } else { check(&connection, path) }
    }

    /// Ends the swaps that were open when the last server was killed, and returns them.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn recover(&mut self, now: Ns) -> Result<Vec<Swap>, DeploymentError> {
        self.write(|transaction| {
            let open = swaps(transaction, "ended_ns IS NULL ORDER BY id", [])?;
            for swap in &open {
                let reason = match swap.has_switched() {
                    true => format!("it had switched; the server ended while {}", swap.step().name()),
                    false => format!("the server ended while {}", swap.step().name()),
                };
                end(transaction, swap.id, now, Some(&reason))?;
            }
            let ids: Vec<i64> = open.iter().map(|swap| swap.id).collect();
            ids.into_iter().map(|id| Ok(swap(transaction, id)?.expect("it was just written"))).collect()
        })
    }

    /// Records that a swap begins, at its step [`Step::Loading`], and returns its number.
    ///
    /// # Errors
    /// [`DeploymentError::InProgress`], [`DeploymentError::Moved`], or the file cannot be written.
    pub fn begin(&mut self, intent: &Intent, now: Ns) -> Result<i64, DeploymentError> {
        self.write(|transaction| begin(transaction, intent, now))
    }

    /// Records a step before it is made. Recording the last one again does nothing, so that a step that was written
    /// although an error was reported can be repeated.
    ///
    /// # Errors
    /// [`DeploymentError::NoSwap`], [`DeploymentError::Order`], or the file cannot be written.
    pub fn step(&mut self, id: i64, step: Step, now: Ns) -> Result<(), DeploymentError> {
        self.write(|transaction| {
            let at = open(transaction, id)?.step();
            if at == step {
                return Ok(());
            }
            if step.before() != Some(at) {
                return Err(Refusal::Told(DeploymentError::Order { id, at, wanted: step.name() }));
            }
            let column = step.name();
            let update = format!("UPDATE swaps SET {column}_ns = ?2 WHERE id = ?1");
            transaction.execute(&update, params![id, signed(now)])?;
            Ok(())
        })
    }

    /// Records that a swap is complete: it has drained.
    ///
    /// # Errors
    /// As [`Deployments::step`].
    pub fn finish(&mut self, id: i64, now: Ns) -> Result<(), DeploymentError> {
        self.write(|transaction| match open(transaction, id)?.step() {
            Step::Draining => end(transaction, id, now, None),
            at => Err(Refusal::Told(DeploymentError::Order { id, at, wanted: "finished" })),
        })
    }

    /// Records that a swap is not made, so that what was live stays live. One that is [`Step::Draining`] has been made: a
    /// swap back undoes it.
    ///
    /// # Errors
    /// As [`Deployments::step`].
    pub fn abandon(&mut self, id: i64, reason: &str, now: Ns) -> Result<(), DeploymentError> {
        self.write(|transaction| match open(transaction, id)?.step() {
            at @ Step::Draining => Err(Refusal::Told(DeploymentError::Order { id, at, wanted: "abandoned" })),
            Step::Loading | Step::Verifying | Step::Switching => {
                transaction.execute("UPDATE swaps SET switching_ns = NULL WHERE id = ?1", [id])?;
                end(transaction, id, now, Some(reason))
            }
        })
    }

    /// Makes live what was live before, while no server runs: the next one loads and verifies it. Returns the swap.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn roll_back(&mut self, route: &str, who: &str, why: &str, now: Ns) -> Result<Swap, DeploymentError> {
        let (from, to) = self.rollback_target(route)?;
        let intent = Intent {
            route: route.to_owned(),
            from: Some(from),
            to,
            who: who.to_owned(),
            why: why.to_owned(),
        };
        self.write(|transaction| {
            let id = begin(transaction, &intent, now)?;
            let now_ns = signed(now);
            let all = "UPDATE swaps SET verifying_ns = ?2, switching_ns = ?2, draining_ns = ?2 WHERE id = ?1";
            transaction.execute(all, params![id, now_ns])?;
            end(transaction, id, now, Some("recorded while no server ran"))?;
            Ok(swap(transaction, id)?.expect("it was just written"))
        })
    }

    /// What is live on a route, and what was before.
    ///
    /// # Errors
    /// [`DeploymentError::NoRoute`], [`DeploymentError::NothingBefore`], or the file cannot be read.
    pub fn rollback_target(&self, route: &str) -> Result<(Served, Served), DeploymentError> {
        let failed = |error| name(&self.path, &error);
        let route = route.to_owned();
        let Some(live) = live(&self.connection, &route).map_err(failed)? else {
            let routes = self.live()?.into_iter().map(|live| live.route).collect();
            return Err(DeploymentError::NoRoute { route, routes });
        };
        let swap = swap(&self.connection, live.swap).map_err(failed)?.expect("what is live has a swap");
        // A route whose models were unloaded had none.
        match swap.intent.from.filter(|from| !from.primaries.is_empty() || from.fallback.is_some()) {
            Some(before) => Ok((live.served, before)),
            None => Err(DeploymentError::NothingBefore { route, live: Box::new(live.served) }),
        }
    }

    /// What is live on each route, by name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn live(&self) -> Result<Vec<Live>, DeploymentError> {
        all_live(&self.connection).map_err(|error| name(&self.path, &error))
    }

    /// The swaps of a route, or of all, newest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn history(&self, route: Option<&str>) -> Result<Vec<Swap>, DeploymentError> {
        history(&self.connection, route).map_err(|error| name(&self.path, &error))
    }

    /// What is live and the swaps of a route, or of all, from a file that a server may own.
    ///
    /// # Errors
    /// [`DeploymentError`], also if the file does not exist.
    pub fn read(path: &Path, route: Option<&str>) -> Result<(Vec<Live>, Vec<Swap>), DeploymentError> {
        let failed = |error| name(path, &error);
        let mut connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        connection.busy_timeout(LOCKED).map_err(failed)?;
        let snapshot = connection.transaction().map_err(failed)?;
        check(&snapshot, path)?;
        let live = all_live(&snapshot).map_err(failed)?;
        Ok((live, history(&snapshot, route).map_err(failed)?))
    }

    fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction) -> Result<T, Refusal>,
    ) -> Result<T, DeploymentError> {
        let path = &self.path;
        let failed = |error| name(path, &error);
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let result = work(&transaction).map_err(|refusal| match refusal {
            Refusal::Told(error) => error,
            Refusal::Sql(error) => failed(error),
        })?;
        transaction.commit().map_err(failed)?;
        Ok(result)
    }
}

/// Locks the file `PATH.owner`. The system unlocks it when the process ends, however it does.
fn own(path: &Path) -> Result<File, DeploymentError> {
    let mut owner = path.as_os_str().to_owned();
    owner.push(".owner");
    let failed = |error: std::io::Error| DeploymentError::Failed {
        path: path.to_owned(),
        what: format!("{}: {error}", Path::new(&owner).display()),
    };
    let file = OpenOptions::new().create(true).append(true).open(&owner).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DeploymentError::Owned { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn check(connection: &Connection, path: &Path) -> Result<(), DeploymentError> {
    let pragma = |field| connection.pragma_query_value(None, field, |row| row.get::<_, i32>(0));
    let failed = |error| name(path, &error);
    if pragma("application_id").map_err(failed)? != APPLICATION {
        return Err(DeploymentError::Foreign { path: path.to_owned() });
    }
    match pragma("user_version").map_err(failed)? {
        VERSION => Ok(()),
        found => Err(DeploymentError::Version { path: path.to_owned(), found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployments::Outcome;
    use crate::deployments::rows::KEPT_MAX;
    use std::fs;
    use tempfile::TempDir;

    fn served(primary: &str) -> Served {
        Served { primaries: vec![primary.parse().unwrap()], fallback: Some("small@1".parse().unwrap()) }
    }

    fn intent(route: &str, from: Option<&str>, to: &str) -> Intent {
        Intent {
            route: route.to_owned(),
            from: from.map(served),
            to: served(to),
            who: "ann".to_owned(),
            why: "a better model".to_owned(),
        }
    }

    fn place() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deployments.sqlite");
        (folder, path)
    }

    /// Makes a swap, all steps of it.
    fn swapped(store: &mut Deployments, intent: &Intent, now: u64) -> i64 {
        let id = store.begin(intent, Ns(now)).unwrap();
        Step::ALL.into_iter().for_each(|step| store.step(id, step, Ns(now)).unwrap());
        store.finish(id, Ns(now)).unwrap();
        id
    }

    fn live_on(store: &Deployments, route: &str) -> Option<String> {
        let found = store.live().unwrap().into_iter().find(|live| live.route == route);
        found.map(|live| live.served.primaries[0].to_string())
    }

    /// A copy of the files as they are on disk, as a kill leaves them.
    fn killed(path: &Path) -> (TempDir, PathBuf) {
        let (folder, copy) = place();
        for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        (folder, copy)
    }

    #[test]
    fn a_swap_is_recorded_with_who_when_and_why() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        assert_eq!(store.live().unwrap(), []);
        let id = store.begin(&intent("search", None, "large@1"), Ns(1)).unwrap();
        assert_eq!(live_on(&store, "search"), None);
        for (step, at) in Step::ALL.into_iter().zip(1..) {
            store.step(id, step, Ns(at)).unwrap();
        }
        store.finish(id, Ns(9)).unwrap();
        swapped(&mut store, &intent("other", None, "large@1"), 10);
        let live = Live { route: "search".to_owned(), served: served("large@1"), since: Ns(3), swap: id };
        assert_eq!(store.live().unwrap()[1], live);
        let swap = Swap {
            id,
            intent: intent("search", None, "large@1"),
            steps: Step::ALL.into_iter().zip((1..).map(Ns)).collect(),
            ended: Some(Ns(9)),
            outcome: Outcome::Switched { note: None },
        };
        assert_eq!(store.history(Some("search")).unwrap(), [swap]);
        let routes = |store: &Deployments| -> Vec<String> {
            store.history(None).unwrap().into_iter().map(|swap| swap.intent.route).collect()
        };
        assert_eq!(routes(&store), ["other", "search"]);
        drop(store);
        let store = Deployments::open(&path).unwrap();
        assert_eq!(
            (routes(&store), live_on(&store, "search")),
            (vec!["other".into(), "search".into()], Some("large@1".into()))
        );
    }

    #[test]
    fn a_kill_after_each_step_leaves_what_was_live_and_says_what_was_abandoned() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        swapped(&mut store, &intent("search", None, "large@1"), 1);
        let id = store.begin(&intent("search", Some("large@1"), "large@2"), Ns(2)).unwrap();
        for (step, live, outcome) in [
            (
                Step::Loading,
                "large@1",
                Outcome::Abandoned { reason: "the server ended while loading".to_owned() },
            ),
            (
                Step::Verifying,
                "large@1",
                Outcome::Abandoned { reason: "the server ended while verifying".to_owned() },
            ),
            (
                Step::Switching,
                "large@2",
                Outcome::Switched {
                    note: Some("it had switched; the server ended while switching".to_owned()),
                },
            ),
            (
                Step::Draining,
                "large@2",
                Outcome::Switched {
                    note: Some("it had switched; the server ended while draining".to_owned()),
                },
            ),
        ] {
            store.step(id, step, Ns(3)).unwrap();
            let (_folder, copy) = killed(&path);
            let mut restarted = Deployments::open(&copy).unwrap();
            assert_eq!(live_on(&restarted, "search").as_deref(), Some(live), "{step:?}");
            let found = restarted.recover(Ns(4)).unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].id, &found[0].outcome, found[0].ended), (id, &outcome, Some(Ns(4))));
            // It says so once, and the route can be swapped again.
            assert_eq!(restarted.recover(Ns(5)).unwrap(), []);
            assert_eq!(live_on(&restarted, "search").as_deref(), Some(live), "{step:?}");
            swapped(&mut restarted, &intent("search", Some(live), "large@3"), 6);
        }
        store.finish(id, Ns(5)).unwrap();
        let (_folder, copy) = killed(&path);
        assert_eq!(Deployments::open(&copy).unwrap().recover(Ns(6)).unwrap(), []);
    }

    #[test]
    fn a_log_that_was_cut_anywhere_is_a_swap_at_one_of_its_steps() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        swapped(&mut store, &intent("search", None, "large@1"), 1);
        let id = store.begin(&intent("search", Some("large@1"), "large@2"), Ns(2)).unwrap();
        Step::ALL.into_iter().for_each(|step| store.step(id, step, Ns(3)).unwrap());
        let log = |path: &Path| path.with_extension("sqlite-wal");
        let length = fs::metadata(log(&path)).unwrap().len();
        let mut seen = Vec::new();
        for cut in (0..=length).step_by(1031) {
            let (_folder, copy) = killed(&path);
            fs::OpenOptions::new().write(true).open(log(&copy)).unwrap().set_len(cut).unwrap();
            // What the process had shared of its log is gone with the machine.
            let _ = fs::remove_file(copy.with_extension("sqlite-shm"));
            let mut restarted = match Deployments::open(&copy) {
                Ok(restarted) => restarted,
                Err(error) => panic!("{cut} of {length} bytes: {error}"),
            };
            let swaps: Vec<Step> = restarted.history(None).unwrap().iter().map(Swap::step).collect();
            let live = live_on(&restarted, "search");
            let expected = match swaps.first() {
                Some(Step::Switching | Step::Draining) if swaps.len() == 2 => Some("large@2".to_owned()),
                Some(_) if swaps.len() == 2 => Some("large@1".to_owned()),
                Some(Step::Switching | Step::Draining) => Some("large@1".to_owned()),
                _ => None,
            };
            assert_eq!(live, expected, "{cut} of {length} bytes");
            restarted.recover(Ns(9)).unwrap();
            assert_eq!(live_on(&restarted, "search"), expected);
            if seen.last() != Some(&swaps) {
                seen.push(swaps);
            }
        }
        assert!(seen.len() >= 8, "{seen:?}");
    }

    #[test]
    fn a_swap_that_fails_before_it_switches_leaves_what_is_live() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        swapped(&mut store, &intent("search", None, "large@1"), 1);
        for steps in [1, 2, 3] {
            let id = store.begin(&intent("search", Some("large@1"), "large@2"), Ns(2)).unwrap();
            Step::ALL[..steps].iter().for_each(|&step| store.step(id, step, Ns(3)).unwrap());
            store.abandon(id, "2 of 8 golden pairs have other scores", Ns(4)).unwrap();
            assert_eq!(live_on(&store, "search").as_deref(), Some("large@1"));
            let reason = "2 of 8 golden pairs have other scores".to_owned();
            assert_eq!(store.history(None).unwrap()[0].outcome, Outcome::Abandoned { reason });
            assert!(matches!(store.step(id, Step::Verifying, Ns(5)), Err(DeploymentError::NoSwap { .. })));
        }
    }

    #[test]
    fn steps_are_made_in_order_and_may_be_repeated() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        let id = store.begin(&intent("search", None, "large@1"), Ns(1)).unwrap();
        let complaint = |result: Result<(), DeploymentError>| result.unwrap_err().to_string();
        assert_eq!(
            complaint(store.step(id, Step::Switching, Ns(2))),
            "swap 1: is loading, and cannot be switching next"
        );
        assert_eq!(complaint(store.finish(id, Ns(2))), "swap 1: is loading, and cannot be finished next");
        store.step(id, Step::Verifying, Ns(2)).unwrap();
        store.step(id, Step::Verifying, Ns(3)).unwrap();
        assert_eq!(
            complaint(store.step(id, Step::Loading, Ns(3))),
            "swap 1: is verifying, and cannot be loading next"
        );
        store.step(id, Step::Switching, Ns(4)).unwrap();
        store.step(id, Step::Draining, Ns(5)).unwrap();
        assert_eq!(
            complaint(store.abandon(id, "late", Ns(6))),
            "swap 1: is draining, and cannot be abandoned next"
        );
        store.finish(id, Ns(6)).unwrap();
        assert_eq!(complaint(store.finish(id, Ns(7))), "swap 1: there is no such swap, or it has ended");
        assert_eq!(
            complaint(store.step(7, Step::Loading, Ns(7))),
            "swap 7: there is no such swap, or it has ended"
        );
        let times: Vec<u64> = store.history(None).unwrap()[0].steps.iter().map(|(_, at)| at.0).collect();
        assert_eq!(times, [1, 2, 4, 5]);
    }

    #[test]
    fn a_route_has_one_swap_at_a_time_which_knows_what_it_replaces() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        swapped(&mut store, &intent("search", None, "large@1"), 1);
        let wrong =
            store.begin(&intent("search", Some("large@7"), "large@2"), Ns(2)).unwrap_err().to_string();
        assert_eq!(
            wrong,
            "route `search`: large@1; fallback small@1 is live, and the swap is to replace large@7; fallback small@1"
        );
        let wrong = store.begin(&intent("search", None, "large@2"), Ns(2)).unwrap_err().to_string();
        assert!(wrong.ends_with("is live, and the swap is to replace nothing"), "{wrong}");
        store.begin(&intent("search", Some("large@1"), "large@2"), Ns(2)).unwrap();
        let second =
            store.begin(&intent("search", Some("large@1"), "large@3"), Ns(3)).unwrap_err().to_string();
        assert_eq!(
            second,
            "route `search`: swap 2 to large@2; fallback small@1 is loading; a route has one swap at a time"
        );
        store.begin(&intent("other", None, "large@1"), Ns(3)).unwrap();
    }

    #[test]
    fn a_route_rolls_back_to_what_was_live_before() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        let nothing = store.roll_back("search", "ann", "worse", Ns(1)).unwrap_err().to_string();
        assert_eq!(nothing, "route `search`: nothing is live on it; routes are none");
        swapped(&mut store, &intent("search", None, "large@1"), 1);
        let nothing = store.roll_back("search", "ann", "worse", Ns(1)).unwrap_err().to_string();
        assert!(
            nothing.starts_with("route `search`: nothing was live before large@1; fallback small@1"),
            "{nothing}"
        );
        assert!(
            store
                .roll_back("serach", "ann", "worse", Ns(1))
                .unwrap_err()
                .to_string()
                .ends_with("routes are search")
        );
        swapped(&mut store, &intent("search", Some("large@1"), "large@2"), 2);
        // A swap that was not made is nothing to roll back to.
        let id = store.begin(&intent("search", Some("large@2"), "large@3"), Ns(3)).unwrap();
        let busy = store.roll_back("search", "ann", "worse", Ns(4)).unwrap_err();
        assert!(matches!(busy, DeploymentError::InProgress { .. }), "{busy}");
        store.abandon(id, "truncated", Ns(4)).unwrap();
        assert_eq!(store.rollback_target("search").unwrap(), (served("large@2"), served("large@1")));
        let swap = store.roll_back("search", "ann", "worse", Ns(5)).unwrap();
        assert_eq!((&*swap.intent.who, &*swap.intent.why), ("ann", "worse"));
        assert_eq!(swap.outcome, Outcome::Switched { note: Some("recorded while no server ran".to_owned()) });
        assert_eq!(live_on(&store, "search").as_deref(), Some("large@1"));
        // And back again.
        store.roll_back("search", "ann", "it was not", Ns(6)).unwrap();
        assert_eq!(live_on(&store, "search").as_deref(), Some("large@2"));
    }

    #[test]
    fn one_process_owns_the_file_and_others_may_read_it() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        swapped(&mut store, &intent("search", None, "large@1"), 1);
        let id = store.begin(&intent("search", Some("large@1"), "large@2"), Ns(2)).unwrap();
        let second = Deployments::open(&path).unwrap_err();
        assert!(matches!(second, DeploymentError::Owned { .. }), "{second}");
        Deployments::check(&path).unwrap();
        let (live, swaps) = Deployments::read(&path, Some("search")).unwrap();
        assert_eq!((live.len(), swaps.len(), swaps[0].step()), (1, 2, Step::Loading));
        // A reader does not hold up a step.
        store.step(id, Step::Verifying, Ns(3)).unwrap();
        drop(store);
        Deployments::open(&path).unwrap();
    }

    #[test]
    fn a_locked_file_is_told_and_the_step_can_be_repeated() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        let id = store.begin(&intent("search", None, "large@1"), Ns(1)).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let error = store.step(id, Step::Verifying, Ns(2)).unwrap_err().to_string();
        assert!(error.ends_with("deployments.sqlite: database is locked"), "{error}");
        other.execute_batch("ROLLBACK").unwrap();
        store.step(id, Step::Verifying, Ns(3)).unwrap();
    }

    #[test]
    fn on_a_full_disk_what_is_live_stays_live() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        swapped(&mut store, &intent("search", None, "large@1"), 1);
        let pages: i64 = store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        store.connection.pragma_update(None, "max_page_count", pages).unwrap();
        let long = Intent { why: "x".repeat(100_000), ..intent("search", Some("large@1"), "large@2") };
        let error = store.begin(&long, Ns(2)).unwrap_err().to_string();
        assert!(error.ends_with("deployments.sqlite: database or disk is full"), "{error}");
        assert_eq!(live_on(&store, "search").as_deref(), Some("large@1"));
        assert_eq!(store.history(None).unwrap().len(), 1);
        store.connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
        swapped(&mut store, &long, 3);
        assert_eq!(live_on(&store, "search").as_deref(), Some("large@2"));
    }

    #[test]
    fn on_a_read_only_disk_what_is_live_can_be_read() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        swapped(&mut store, &intent("search", None, "large@1"), 1);
        let id = store.begin(&intent("search", Some("large@1"), "large@2"), Ns(2)).unwrap();
        store.step(id, Step::Verifying, Ns(3)).unwrap();
        store.connection.pragma_update(None, "query_only", true).unwrap();
        let error = store.step(id, Step::Switching, Ns(4)).unwrap_err().to_string();
        assert!(error.ends_with("deployments.sqlite: attempt to write a readonly database"), "{error}");
        assert_eq!(live_on(&store, "search").as_deref(), Some("large@1"));
        drop(store);
        assert_eq!(Deployments::read(&path, None).unwrap().0[0].served, served("large@1"));
        let nowhere = Path::new("/proc/deployments.sqlite");
        let error = Deployments::open(nowhere).unwrap_err().to_string();
        assert!(
            error.starts_with("deployments /proc/deployments.sqlite: /proc/deployments.sqlite.owner: "),
            "{error}"
        );
    }

    #[test]
    fn the_oldest_swaps_are_deleted_but_not_that_which_is_live() {
        let (_folder, path) = place();
        let mut store = Deployments::open(&path).unwrap();
        store.connection.pragma_update(None, "synchronous", "off").unwrap();
        swapped(&mut store, &intent("other", None, "large@1"), 1);
        let first = swapped(&mut store, &intent("search", None, "large@1"), 1);
        let second = swapped(&mut store, &intent("search", Some("large@1"), "large@2"), 1);
        for now in 0..KEPT_MAX as u64 {
            let id = store.begin(&intent("search", Some("large@2"), "large@3"), Ns(now)).unwrap();
            store.abandon(id, "truncated", Ns(now)).unwrap();
        }
        let history = store.history(Some("search")).unwrap();
        assert_eq!(history.len(), KEPT_MAX as usize + 1);
        assert_eq!(history.last().unwrap().id, second);
        assert!(history.iter().all(|swap| swap.id != first));
        assert_eq!(live_on(&store, "search").as_deref(), Some("large@2"));
        assert_eq!(store.history(Some("other")).unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_is_not_ours_is_named_and_left_alone() {
        let (folder, path) = place();
        fs::write(&path, b"this is no database, whatever its name says".repeat(100)).unwrap();
        let message = Deployments::open(&path).unwrap_err().to_string();
        assert!(message.ends_with("deployments.sqlite: not a database, or damaged"), "{message}");
        assert!(Deployments::check(&path).is_err() && Deployments::read(&path, None).is_err());
        let other = folder.path().join("other.sqlite");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(Deployments::open(&other), Err(DeploymentError::Foreign { .. })));
        assert!(matches!(Deployments::check(&other), Err(DeploymentError::Foreign { .. })));
        let later = folder.path().join("later.sqlite");
        drop(Deployments::open(&later).unwrap());
        Connection::open(&later).unwrap().pragma_update(None, "user_version", VERSION + 1).unwrap();
        assert!(matches!(Deployments::open(&later), Err(DeploymentError::Version { found: 2, .. })));
        let missing = folder.path().join("missing.sqlite");
        assert!(matches!(Deployments::read(&missing, None), Err(DeploymentError::Failed { .. })));
        Deployments::check(&missing).unwrap();
        assert!(!missing.exists());
    }
}
