//! The table of swaps.

use rusqlite::{Connection, TransactionBehavior};

/// The application id `pods` in the file's header, which identifies our files of deployments.
pub(super) const APPLICATION: i32 = 0x706f_6473;
/// The version of the schema, in the file's header.
pub(super) const VERSION: i32 = 1;
/// A swap is one row, and what is live on a route is the newest swap with a time of switching: so no two tables can
/// disagree after a kill. `old` and `new` are models in JSON; `reason` says why a swap was abandoned, or what was particular
/// about it. At most one swap of a route is open.
const SCHEMA: &str = "
    CREATE TABLE swaps (
        id INTEGER PRIMARY KEY AUTOINCREMENT, route TEXT NOT NULL, old TEXT, new TEXT NOT NULL,
        who TEXT NOT NULL, why TEXT NOT NULL, loading_ns INTEGER NOT NULL, verifying_ns INTEGER,
        switching_ns INTEGER, draining_ns INTEGER, ended_ns INTEGER, reason TEXT
    ) STRICT;
    CREATE UNIQUE INDEX open_swaps ON swaps (route) WHERE ended_ns IS NULL;
    CREATE INDEX swaps_of_routes ON swaps (route, id);
";

/// Whether nothing has been written to a file yet.
pub(super) fn is_new(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

pub(super) fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}
