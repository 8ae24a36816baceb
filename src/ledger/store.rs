//! The ledger on disk: a SQLite file, written by a background thread.
//!
//! Each flush is one transaction that also raises the writer's sequence number. So a flush that was committed although
//! an error was reported is not counted twice. While the file cannot be written, increments stay in memory, merged by
//! key, and serving continues. A killed process loses at most [`FLUSH`] of time, besides what it had not handed over.

use super::report::{CostRow, Query, report};
use super::rows::{DeviceKey, DeviceSums, Increments, RowKey, Sums};
use super::schema::{APPLICATION, DEVICES_1, USAGE_1, VERSION, create, is_new, migrate};
use crate::base::{DeviceNs, Hour, Nanodollars, Tier};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Transaction, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;

/// How often increments are written.
pub const FLUSH: Duration = Duration::from_millis(500);

/// How long a flush waits for another process that writes.
const LOCKED: Duration = Duration::from_millis(250);

/// Why a ledger file cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// It is damaged or not a SQLite file.
    #[error("ledger {}: not a database, or damaged", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
    /// It belongs to another program.
    #[error("ledger {}: a database of another program", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a later release.
    #[error("ledger {}: has version {found}, this release knows up to {VERSION}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// It cannot be opened, read or written now.
    #[error("ledger {}: {what}", .path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// SQLite's message.
        what: String,
    },
}

