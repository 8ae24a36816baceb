//! The only place that reads the time. Code that decides takes `now` as an argument.

use crate::base::Ns;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A monotonic clock that counts from its creation.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts counting.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> Ns {
        self.origin.elapsed().into()
    }

    /// The `Instant` for waits of the standard library, at most a year from now.
    pub fn instant(&self, at: Ns) -> Instant {
        let year = Duration::from_secs(365 * 24 * 3600);
        self.origin + Duration::from(at).min(self.origin.elapsed() + year)
    }

    /// Seconds since 1970, for dates in responses and hours in the ledger.
    pub fn unix_seconds(&self) -> u64 {
        self.unix_ns() / 1_000_000_000
    }

    /// Nanoseconds since 1970, for spans.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn unix_ns(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
    }
}
