//! A repository of models: a folder with a folder for each model, and in it one for each version, as Triton and TensorFlow
//! Serving have it.
//!
//! | file | what it knows |
//! |---|---|
//! | `listing` | what the system says is in the folder; the only file that touches the disk |
//! | `layout` | which of it is a model or a version |
//! | `scan` | which versions can be used, and why others cannot |
//! | `policy` | which versions are served |
//! | `watch` | what has changed since, once it is still |
//!
//! The rules, with those of Triton and TensorFlow Serving (TFS):
//! - A version's folder is named by a number: digits. Other folders of a model are ignored, as both do. Triton ignores
//!   numbers with leading zeros, and TFS reads them; here `00000123` is version 123. Where two folders have one number,
//!   `1` and `01`, TFS takes one of them; here neither can be used, because a version must not be ambiguous.
//! - A model's folder that is a model directory itself (config.json with weights) is version 1. Triton and TFS refuse it.
//! - Names that begin with a dot are ignored, so that a version can be copied to `.3` and then renamed to `3`. Links are
//!   followed.
//! - The newest version is served by default, as both do. One that cannot be used is passed over, and its reason is told.

mod layout;
mod listing;
mod policy;
mod scan;
mod watch;

pub use layout::Refused;
pub use listing::{Entry, RepositoryError, Stamp, list};
pub use policy::{Selected, VersionPolicy};
pub use scan::{Facts, Scan, ScannedModel, Unresolved, Version, scan};
pub use watch::{Change, ChangeKind, Watch};
