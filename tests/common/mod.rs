//! What several test files share.

use std::path::PathBuf;

/// The data folder: `$PODIUM_DATA`, else `../shared/data`; none, said aloud, where there is neither.
pub fn data() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let place = std::env::var_os("PODIUM_DATA").map_or_else(beside, PathBuf::from);
    if place.is_dir() {
        return Some(place);
    }
    eprintln!("SKIPPED: no data at {}; set PODIUM_DATA", place.display());
    None
}
