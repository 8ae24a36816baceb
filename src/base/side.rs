//! A text's two ends.

use serde::{Deserialize, Serialize};

/// The end of a text at which truncation takes tokens away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The text's beginning.
    Left,
    /// The text's end.
    #[default]
    Right,
}

impl Side {
    /// The lower-case name that bodies, headers and configuration use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
        }
    }
}
