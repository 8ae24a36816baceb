//! Floor 5: the running server.
