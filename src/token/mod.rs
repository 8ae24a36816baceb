//! Floor 1: converts text to token ids, and packs pairs into batches.

mod cache;
mod packed;
mod pair;
mod prompt;
mod reader;
mod tokenizer;
mod wordpiece;

pub use cache::TokenCache;
pub use packed::Packed;
pub use pair::{Cut, Fit, FitError, Pair};
pub use prompt::{Around, Instructed, InstructedText, Prompt, PromptText};
pub use reader::{PairReader, ReadError};
pub use tokenizer::{InstructedIds, Piece, Template, Tokenizer, TokenizerError};
