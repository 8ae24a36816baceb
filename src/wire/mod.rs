//! Floor 2: the dialects.
