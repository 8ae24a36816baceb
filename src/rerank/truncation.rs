//! How many tokens of a request are read, and what is cut from a pair that has more.

use crate::base::Side;
use serde::{Deserialize, Serialize};

/// What a request says about truncation. By default it leaves everything to the server.
///
/// The two limits of single texts apply first, and whatever the policy is: a text is cut to its own limit without
/// being refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncation {
    /// What happens to a pair that is longer than its limit; none: [`TruncationDefaults::policy`].
    pub policy: Option<Overflow>,
    /// The end at which both texts lose tokens; none: [`TruncationDefaults::side`].
    pub side: Option<Side>,
    /// The limit of a pair, special tokens included.
    pub pair_tokens: PairTokens,
    /// Most tokens of a query that are read; none: no limit of its own.
    pub query_tokens_max: Option<u32>,
    /// Most tokens of a document that are read; none: no limit of its own.
    pub document_tokens_max: Option<u32>,
}

impl Truncation {
    /// The server's defaults but for the policy.
    pub fn by(policy: Overflow) -> Self {
        Self { policy: Some(policy), ..Self::default() }
    }
}

/// What happens to a pair that is longer than its limit. A pair that fits is never cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The query is cut to its share of the limit ([`TruncationDefaults::query_permille`]), and the document to what
    /// the query leaves, so that all documents that are cut are judged by the same query. FlagEmbedding's rule: a
    /// query of at most 3/4 of the model's maximum, and `transformers`' `only_second`.
    #[default]
    Truncate,
    /// The longer of the two is cut until the pair fits: `longest_first` of `transformers`.
    LongestFirst,
    /// Only the document is cut: `only_second` of `transformers`. A query that leaves no room for a document is an
    /// error.
    DocumentOnly,
    /// The request is refused.
    Refuse,
}

impl Overflow {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Truncate, Self::LongestFirst, Self::DocumentOnly, Self::Refuse];

    /// The name that bodies, headers and configuration use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncate => "truncate",
            Self::LongestFirst => "longest_first",
            Self::DocumentOnly => "document_only",
            Self::Refuse => "refuse",
        }
    }
}

/// The limit of a pair in tokens, special tokens included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PairTokens {
    /// What the model reads (vLLM's `truncate_prompt_tokens` of -1).
    #[default]
    Model,
    /// At most this many. More than the model reads is the same as [`PairTokens::Model`].
    AtMost(u32),
    /// At most this many. More than the model reads is an error, as for vLLM's `truncate_prompt_tokens`.
    Within(u32),
}

impl PairTokens {
    /// The limit for a model that reads this many tokens.
    pub fn limit(self, model_max: u32) -> u32 {
        match self {
            Self::Model => model_max,
            Self::AtMost(tokens) | Self::Within(tokens) => tokens.min(model_max),
        }
    }
}

/// What holds for a request that does not say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TruncationDefaults {
    /// What happens to a pair that is longer than its limit.
    pub policy: Overflow,
    /// The end at which texts lose tokens.
    pub side: Side,
    /// The query's share of a pair that is truncated, in thousandths of the limit, 1 to 999.
    pub query_permille: u32,
}

impl Default for TruncationDefaults {
    /// FlagEmbedding's share, 3/4.
    fn default() -> Self {
        Self { policy: Overflow::Truncate, side: Side::Right, query_permille: 750 }
    }
}

impl TruncationDefaults {
    /// Checks what types cannot say.
    ///
    /// # Errors
    /// Names the key and its bounds.
    pub fn check(&self) -> Result<(), String> {
        match self.query_permille {
            1..=999 => Ok(()),
            other => Err(format!("query_permille: {other} is not between 1 and 999")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_at_most_what_the_model_reads() {
        for (tokens, expected) in [(1, 1), (511, 511), (512, 512), (513, 512), (u32::MAX, 512)] {
            assert_eq!(PairTokens::AtMost(tokens).limit(512), expected, "{tokens}");
            assert_eq!(PairTokens::Within(tokens).limit(512), expected, "{tokens}");
        }
        assert_eq!(PairTokens::Model.limit(512), 512);
        assert_eq!(TruncationDefaults::default().query_permille, 750);
    }

    #[test]
    fn a_share_is_a_part_of_the_whole() {
        let check = |query_permille| TruncationDefaults { query_permille, ..Default::default() }.check();
        for share in [1, 750, 999] {
            assert_eq!(check(share), Ok(()));
        }
        for share in [0, 1_000, u32::MAX] {
            assert_eq!(check(share), Err(format!("query_permille: {share} is not between 1 and 999")));
        }
    }
}
