//! Floor 1: from text to the token ids that an encoder reads, packed end to end.

mod packed;

pub use packed::Packed;
