//! Floor 2: models.
