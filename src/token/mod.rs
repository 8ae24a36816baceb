//! Floor 1: from text to the token ids that an encoder reads, packed end to end.

mod cache;
mod packed;
mod pair;
mod reader;
mod tokenizer;
mod wordpiece;

pub use cache::TokenCache;
pub use packed::Packed;
pub use pair::{Cut, Fit, FitError, Pair};
pub use reader::{PairReader, ReadError};
pub use tokenizer::{Piece, Template, Tokenizer, TokenizerError};
