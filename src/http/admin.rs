//! The admin's endpoints: costs and drain.

use super::auth::Admin;
use super::handler::App;
use super::pages;
use crate::base::{Hour, Ns};
use crate::ledger::report::{GroupBy, Query};
use crate::ledger::store::Store;
use crate::wire::{Code, Dialect};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;

impl App {
    /// The rows of the ledger up to now.
    pub(super) async fn costs(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if let Some(closed) = self.closed(Dialect::Podium, request.headers()) {
            return closed;
        }
        let Some(store) = self.store.clone() else {
            return self.fail(Dialect::Podium, Code::NotFound, "no ledger is configured");
        };
        let query = match costs_query(request.uri().query().unwrap_or_default()) {
            Ok(query) => query,
            Err(message) => return self.fail(Dialect::Podium, Code::InvalidRequest, message),
        };
        self.handle.hand_over(Ns::ZERO).await;
        let read = move || {
            // Entries that cannot be written now are missing, and counted by a metric.
            store.flush();
            Store::query(store.path(), &query)
        };
        match tokio::task::spawn_blocking(read).await.expect("reading the ledger does not panic") {
            Ok(rows) => pages::json(&json!({"object": "list", "data": rows})),
            Err(error) => self.fail(Dialect::Podium, Code::Unavailable, error.to_string()),
        }
    }

    /// Begins to drain.
    pub(super) fn begin_drain(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        self.closed(Dialect::Podium, headers).unwrap_or_else(|| {
            self.drain.send_replace(true);
            pages::text(StatusCode::OK, "draining")
        })
    }

    /// The answer to a request without the admin key, in a dialect's shape.
    pub(super) fn closed(&self, dialect: Dialect, headers: &HeaderMap) -> Option<Response<Full<Bytes>>> {
        match self.auth.admin(headers) {
            Admin::Allowed => None,
            Admin::Unknown => Some(self.fail(dialect, Code::Unauthorized, "the admin key is needed")),
            Admin::Closed => {
                let message = "closed: no admin_key is configured";
                Some(self.fail(dialect, Code::Forbidden, message))
            }
        }
    }
}

/// The parameters of `/v1/costs`: `from`, `to` (hours), `tenant`, `group_by` (columns with commas).
fn costs_query(query: &str) -> Result<Query, String> {
    let mut parsed = Query { group_by: vec![GroupBy::Tenant, GroupBy::Model], ..Query::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
        let hour = |text: &str| text.parse::<Hour>().map_err(|message| format!("{name}: {message}"));
        match name {
            "from" => parsed.from = hour(&value)?,
            "to" => parsed.to = Some(hour(&value)?),
            "tenant" => parsed.tenant = Some(value.into_owned()),
            "group_by" => {
                let columns = value.split(',').filter(|column| !column.is_empty());
                parsed.group_by = columns.map(str::parse).collect::<Result<_, _>>()?;
            }
            _ => {
                return Err(format!(
                    "{name}: unknown parameter; the parameters are from, to, tenant and group_by"
                ));
            }
        }
    }
    parsed.check()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_for_costs_is_read_or_complained_about() {
        let query = costs_query("from=2026-11-24T05&to=2026-11-25&tenant=a%20b&group_by=hour,tier").unwrap();
        assert_eq!((query.from, query.to), (Hour(498_749), Some(Hour(498_768))));
        assert_eq!(query.tenant.as_deref(), Some("a b"));
        assert_eq!(query.group_by, [GroupBy::Hour, GroupBy::Tier]);
        assert_eq!(costs_query("").unwrap().group_by, [GroupBy::Tenant, GroupBy::Model]);
        for (query, expected) in [
            ("from=now", "from: `now` is not"),
            ("group_by=week", "group_by: `week` is not"),
            ("x=1", "x: "),
            ("from=2026-11-25&to=2026-11-24", "to: 2026-11-24"),
        ] {
            let message = costs_query(query).unwrap_err();
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
