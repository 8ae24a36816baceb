//! Asks servers over HTTP, ours or a peer's, and records their answers to the judged queries, latency and price.

use super::run::Progress;
use super::serve::{Served, ServedCost};
use super::way::Way;
use crate::base::Ns;
use crate::load::{Arrivals, Case, Client, Fault, Kind, Sent};
use crate::sim::quantile;
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;
use tokio::task::{JoinError, JoinSet};

/// A server to ask.
pub struct Server {
    /// Its name in reports.
    pub name: String,
    /// Its client.
    pub client: Client,
    /// The options of each request.
    pub kind: Kind,
}

/// Why a server is left out of a comparison.
#[derive(Debug, Error)]
#[error("{url}: {reason}")]
pub struct ServerError {
    /// Its address.
    pub url: String,
    /// The failure of the requests.
    pub reason: String,
}

/// A server's answers to all queries.
pub(super) struct Asked {
    /// Its scores by query; none without an answer.
    pub scores: Vec<Option<Vec<f32>>>,
    pub served: Served,
    /// Queries without an answer, by kind of failure.
    pub faults: BTreeMap<String, usize>,
}

/// After this many consecutive failures the remaining queries are not asked.
const LOST_MAX: usize = 3;

/// Asks a server each query once: at a rate per second, or without a rate one after the other.
///
/// # Errors
/// [`ServerError`] if a first request shows that the server cannot be used, or if no query is answered.
pub(super) fn ask(
    place: usize,
    server: &Arc<Server>,
    cases: &[Case],
    rate: Option<f64>,
    (seed, dollars_per_hour): (u64, f64),
    tell: &mut dyn FnMut(Progress),
) -> Result<Asked, ServerError> {
    let wrong = |reason: String| ServerError { url: server.client.target().url.clone(), reason };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| wrong(error.to_string()))?;
    let told = |done| Progress { stage: server.name.clone(), done, of: cases.len() };
    let sent = runtime.block_on(async {
        server.client.probe(&cases[0], &server.kind).await?;
        match rate {
            None => one_by_one(server, cases, &mut |done| tell(told(done))).await,
            Some(rate) => Ok(on_time(server, cases, rate, seed, &mut |done| tell(told(done))).await),
        }
    });
    let sent: Vec<(Ns, Sent)> = sent.map_err(|fault: Fault| wrong(fault.to_string()))?;
    match sent.iter().map(|(_, sent)| &sent.result).find_map(|result| result.as_ref().err()) {
        Some(fault) if sent.iter().all(|(_, sent)| sent.result.is_err()) => Err(wrong(fault.to_string())),
        _ => Ok(asked(place, sent, dollars_per_hour)),
    }
}

/// Each result with the time at which the request was due.
async fn one_by_one(
    server: &Arc<Server>,
    cases: &[Case],
    done: &mut dyn FnMut(usize),
) -> Result<Vec<(Ns, Sent)>, Fault> {
    let headers = server.kind.headers();
    let (mut sent, mut lost) = (Vec::new(), 0);
    for case in cases {
        let due = server.client.clock().now();
        let one = server.client.send(&server.client.prepare(case), &headers).await;
        match &one.result {
            Ok(_) | Err(Fault::Status { .. }) => lost = 0,
            Err(fault) => {
                lost += 1;
                if lost == LOST_MAX {
                    return Err(fault.clone());
                }
            }
        }
        sent.push((due, one));
        done(sent.len());
    }
    Ok(sent)
}

/// An open loop: requests are sent at their times, independent of earlier ones.
async fn on_time(
    server: &Arc<Server>,
    cases: &[Case],
    rate: f64,
    seed: u64,
    done: &mut dyn FnMut(usize),
) -> Vec<(Ns, Sent)> {
    let clock = server.client.clock();
    let (start, mut under_way) = (clock.now(), JoinSet::new());
    let mut sent: Vec<Option<(Ns, Sent)>> = cases.iter().map(|_| None).collect();
    let mut keep = |found: Result<(usize, Ns, Sent), JoinError>| {
        let (place, due, one) = found.expect("sending has no reason to panic");
        sent[place] = Some((due, one));
    };
    for (place, (case, at)) in cases.iter().zip(Arrivals::Poisson.times(rate, seed)).enumerate() {
        let due = start + at;
        let (server, request) = (server.clone(), server.client.prepare(case));
        tokio::time::sleep(due.saturating_sub(clock.now()).into()).await;
        under_way
            .spawn(async move { (place, due, server.client.send(&request, &server.kind.headers()).await) });
        while let Some(found) = under_way.try_join_next() {
            keep(found);
        }
        done(place + 1 - under_way.len());
    }
    while let Some(found) = under_way.join_next().await {
        keep(found);
        done(cases.len() - under_way.len());
    }
    sent.into_iter().flatten().collect()
}

