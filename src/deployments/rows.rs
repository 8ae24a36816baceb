//! Swaps as rows of the table.

use super::error::{DeploymentError, Refusal};
use super::swap::{Intent, Live, Outcome, Served, Step, Swap};
use crate::base::Ns;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

/// Most swaps of a route that are kept; older ones are deleted, but for that which made what is live.
pub(super) const KEPT_MAX: i64 = 1_000;
/// The columns of a swap.
const COLUMNS: &str =
    "id, route, old, new, who, why, loading_ns, verifying_ns, switching_ns, draining_ns, ended_ns, reason";

/// Adds a swap at its first step, and returns its number.
pub(super) fn begin(transaction: &Transaction, intent: &Intent, now: Ns) -> Result<i64, Refusal> {
    let Intent { route, from, to, who, why } = intent;
    if let Some(open) = swaps(transaction, "route = ?1 AND ended_ns IS NULL", [route])?.pop() {
        let (id, step, to) = (open.id, open.step(), open.intent.to);
        return Err(Refusal::Told(DeploymentError::InProgress {
            route: route.clone(),
            id,
            to: Box::new(to),
            step,
        }));
    }
    let live = live(transaction, route)?.map(|live| live.served);
    if live != *from {
        let from = from.clone();
        return Err(Refusal::Told(DeploymentError::Moved {
            route: route.clone(),
            live: live.map(Box::new),
            from: from.map(Box::new),
        }));
    }
    let (from, to) = (from.as_ref().map(json), json(to));
    transaction.execute(
        "INSERT INTO swaps (route, old, new, who, why, loading_ns) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![route, from, to, who, why, signed(now)],
    )?;
    Ok(transaction.last_insert_rowid())
}

/// The swap of that number, if it is open.
pub(super) fn open(transaction: &Transaction, id: i64) -> Result<Swap, Refusal> {
    let found = swap(transaction, id)?.filter(|swap| swap.outcome == Outcome::Open);
    found.ok_or(Refusal::Told(DeploymentError::NoSwap { id }))
}

/// Ends a swap, and deletes the oldest of its route beyond those that are kept.
pub(super) fn end(transaction: &Transaction, id: i64, now: Ns, reason: Option<&str>) -> Result<(), Refusal> {
    let update = "UPDATE swaps SET ended_ns = ?2, reason = ?3 WHERE id = ?1";
    transaction.execute(update, params![id, signed(now), reason])?;
    let route: String =
        transaction.query_row("SELECT route FROM swaps WHERE id = ?1", [id], |row| row.get(0))?;
    transaction.execute(
        "DELETE FROM swaps WHERE route = ?1
         AND id <= (SELECT id FROM swaps WHERE route = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)
         AND id < (SELECT coalesce(max(id), 0) FROM swaps WHERE route = ?1 AND switching_ns IS NOT NULL)",
        params![route, KEPT_MAX],
    )?;
    Ok(())
}

pub(super) fn live(connection: &Connection, route: &str) -> rusqlite::Result<Option<Live>> {
    let newest = "route = ?1 AND switching_ns IS NOT NULL ORDER BY id DESC LIMIT 1";
    Ok(swaps(connection, newest, [route])?.pop().map(as_live))
}

pub(super) fn all_live(connection: &Connection) -> rusqlite::Result<Vec<Live>> {
    let newest =
        "id IN (SELECT max(id) FROM swaps WHERE switching_ns IS NOT NULL GROUP BY route) ORDER BY route";
    Ok(swaps(connection, newest, [])?.into_iter().map(as_live).collect())
}

fn as_live(Swap { id, intent, steps, .. }: Swap) -> Live {
    let since = steps.iter().find(|(step, _)| *step == Step::Switching).expect("it has switched").1;
    Live { route: intent.route, served: intent.to, since, swap: id }
}

pub(super) fn history(connection: &Connection, route: Option<&str>) -> rusqlite::Result<Vec<Swap>> {
    swaps(connection, "?1 IS NULL OR route = ?1 ORDER BY id DESC", params![route])
}

pub(super) fn swap(connection: &Connection, id: i64) -> rusqlite::Result<Option<Swap>> {
    let select = format!("SELECT {COLUMNS} FROM swaps WHERE id = ?1");
    connection.query_row(&select, [id], read).optional()
}

pub(super) fn swaps(
    connection: &Connection,
    which: &str,
    values: impl rusqlite::Params,
) -> rusqlite::Result<Vec<Swap>> {
    let mut select = connection.prepare(&format!("SELECT {COLUMNS} FROM swaps WHERE {which}"))?;
    select.query_map(values, read)?.collect()
}

fn read(row: &Row) -> rusqlite::Result<Swap> {
    let time = |column: usize| {
        Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(|ns| Ns(ns.max(0) as u64)))
    };
    let mut steps = Vec::new();
    for (step, column) in Step::ALL.into_iter().zip(6..) {
        steps.extend(time(column)?.map(|at| (step, at)));
    }
    let served = |column: usize, text: &str| {
        let wrong = |error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error));
        serde_json::from_str::<Served>(text).map_err(wrong)
    };
    let from: Option<String> = row.get(2)?;
    let (ended, reason) = (time(10)?, row.get::<_, Option<String>>(11)?);
    let has_switched = steps.iter().any(|&(step, _)| step == Step::Switching);
    let outcome = match (ended, has_switched) {
        (None, _) => Outcome::Open,
        (Some(_), true) => Outcome::Switched { note: reason },
        (Some(_), false) => Outcome::Abandoned { reason: reason.unwrap_or_default() },
    };
    let intent = Intent {
        route: row.get(1)?,
        from: from.map(|from| served(2, &from)).transpose()?,
        to: served(3, &row.get::<_, String>(3)?)?,
        who: row.get(4)?,
        why: row.get(5)?,
    };
    Ok(Swap { id: row.get(0)?, intent, steps, ended, outcome })
}

fn json(served: &Served) -> String {
    serde_json::to_string(served).expect("names are text")
}

/// SQLite's integers leave 63 bits, which last until 2262.
pub(super) fn signed(time: Ns) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}