/// A ledger file, open for writing.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    pending: Arc<Mutex<Increments>>,
    failures: Arc<AtomicU64>,
    /// Requests a flush now and receives its result; dropped to end the thread.
    flushes: Option<Sender<Sender<bool>>>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens a ledger file, makes it where there is none, brings one of an earlier release to this one's schema, and
    /// starts the thread that writes it.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is written to a file that is not ours.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Writer::open(path).map(Self::start)
    }

    /// Whether [`Store::open`] would accept an existing file; writes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn check(path: &Path) -> Result<(), StoreError> {
        if !path.exists() {
            return Ok(());
        }
        let failed = |error| name(path, &error);
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        connection.busy_timeout(LOCKED).map_err(failed)?;
        if is_new(&connection).map_err(failed)? { Ok(()) } else { check(&connection, path).map(|_| ()) }
    }

    fn start(writer: Writer) -> Self {
        let pending = Arc::new(Mutex::new(Increments::default()));
        let failures = Arc::new(AtomicU64::new(0));
        // Only one flush is requested at a time.
        let (flushes, asked) = bounded(1);
        let path = writer.path.clone();
        let keeper = Keeper { writer, pending: pending.clone(), failures: failures.clone(), batch: None };
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || keeper.run(&asked))
            .expect("a server that starts can have one more thread");
        Self { path, pending, failures, flushes: Some(flushes), thread: Some(thread) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands over increments. They are on disk within [`FLUSH`], unless the disk fails.
    pub fn add(&self, increments: Increments) {
        lock(&self.pending).merge(increments);
    }

    /// Flushes now. Returns false if the flush failed and will be tried again.
    pub fn flush(&self) -> bool {
        let (reply, answer) = bounded(1);
        self.flushes.as_ref().is_some_and(|flushes| flushes.send(reply).is_ok())
            && answer.recv().unwrap_or(false)
    }

    /// Failed flushes since the start; each is tried again.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Reads a report from a ledger file, which a server may be writing.
    ///
    /// # Errors
    /// [`StoreError`], also if the file does not exist.
    pub fn query(path: &Path, query: &Query) -> Result<Vec<CostRow>, StoreError> {
        let failed = |error| name(path, &error);
        let mut connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        connection.busy_timeout(LOCKED).map_err(failed)?;
        // The version and both tables are read as of one moment.
        let snapshot = connection.transaction().map_err(failed)?;
        let version = check(&snapshot, path)?;
        let books = read(&snapshot, version, query).map_err(failed)?;
        Ok(report(&books, query))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.flushes = None;
        if let Some(thread) = self.thread.take() {
            // The thread logs its own failures, and a panic in it has been reported.
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Keeper {
    writer: Writer,
    pending: Arc<Mutex<Increments>>,
    failures: Arc<AtomicU64>,
    /// The batch of the last failed flush. It is repeated unchanged, with the same sequence number.
    batch: Option<Increments>,
}

impl Keeper {
    fn run(mut self, asked: &Receiver<Sender<bool>>) {
        loop {
            match asked.recv_timeout(FLUSH) {
                Ok(reply) => {
                    // The receiver may have been dropped.
                    let _ = reply.send(self.flush_all());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.flush_all();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    if !self.flush_all() {
                        tracing::error!(path = %self.writer.path.display(), "the ledger's last entries are lost");
                    }
                    return;
                }
            }
        }
    }

    /// Writes the batch that failed before, then the increments since.
    fn flush_all(&mut self) -> bool {
        loop {
            let failed_before = self.batch.take();
            let was_failing = failed_before.is_some();
            let batch = failed_before.unwrap_or_else(|| std::mem::take(&mut *lock(&self.pending)));
            if batch.is_empty() {
                return true;
            }
            if let Err(error) = self.writer.flush(&batch) {
                // One log line per streak of failures; the counter has them all.
                if !was_failing {
                    tracing::error!(%error, "the ledger cannot be written; its entries wait in memory");
                }
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.batch = Some(batch);
                return false;
            }
            if was_failing {
                tracing::info!("the ledger is written again");
            }
        }
    }
}

struct Writer {
    connection: Connection,
    path: PathBuf,
    /// Our row of `writers`.
    id: i64,
    /// The last flush known to be committed.
    sequence: i64,
}

impl Writer {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |error| name(path, &error);
        let mut connection = Connection::open(path).map_err(failed)?;
        connection.busy_timeout(LOCKED).map_err(failed)?;
        if is_new(&connection).map_err(failed)? {
            create(&mut connection).map_err(failed)?;
        }
        if check(&connection, path)? < VERSION {
            migrate(&mut connection).map_err(failed)?;
            tracing::info!(path = %path.display(), "the ledger is now of version {VERSION}");
        }
        // A crash of the machine may lose the last flushes, a crash of the process does not.
        connection.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "normal").map_err(failed)?;
        connection.execute("INSERT INTO writers (sequence) VALUES (0)", []).map_err(failed)?;
        let id = connection.last_insert_rowid();
        Ok(Self { connection, path: path.to_owned(), id, sequence: 0 })
    }

    /// Adds a batch, unless the last call, which reported an error, had committed it.
    fn flush(&mut self, batch: &Increments) -> Result<(), StoreError> {
        let next = self.sequence + 1;
        let id = self.id;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let written = transaction.and_then(|transaction| {
            let raised = transaction
                .execute("UPDATE writers SET sequence = ?1 WHERE id = ?2 AND sequence < ?1", [next, id])?;
            if raised == 1 {
                write(&transaction, batch)?;
            }
            transaction.commit()
        });
        written.map_err(|error| name(&self.path, &error))?;
        self.sequence = next;
        Ok(())
    }
}

/// The version of a file that is ours.
fn check(connection: &Connection, path: &Path) -> Result<i32, StoreError> {
    let pragma = |field| connection.pragma_query_value(None, field, |row| row.get::<_, i32>(0));
    let failed = |error| name(path, &error);
    if pragma("application_id").map_err(failed)? != APPLICATION {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    match pragma("user_version").map_err(failed)? {
        found @ 1..=VERSION => Ok(found),
        found => Err(StoreError::Version { path: path.to_owned(), found }),
    }
}

fn write(transaction: &Transaction, batch: &Increments) -> rusqlite::Result<()> {
    // A sum of money is null only where all of it is.
    let money = "nanodollars = CASE WHEN excluded.nanodollars IS NULL THEN nanodollars
        ELSE coalesce(nanodollars, 0) + excluded.nanodollars END";
    let mut usage = transaction.prepare_cached(&format!(
        "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
            pairs = pairs + excluded.pairs, device_ns = device_ns + excluded.device_ns, {money},
            discarded_ns = discarded_ns + excluded.discarded_ns"
    ))?;
    for (RowKey { hour, tenant, model, version, tier, kind }, sums) in &batch.rows {
        let Sums { requests, pairs, device, cost, discarded } = *sums;
        let [hour, requests, pairs] = [hour.0, requests, pairs].map(signed);
        let ([device, discarded], cost) =
            ([device.0, discarded.0].map(signed), cost.map(|cost| signed(cost.0)));
        let tier = tier.name();
        usage.execute(params![
            hour, tenant, model, version, tier, kind, requests, pairs, device, cost, discarded
        ])?;
    }
    let mut devices = transaction.prepare_cached(&format!(
        "INSERT INTO devices VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET elapsed_ns = elapsed_ns + excluded.elapsed_ns,
            busy_ns = busy_ns + excluded.busy_ns, {money}"
    ))?;
    for (DeviceKey { hour, kind, device }, sums) in &batch.devices {
        let DeviceSums { elapsed, busy, cost } = *sums;
        let ([hour, elapsed, busy], cost) =
            ([hour.0, elapsed.0, busy.0].map(signed), cost.map(|cost| signed(cost.0)));
        devices.execute(params![hour, kind, device, elapsed, busy, cost])?;
    }
    Ok(())
}

fn read(transaction: &Transaction, version: i32, query: &Query) -> rusqlite::Result<Increments> {
    let hours = params![signed(query.from.0), query.to.map(|hour| signed(hour.0))];
    let within = "WHERE hour >= ?1 AND (?2 IS NULL OR hour < ?2)";
    let (usage, devices) =
        if version == 1 { (USAGE_1, DEVICES_1) } else { ("SELECT * FROM usage", "SELECT * FROM devices") };
    let mut usage = transaction.prepare(&format!("{usage} {within}"))?;
    let rows = usage.query_map(hours, |row| {
        let key = RowKey {
            hour: Hour(unsigned(row, 0)?),
            tenant: row.get(1)?,
            model: row.get(2)?,
            version: row.get(3)?,
            tier: tier(row, 4)?,
            kind: row.get(5)?,
        };
        let sums = Sums {
            requests: unsigned(row, 6)?,
            pairs: unsigned(row, 7)?,
            device: DeviceNs(unsigned(row, 8)?),
            cost: money(row, 9)?,
            discarded: DeviceNs(unsigned(row, 10)?),
        };
        Ok((key, sums))
    })?;
    let rows = rows.collect::<Result<_, _>>()?;
    let mut devices = transaction.prepare(&format!("{devices} {within}"))?;
    let devices = devices.query_map(hours, |row| {
        let key = DeviceKey { hour: Hour(unsigned(row, 0)?), kind: row.get(1)?, device: row.get(2)? };
        let sums = DeviceSums {
            elapsed: DeviceNs(unsigned(row, 3)?),
            busy: DeviceNs(unsigned(row, 4)?),
            cost: money(row, 5)?,
        };
        Ok((key, sums))
    })?;
    Ok(Increments { rows, devices: devices.collect::<Result<_, _>>()? })
}

/// SQLite's integers leave 63 bits: 292 years of nanoseconds, 9 billion dollars.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0) as u64)
}

fn money(row: &Row, column: usize) -> rusqlite::Result<Option<Nanodollars>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|value| Nanodollars(value.max(0) as u64)))
}

