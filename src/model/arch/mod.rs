//! The architectures that are served: `config.json` to a [`Plan`]. A new one is one file and one row of [`SERVED`].
//!
//! | file | models |
//! |---|---|
//! | `bert` | BERT, RoBERTa, XLM-R |

mod bert;

pub use bert::{Bert, Family};

use super::{ModelError, Plan};
use serde::Deserialize;
use std::path::Path;

/// Makes a plan of a `config.json`, or says which key is wrong and what is served.
type Describe = fn(&[u8]) -> Result<Plan, String>;

/// The names in `architectures`, and what describes a model of each.
const SERVED: [(&str, Describe); 3] = [
    ("BertForSequenceClassification", bert::describe),
    ("RobertaForSequenceClassification", bert::describe),
    ("XLMRobertaForSequenceClassification", bert::describe),
];

/// Parses `config.json`; `path` is for error messages.
///
/// # Errors
/// [`ModelError`], which names the key and the supported values.
pub fn describe(config: &[u8], path: &Path) -> Result<Plan, ModelError> {
    let unusable = |reason: String| ModelError::Unusable { path: path.to_owned(), reason };
    let architecture = architecture(config).map_err(unusable)?;
    let (_, describe) = SERVED.into_iter().find(|(name, _)| *name == architecture).ok_or_else(|| {
        let served = SERVED.map(|(name, _)| name).join(", ");
        unusable(format!("architectures: `{architecture}` is not served; these are: {served}"))
    })?;
    describe(config).map_err(unusable)
}

/// The first name in `architectures`; `none` if there is no name.
fn architecture(config: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        architectures: Vec<String>,
    }
    let named: Named = serde_json::from_slice(config).map_err(|error| error.to_string())?;
    Ok(named.architectures.into_iter().next().unwrap_or_else(|| "none".to_owned()))
}
