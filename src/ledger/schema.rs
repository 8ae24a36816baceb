//! The tables of the ledger on disk, and the migration from the release before.

use rusqlite::{Connection, TransactionBehavior};

/// The application id `podi` in the file's header, which identifies our files.
pub(super) const APPLICATION: i32 = 0x706f_6469;
/// The version of the schema, in the file's header.
pub(super) const VERSION: i32 = 2;
/// Without a price `nanodollars` is null.
const SCHEMA: &str = "
    CREATE TABLE usage (
        hour INTEGER NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
        tier TEXT NOT NULL, kind TEXT NOT NULL, requests INTEGER NOT NULL, pairs INTEGER NOT NULL,
        device_ns INTEGER NOT NULL, nanodollars INTEGER, discarded_ns INTEGER NOT NULL,
        PRIMARY KEY (hour, tenant, model, version, tier, kind)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE devices (
        hour INTEGER NOT NULL, kind TEXT NOT NULL, device TEXT NOT NULL,
        elapsed_ns INTEGER NOT NULL, busy_ns INTEGER NOT NULL, nanodollars INTEGER,
        PRIMARY KEY (hour, kind, device)
    ) STRICT, WITHOUT ROWID;
";
const WRITERS: &str = "CREATE TABLE writers (id INTEGER PRIMARY KEY, sequence INTEGER NOT NULL) STRICT;";

/// Version 1 kept elapsed time for each tier, and 0 nanodollars where there was no price. Its hours stay as they were
/// charged: each tier is a kind of device of its own, and an hour without any price has none.
pub(super) const USAGE_1: &str = "
    SELECT hour, tenant, model, version, tier, 'tier ' || tier AS kind, requests, pairs, device_ns,
        CASE WHEN EXISTS (
            SELECT 1 FROM lanes WHERE lanes.hour = usage.hour AND lanes.tier = usage.tier AND nanodollars > 0
        ) THEN nanodollars END AS nanodollars,
        discarded_ns FROM usage";
/// The devices of version 1.
pub(super) const DEVICES_1: &str = "
    SELECT hour, 'tier ' || tier AS kind, device, elapsed_ns, busy_ns,
        CASE WHEN nanodollars > 0 THEN nanodollars END AS nanodollars FROM lanes";

/// Whether nothing has been written to a file yet.
pub(super) fn is_new(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

pub(super) fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    // Another process may have been faster.
    if is_new(&transaction)? {
        transaction.execute_batch(SCHEMA)?;
        transaction.execute_batch(WRITERS)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

/// Brings a file of version 1 to ours. Its old tables go, so that a server of the earlier release that still runs fails
/// to write, says so, and keeps its entries in memory; nothing is counted by two schemas.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    let version: i32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    // Another process may have been faster.
    if version < VERSION {
        transaction.execute_batch(&format!(
            "CREATE TEMP TABLE usage_1 AS {USAGE_1}; CREATE TEMP TABLE devices_1 AS {DEVICES_1};
             DROP TABLE usage; DROP TABLE lanes; {SCHEMA}
             INSERT INTO usage SELECT * FROM usage_1; INSERT INTO devices SELECT * FROM devices_1;
             DROP TABLE usage_1; DROP TABLE devices_1;"
        ))?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}
