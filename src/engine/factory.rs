//! Makes the factories of the lanes' threads, with the batches that warm up and measure each lane.

use super::LaneSetup;
use super::ModelSetup;
use super::clock::Clock;
use super::driver::{LaneFactory, Message};
use super::lane::Spawn;
use super::mailbox::Post;
use crate::base::{LaneId, Ns};
use crate::token::Packed;
use std::sync::Arc;

/// Tokens of the smallest warm-up batch; the next ones double.
const BUCKET_TOKENS_MIN: u64 = 32;
/// Tokens of a warm-up pair: a common length of query and passage together.
const PAIR_TOKENS: u64 = 128;

/// A factory for each lane of a model, of which the first gets the number `first`.
pub(super) fn factories(
    model: &ModelSetup,
    first: LaneId,
    batch_ns_max: Ns,
    clock: Clock,
    driver: &Post<Message>,
) -> Vec<LaneFactory> {
    let factory = |(lane, number): (&LaneSetup, u32)| {
        let template = model.tokenizer.template().clone();
        let buckets = buckets(model.pair_tokens_max, lane.batch_tokens_max);
        let self_check = model.self_check.clone();
        let (lane, driver) = (lane.clone(), driver.clone());
        let LaneSetup { depth, batch_tokens_max, .. } = lane;
        let device = lane.device.clone();
        let spawn = move |generation: u32, wait: Ns| Spawn {
            lane: LaneId(number),
            generation,
            make: lane.make.clone(),
            wait,
            template: template.clone(),
            // A model that passed does so again.
            self_check: self_check.clone().filter(|_| generation == 0),
            // After a restart one batch suffices: the lane has been measured before.
            warm_up: if generation == 0 { buckets.clone() } else { buckets[..1].into() },
            depth,
            warm_up_ns_max: Ns(2 * batch_ns_max.0),
            clock,
            driver: driver.clone(),
        };
        LaneFactory { device, batch_tokens_max, depth, spawn: Box::new(spawn) }
    };
    model.lanes.iter().zip(first.0..).map(factory).collect()
}

/// One batch for each power of two of tokens, up to the lane's cap.
fn buckets(pair_tokens_max: u32, batch_tokens_max: u64) -> Arc<[Packed]> {
    let sizes = (0..).map(|power| BUCKET_TOKENS_MIN << power).take_while(|&size| size < batch_tokens_max);
    let mut number = 0;
    sizes
        .chain([batch_tokens_max])
        .map(|tokens| {
            let pairs = tokens.div_ceil(PAIR_TOKENS);
            let length = ((tokens / pairs) as u32).clamp(1, pair_tokens_max);
            let mut batch = Packed::default();
            for _ in 0..pairs {
                batch.push_numbered(number, length);
                number += 1;
            }
            batch
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_covers_every_power_of_two_and_the_cap() {
        let tokens: Vec<u64> = buckets(512, 1000).iter().map(|batch| batch.tokens().0).collect();
        assert_eq!(tokens, [32, 64, 128, 256, 512, 1000]);
    }

    #[test]
    fn warm_up_pairs_stay_within_a_short_model() {
        assert!(buckets(40, 256).iter().all(|batch| batch.lengths().all(|length| length <= 40)));
    }
}