fn tier(row: &Row, column: usize) -> rusqlite::Result<Tier> {
    let name: String = row.get(column)?;
    let unknown = || rusqlite::Error::InvalidColumnType(column, name.clone(), rusqlite::types::Type::Text);
    Tier::ALL.into_iter().find(|tier| tier.name() == name).ok_or_else(unknown)
}

fn name(path: &Path, error: &rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => StoreError::Corrupt { path },
        _ => StoreError::Failed { path, what: error.to_string() },
    }
}

/// The increments are consistent after each call, so a panic elsewhere does not spoil them.
fn lock(pending: &Mutex<Increments>) -> MutexGuard<'_, Increments> {
    pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::report::GroupBy;
    use tempfile::TempDir;

    fn some(tenant: &str, device: u64) -> Increments {
        let key = RowKey {
            hour: Hour(7),
            tenant: tenant.into(),
            model: "m".into(),
            version: "v".into(),
            tier: Tier::Primary,
            kind: "cpu".into(),
        };
        let sums = Sums { requests: 1, device: DeviceNs(device), ..Sums::default() };
        let on = DeviceKey { hour: Hour(7), kind: "cpu".into(), device: "cpu".into() };
        let cost = Some(Nanodollars(5));
        let spent = DeviceSums { elapsed: DeviceNs(2 * device), busy: DeviceNs(device), cost };
        Increments { rows: [(key, sums)].into(), devices: [(on, spent)].into() }
    }

    fn place() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.sqlite");
        (folder, path)
    }

    fn total(path: &Path) -> CostRow {
        Store::query(path, &Query::default()).unwrap().pop().unwrap_or_default()
    }

    #[test]
    fn increments_add_up_on_disk() {
        let (_folder, path) = place();
        let store = Store::open(&path).unwrap();
        for _ in 0..3 {
            store.add(some("acme", 10));
            assert!(store.flush());
        }
        store.add(some("zeta", 5));
        drop(store);
        let query = Query { group_by: vec![GroupBy::Tenant], ..Query::default() };
        let rows = Store::query(&path, &query).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.group.tenant.as_deref().unwrap(), row.requests, row.device_ns.0))
            .collect();
        assert_eq!(seen, [("acme", 3, 30), ("zeta", 1, 5)]);
        assert_eq!(total(&path).loaded_nanodollars, Some(Nanodollars(20)));
    }

    #[test]
    fn money_is_null_only_where_all_of_it_is() {
        let (_folder, path) = place();
        let mut writer = Writer::open(&path).unwrap();
        let with = |cost: Option<u64>| {
            let mut all = some("acme", 10);
            let cost = cost.map(Nanodollars);
            all.rows.values_mut().for_each(|sums| sums.cost = cost);
            all.devices.values_mut().for_each(|sums| sums.cost = cost);
            all
        };
        writer.flush(&with(None)).unwrap();
        let row = total(&path);
        assert_eq!((row.nanodollars, row.loaded_nanodollars), (None, None));
        for cost in [Some(3), None, Some(0)] {
            writer.flush(&with(cost)).unwrap();
            let row = total(&path);
            assert_eq!(
                (row.nanodollars, row.loaded_nanodollars),
                (Some(Nanodollars(3)), Some(Nanodollars(3)))
            );
        }
    }

    /// A ledger as the release before wrote it: acme in two tiers with a price, and an hour without any.
    fn old_ledger(path: &Path) {
        Connection::open(path)
            .unwrap()
            .execute_batch(
                "CREATE TABLE usage (
                    hour INTEGER NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
                    tier TEXT NOT NULL, requests INTEGER NOT NULL, pairs INTEGER NOT NULL,
                    device_ns INTEGER NOT NULL, nanodollars INTEGER NOT NULL, discarded_ns INTEGER NOT NULL,
                    PRIMARY KEY (hour, tenant, model, version, tier)
                 ) STRICT, WITHOUT ROWID;
                 CREATE TABLE lanes (
                    hour INTEGER NOT NULL, tier TEXT NOT NULL, device TEXT NOT NULL,
                    elapsed_ns INTEGER NOT NULL, busy_ns INTEGER NOT NULL, nanodollars INTEGER NOT NULL,
                    PRIMARY KEY (hour, tier, device)
                 ) STRICT, WITHOUT ROWID;
                 CREATE TABLE writers (id INTEGER PRIMARY KEY, sequence INTEGER NOT NULL) STRICT;
                 INSERT INTO usage VALUES (7, 'acme', 'm', 'v', 'primary', 1, 9, 80, 40, 1);
                 INSERT INTO usage VALUES (7, 'zeta', 'm', 'v', 'fallback', 2, 9, 20, 10, 0);
                 INSERT INTO usage VALUES (8, 'acme', 'm', 'v', 'primary', 4, 9, 5, 0, 0);
                 INSERT INTO lanes VALUES (7, 'primary', 'cpu', 200, 80, 100), (7, 'fallback', 'cpu', 200, 20, 100);
                 INSERT INTO lanes VALUES (8, 'primary', 'cpu', 200, 80, 0);
                 PRAGMA application_id = 1886348393; PRAGMA user_version = 1;",
            )
            .unwrap();
    }

    #[test]
    fn a_ledger_of_the_release_before_is_read_and_brought_to_this_one() {
        let (_folder, path) = place();
        old_ledger(&path);
        let rows = || {
            Store::query(&path, &Query { group_by: vec![GroupBy::Hour, GroupBy::Tenant], ..Query::default() })
        };
        let before = rows().unwrap();
        let seen: Vec<_> = before
            .iter()
            .map(|row| (row.requests, row.nanodollars.map(|n| n.0), row.loaded_nanodollars.map(|n| n.0)))
            .collect();
        assert_eq!(seen, [(1, Some(40), Some(100)), (2, Some(10), Some(100)), (4, None, None)]);
        Store::check(&path).unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(rows().unwrap(), before);
        store.add(some("acme", 1));
        assert!(store.flush());
        drop(Store::open(&path).unwrap());
        let after = rows().unwrap();
        assert_eq!(
            (after.len(), after[0].requests, after[0].loaded_nanodollars),
            (3, 2, Some(Nanodollars(105)))
        );
    }

    #[test]
    fn what_was_flushed_outlives_an_abrupt_end() {
        let (_folder, path) = place();
        let mut writer = Writer::open(&path).unwrap();
        writer.flush(&some("acme", 10)).unwrap();
        // Neither closed nor checkpointed, as after a kill.
        std::mem::forget(writer);
        let store = Store::open(&path).unwrap();
        store.add(some("acme", 1));
        assert!(store.flush());
        assert_eq!(total(&path).device_ns, DeviceNs(11));
    }

    #[test]
    fn a_flush_that_is_repeated_counts_once() {
        let (_folder, path) = place();
        let mut writer = Writer::open(&path).unwrap();
        writer.flush(&some("acme", 10)).unwrap();
        // As if the commit had been reported as failed.
        writer.sequence -= 1;
        writer.flush(&some("acme", 10)).unwrap();
        writer.flush(&some("acme", 10)).unwrap();
        assert_eq!(total(&path).device_ns, DeviceNs(20));
    }

    #[test]
    fn two_servers_may_share_a_file() {
        let (_folder, path) = place();
        let (one, two) = (Store::open(&path).unwrap(), Store::open(&path).unwrap());
        one.add(some("acme", 1));
        two.add(some("acme", 2));
        assert!(one.flush() && two.flush());
        assert_eq!(total(&path).device_ns, DeviceNs(3));
    }

    #[test]
    fn a_full_disk_loses_nothing() {
        let (_folder, path) = place();
        let writer = Writer::open(&path).unwrap();
        let pages: i64 = writer.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        writer.connection.pragma_update(None, "max_page_count", pages).unwrap();
        let many: Increments = (0..2000).fold(Increments::default(), |mut all, tenant| {
            all.merge(some(&format!("tenant-{tenant}"), 1));
            all
        });
        let mut keeper = Keeper { writer, pending: Arc::default(), failures: Arc::default(), batch: None };
        lock(&keeper.pending).merge(many);
        assert!(!keeper.flush_all());
        assert_eq!(keeper.failures.load(Ordering::Relaxed), 1);
        // Serving continues and adds to the waiting increments.
        lock(&keeper.pending).merge(some("late", 1));
        assert!(!keeper.flush_all());
        assert_eq!(total(&path).requests, 0);
        keeper.writer.connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
        assert!(keeper.flush_all());
        assert_eq!(total(&path).requests, 2001);
    }

    #[test]
    fn a_locked_file_is_reported_and_written_later() {
        let (_folder, path) = place();
        let store = Store::open(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        store.add(some("acme", 10));
        assert!(!store.flush());
        assert!(store.failures() >= 1);
        other.execute_batch("ROLLBACK").unwrap();
        assert!(store.flush());
        assert_eq!(total(&path).device_ns, DeviceNs(10));
    }

    #[test]
    fn a_reader_sees_whole_flushes_while_a_server_writes() {
        let (_folder, path) = place();
        let store = Store::open(&path).unwrap();
        store.add(some("acme", 1));
        assert!(store.flush());
        let mut last = 0;
        for _ in 0..50 {
            store.add(some("acme", 1));
            let row = total(&path);
            assert_eq!(row.loaded_nanodollars, Some(Nanodollars(5 * row.requests)));
            assert!(row.requests >= last);
            last = row.requests;
            assert!(store.flush());
        }
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let (_folder, path) = place();
        std::fs::write(&path, b"this is no database, whatever its name says".repeat(100)).unwrap();
        let message = Store::open(&path).unwrap_err().to_string();
        assert!(message.ends_with("ledger.sqlite: not a database, or damaged"), "{message}");
        assert!(std::fs::read(&path).unwrap().starts_with(b"this is no database"));
    }

    #[test]
    fn a_file_of_somebody_else_is_left_alone() {
        let (_folder, path) = place();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Foreign { .. })));
    }

    #[test]
    fn a_file_of_a_later_release_is_left_alone() {
        let (_folder, path) = place();
        drop(Store::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", VERSION + 1).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Version { found: 3, .. })));
    }

    #[test]
    fn a_file_that_is_not_there_cannot_be_read() {
        let (_folder, path) = place();
        assert!(matches!(Store::query(&path, &Query::default()), Err(StoreError::Failed { .. })));
        assert!(!path.exists());
    }
}
