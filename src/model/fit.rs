//! What a model's pairs must fit into: by what the request says, and else by the server's defaults.

use crate::rerank::{Overflow, Truncation, TruncationDefaults};
use crate::token::{Cut, Fit};

/// The limits of pairs of a model that reads `pair_tokens_max` tokens.
pub fn fit(truncation: &Truncation, defaults: &TruncationDefaults, pair_tokens_max: u32) -> Fit {
    Fit {
        limit: truncation.pair_tokens.limit(pair_tokens_max),
        query_max: truncation.query_tokens_max,
        document_max: truncation.document_tokens_max,
        cut: match truncation.policy.unwrap_or(defaults.policy) {
            Overflow::Truncate => Cut::Share { query_permille: defaults.query_permille },
            Overflow::LongestFirst => Cut::LongestFirst,
            Overflow::DocumentOnly => Cut::DocumentOnly,
            Overflow::Refuse => Cut::Nothing,
        },
        side: truncation.side.unwrap_or(defaults.side),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Side;
    use crate::rerank::PairTokens;

    #[test]
    fn a_request_s_word_goes_before_the_server_s() {
        let defaults =
            TruncationDefaults { policy: Overflow::Truncate, side: Side::Left, query_permille: 500 };
        let expected = Fit { side: Side::Left, ..Fit::new(512, Cut::Share { query_permille: 500 }) };
        assert_eq!(fit(&Truncation::default(), &defaults, 512), expected);
        let said = Truncation {
            policy: None,
            side: Some(Side::Right),
            pair_tokens: PairTokens::AtMost(100),
            query_tokens_max: Some(7),
            document_tokens_max: Some(8),
        };
        for (policy, cut) in [
            (Overflow::Truncate, Cut::Share { query_permille: 500 }),
            (Overflow::LongestFirst, Cut::LongestFirst),
            (Overflow::DocumentOnly, Cut::DocumentOnly),
            (Overflow::Refuse, Cut::Nothing),
        ] {
            let said = Truncation { policy: Some(policy), ..said };
            let expected =
                Fit { limit: 100, query_max: Some(7), document_max: Some(8), cut, side: Side::Right };
            assert_eq!(fit(&said, &defaults, 512), expected);
        }
        for (pair_tokens, limit) in [
            (PairTokens::Model, 512),
            (PairTokens::AtMost(511), 511),
            (PairTokens::AtMost(513), 512),
            (PairTokens::Within(511), 511),
        ] {
            assert_eq!(fit(&Truncation { pair_tokens, ..said }, &defaults, 512).limit, limit);
        }
    }
}
