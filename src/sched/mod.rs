//! Floor 3: the scheduler.
