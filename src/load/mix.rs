//! Kinds of requests with their weights: budgets, policies, priorities and tenants.

use crate::base::Ns;
use crate::rerank::{Options, Policy, Priority};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

const BUDGET_MS: HeaderName = HeaderName::from_static("x-podium-latency-budget-ms");
const PRIORITY: HeaderName = HeaderName::from_static("x-podium-priority");
const POLICY: HeaderName = HeaderName::from_static("x-podium-policy");
const TOP_K: HeaderName = HeaderName::from_static("x-podium-top-k");

/// The largest latency budget: an hour, as on the server.
const BUDGET_MS_MAX: f64 = 3_600_000.0;

/// One kind of request.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// Its weight relative to the other kinds.
    pub weight: f64,
    /// Its options, sent as headers, which every dialect accepts.
    pub options: Options,
    /// The tenant's API key.
    pub key: Option<Key>,
}

/// An API key. Reports show the name of its environment variable, never the key.
#[derive(Clone, PartialEq)]
pub struct Key {
    variable: String,
    bearer: HeaderValue,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "key of {}", self.variable)
    }
}

impl Default for Kind {
    fn default() -> Self {
        Self { weight: 1.0, options: Options::default(), key: None }
    }
}

impl Kind {
    /// Changes a kind by `budget=50,policy=auto,weight=3`, fields with values. `budget` is in milliseconds; `key-env`
    /// names the environment variable with an API key.
    ///
    /// # Errors
    /// The message names the field and its allowed values.
    /// Names the field and what it may be.
    pub fn with(mut self, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        for field in text.split(',') {
            let (name, value) =
                field.split_once('=').ok_or_else(|| format!("`{field}` is not a name, `=` and a value"))?;
            self.set(name.trim(), value.trim(), env)?;
        }
        Ok(self)
    }

    fn set(&mut self, name: &str, value: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
        let number = |low: f64, high: f64| {
            let found = value.parse().ok().filter(|number| (low..=high).contains(number));
            found.ok_or_else(|| format!("{name}: `{value}` is not a number from {low} to {high}"))
        };
        match name {
            "weight" => self.weight = number(1e-6, 1e6)?,
            "budget" => {
                let millis = number(1e-3, BUDGET_MS_MAX)?;
                self.options.latency_budget = Some(Ns((millis * 1e6) as u64));
            }
            "policy" => {
                let all = [Policy::Auto, Policy::Full, Policy::TopK, Policy::Fallback];
                self.options.policy = Some(one_of(name, value, Policy::name, &all)?);
            }
            "priority" => {
                self.options.priority =
                    one_of(name, value, priority, &[Priority::Low, Priority::Normal, Priority::High])?;
            }
            "top-k" => {
                let k = value.parse().ok().filter(|&k: &u32| k > 0);
                let wrong = || format!("top-k: `{value}` is not a whole number of at least 1");
                self.options.top_k = Some(k.ok_or_else(wrong)?);
            }
            "key-env" => {
                let key = env(value)
                    .filter(|key| !key.is_empty())
                    .ok_or_else(|| format!("key-env: there is no variable `{value}`"))?;
                let mut bearer = HeaderValue::try_from(format!("Bearer {key}"))
                    .map_err(|_| format!("key-env: `{value}` holds what no header can"))?;
                bearer.set_sensitive(true);
                self.key = Some(Key { variable: value.to_owned(), bearer });
            }
            _ => {
                return Err(format!(
                    "`{name}` is not one of budget, policy, priority, top-k, key-env, weight"
                ));
            }
        }
        Ok(())
    }

    /// Its name in reports.
    pub fn name(&self) -> String {
        let Options { latency_budget, priority: rank, policy, top_k } = self.options;
        let mut parts: Vec<String> = Vec::new();
        parts.extend(latency_budget.map(|budget| format!("budget={}", budget.as_millis_f64())));
        parts.extend(policy.map(|policy| format!("policy={}", policy.name())));
        parts.extend((rank != Priority::Normal).then(|| format!("priority={}", priority(rank))));
        parts.extend(top_k.map(|k| format!("top-k={k}")));
        parts.extend(self.key.as_ref().map(|key| format!("key-env={}", key.variable)));
        if parts.is_empty() { "plain".to_owned() } else { parts.join(",") }
    }