/// Latencies include queries without an answer, with their wait. Receipts without prices are priced at
/// `dollars_per_hour`.
fn asked(place: usize, sent: Vec<(Ns, Sent)>, dollars_per_hour: f64) -> Asked {
    let all = sent.len() as f64;
    let (mut latencies, mut answered, mut in_full) = (Vec::new(), 0.0, Some(0.0));
    let (mut device, mut nanodollars) = (Some(0.0), Some(0.0));
    let mut faults = BTreeMap::new();
    let mut scores = |(due, Sent { ended, result, .. }): (Ns, Sent)| {
        latencies.push(ended.saturating_sub(due));
        let answer = match result {
            Ok(answer) => answer,
            Err(fault) => {
                *faults.entry(fault.kind()).or_default() += 1;
                return None;
            }
        };
        answered += 1.0;
        in_full = in_full.zip(answer.tier).map(|(sum, tier)| sum + f64::from(u8::from(tier == "full")));
        device = device.zip(answer.device_ns).map(|(sum, one)| sum + one as f64);
        nanodollars = nanodollars.zip(answer.nanodollars).map(|(sum, one)| sum + one as f64);
        Some(answer.scores.into_iter().map(|score| score as f32).collect())
    };
    let scores = sent.into_iter().map(&mut scores).collect();
    latencies.sort_unstable();
    let cost = device.map(|device| {
        let at_our_price = device / 3.6e12 * dollars_per_hour;
        let dollars = nanodollars.filter(|&sum| sum > 0.0).map_or(at_our_price, |sum| sum / 1e9);
        ServedCost { device_ns: device / answered, dollars: dollars / answered }
    });
    let served = Served {
        cost,
        p50_ms: quantile(&latencies, 0.5).as_millis_f64(),
        p99_ms: quantile(&latencies, 0.99).as_millis_f64(),
        shares: vec![(Way::Server(place), answered / all)],
        in_full: in_full.map(|sum| sum / all),
    };
    Asked { scores, served, faults }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Answer;

    fn sent(millis: u64, tier: Option<&str>, nanodollars: Option<u64>) -> (Ns, Sent) {
        let answer = Answer {
            scores: vec![0.5, 0.25],
            tier: tier.map(str::to_owned),
            device_ns: nanodollars.map(|n| 10 * n),
            nanodollars,
            degraded: None,
        };
        let due = Ns::from_millis(7);
        (due, Sent { began: due, ended: due + Ns::from_millis(millis), result: Ok(answer) })
    }

    #[test]
    fn receipts_make_the_cost_and_who_gives_none_has_none() {
        let lost = (Ns(5), Sent { began: Ns(5), ended: Ns(9), result: Err(Fault::TimedOut) });
        let one = sent(10, Some("full"), Some(40));
        let sent_all = vec![one, lost, sent(30, Some("fallback"), Some(20))];
        let Asked { scores, served, faults } = asked(3, sent_all, 1.0);
        assert_eq!(faults, [("timed out".to_owned(), 1)].into());
        assert_eq!(scores, [Some(vec![0.5, 0.25]), None, Some(vec![0.5, 0.25])]);
        assert_eq!(served.shares, [(Way::Server(3), 2.0 / 3.0)]);
        assert_eq!((served.p50_ms, served.p99_ms, served.in_full), (10.0, 30.0, Some(1.0 / 3.0)));
        assert_eq!(served.cost, Some(ServedCost { device_ns: 300.0, dollars: 30e-9 }));
        let peer = asked(0, vec![sent(10, None, None), sent(20, Some("full"), Some(1))], 1.0).served;
        assert_eq!((peer.cost, peer.in_full), (None, None));
        // Receipts without prices get ours, and the sum of large receipts does not overflow.
        let mut free = vec![sent(10, None, Some(0)), sent(10, None, Some(0))];
        free[0].1.result.as_mut().unwrap().device_ns = Some(u64::MAX);
        let cost = asked(0, free, 3.6).served.cost.unwrap();
        assert!((cost.dollars / (cost.device_ns * 1e-12) - 1.0).abs() < 1e-9);
    }
}
