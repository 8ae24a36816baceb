//! `podium serve`.

use super::Failure;

/// Serves a model.
#[derive(clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Result<(), Failure> {
    Ok(())
}