    /// Its headers.
    pub fn headers(&self) -> HeaderMap {
        let Options { latency_budget, priority: rank, policy, top_k } = self.options;
        let mut headers = HeaderMap::new();
        let budget =
            latency_budget.and_then(|budget| HeaderValue::try_from(budget.as_millis_f64().to_string()).ok());
        headers.extend(budget.map(|value| (BUDGET_MS, value)));
        headers.extend(policy.map(|policy| (POLICY, HeaderValue::from_static(policy.name()))));
        headers
            .extend((rank != Priority::Normal).then(|| (PRIORITY, HeaderValue::from_static(priority(rank)))));
        headers.extend(top_k.map(|k| (TOP_K, k.into())));
        headers.extend(self.key.as_ref().map(|key| (AUTHORIZATION, key.bearer.clone())));
        headers
    }
}

const fn priority(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "high",
        Priority::Normal => "normal",
        Priority::Low => "low",
    }
}

fn one_of<T: Copy>(
    field: &str,
    value: &str,
    name: impl Fn(T) -> &'static str,
    all: &[T],
) -> Result<T, String> {
    let found = all.iter().copied().find(|&one| name(one) == value);
    let names = || all.iter().map(|&one| name(one)).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| format!("{field}: `{value}` is not one of {}", names()))
}

/// Draws the kind of a request by the weights; deterministic in seed and position.
pub(super) fn pick(kinds: &[Kind], seed: u64, place: u64) -> usize {
    let all: f64 = kinds.iter().map(|kind| kind.weight).sum();
    // A Weyl sequence spreads the seeds of neighbouring positions.
    let seed = seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut left = Pcg64::seed_from_u64(seed).random::<f64>() * all;
    let found = kinds.iter().position(|kind| {
        left -= kind.weight;
        left < 0.0
    });
    found.unwrap_or(kinds.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Kind, String> {
        Kind::default().with(text, &|name| (name == "ACME").then(|| "secret".to_owned()))
    }

    #[test]
    fn a_kind_is_read_named_and_sent_as_headers() {
        let kind = read("budget=50,policy=full,priority=low,top-k=5,key-env=ACME,weight=3").unwrap();
        assert_eq!((kind.weight, kind.options.latency_budget), (3.0, Some(Ns::from_millis(50))));
        assert_eq!(kind.name(), "budget=50,policy=full,priority=low,top-k=5,key-env=ACME");
        let headers = kind.headers();
        for (name, value) in [
            ("x-podium-latency-budget-ms", "50"),
            ("x-podium-policy", "full"),
            ("x-podium-priority", "low"),
            ("x-podium-top-k", "5"),
            ("authorization", "Bearer secret"),
        ] {
            assert_eq!(headers[name], value);
        }
        assert!(!format!("{kind:?}").contains("secret"));
        assert_eq!((Kind::default().name(), Kind::default().headers().len()), ("plain".to_owned(), 0));
    }

    #[test]
    fn what_is_wrong_with_a_kind_is_named() {
        for (text, expected) in [
            ("budget", "`budget` is not a name"),
            ("", "`` is not a name"),
            ("budget=0", "budget: `0` is not a number from 0.001"),
            ("budget=x", "budget: `x`"),
            ("weight=0", "weight: `0`"),
            ("weight=NaN", "weight: `NaN`"),
            ("policy=best", "policy: `best` is not one of auto, full, topk, fallback"),
            ("priority=1", "priority: `1` is not one of low, normal, high"),
            ("top-k=0", "top-k: `0`"),
            ("key-env=NOBODY", "key-env: there is no variable `NOBODY`"),
            ("tier=full", "`tier` is not one of budget"),
        ] {
            assert!(read(text).unwrap_err().starts_with(expected), "{text}");
        }
    }

    #[test]
    fn kinds_come_as_often_as_they_weigh() {
        let kinds = [read("weight=3").unwrap(), read("budget=20").unwrap()];
        let second = (0..10_000).filter(|&place| pick(&kinds, 7, place) == 1).count();
        // A quarter, with a standard deviation of 43.
        assert!((2_350..2_650).contains(&second), "{second}");
    }
}
