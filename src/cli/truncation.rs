//! Flags that say how many tokens are read, and what is cut from pairs that have more.

use crate::base::Side;
use crate::rerank::{Overflow, PairTokens, Truncation};

/// As the fields of `POST /v1/rank`.
#[derive(clap::Args)]
pub(super) struct TruncationArgs {
    /// What is cut from a pair that is longer than the model reads: truncate (the query to 3/4 of the model's tokens,
    /// the document to the rest), longest_first, document_only, or refuse [default: truncate].
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    truncation: Option<Overflow>,
    /// The end at which texts lose tokens: left or right [default: right].
    #[arg(long, value_name = "SIDE", value_parser = side)]
    truncation_side: Option<Side>,
    /// Most tokens of a pair that are read [default: what the model reads].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pair_tokens_max: Option<u32>,
    /// Most tokens of a query that are read.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    query_tokens_max: Option<u32>,
    /// Most tokens of a document that are read.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    document_tokens_max: Option<u32>,
}

impl TruncationArgs {
    /// What they say.
    pub fn truncation(&self) -> Truncation {
        Truncation {
            policy: self.truncation,
            side: self.truncation_side,
            pair_tokens: self.pair_tokens_max.map_or(PairTokens::Model, PairTokens::AtMost),
            query_tokens_max: self.query_tokens_max,
            document_tokens_max: self.document_tokens_max,
        }
    }
}

fn policy(name: &str) -> Result<Overflow, String> {
    let found = Overflow::ALL.into_iter().find(|policy| policy.name() == name);
    found.ok_or_else(|| format!("one of {}", Overflow::ALL.map(Overflow::name).join(", ")))
}

fn side(name: &str) -> Result<Side, String> {
    let found = [Side::Left, Side::Right].into_iter().find(|side| side.name() == name);
    found.ok_or_else(|| "one of left, right".to_owned())
}
