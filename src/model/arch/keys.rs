//! The keys of a configuration file, read with errors that name the key, its value, and what is served.

use crate::model::plan::{Activation, Gelu, Linear};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A JSON object of keys. A null counts as a missing key.
#[derive(Clone, Debug, Default)]
pub struct Keys(Map<String, Value>);

/// The label of a classifier that is the score.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Label {
    /// By its place.
    Index(usize),
    /// By its name in `id2label`.
    Name(String),
}

/// The row of a classifier that is the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelRow {
    index: usize,
    of: usize,
}

impl LabelRow {
    /// The score, as a part of a classifier with all labels.
    pub fn of(self, classifier: impl Fn(usize) -> Linear) -> Linear {
        match self.of {
            1 => classifier(1),
            of => classifier(of).rows(self.index, 1),
        }
    }
}

impl Keys {
    /// Parses a file's content.
    pub fn parse(content: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(content).map(Self).map_err(|error| error.to_string())
    }

    /// All keys as one value.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, String> {
        T::deserialize(Value::Object(self.0.clone())).map_err(|error| error.to_string())
    }

    /// The value of a key, none for null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// The keys below a key; none where it is missing.
    pub fn below(&self, key: &str) -> Result<Option<Self>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(keys)) => Ok(Some(Self(keys.clone()))),
            Some(other) => Err(format!("{key}: {other} is not an object")),
        }
    }

    /// A number of things, at least one.
    pub fn size(&self, key: &str) -> Result<usize, String> {
        self.size_or(key, None)
    }

    /// The same with a default.
    pub fn size_or(&self, key: &str, default: Option<usize>) -> Result<usize, String> {
        let Some(value) = self.get(key) else { return default.ok_or_else(|| format!("{key} is missing")) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
        size.ok_or_else(|| format!("{key}: {value} is not a whole number above 0"))
    }

    /// A token id; none where the key is missing.
    pub fn token(&self, key: &str) -> Result<Option<u32>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(Some).ok_or_else(|| format!("{key}: {value} is not a token id"))
    }

    /// A positive number.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64, String> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        number.ok_or_else(|| format!("{key}: {value} is not a number above 0"))
    }

    /// A switch, off where the key is missing.
    pub fn flag(&self, key: &str) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(other) => Err(format!("{key}: {other} is neither true nor false")),
        }
    }

    /// One of the served words; the first of them where the key is missing.
    pub fn one_of<'a, T: Copy>(&self, key: &str, served: &[(&'a str, T)]) -> Result<T, String> {
        let Some(value) = self.get(key) else { return Ok(served[0].1) };
        let found = served.iter().find(|(word, _)| value.as_str() == Some(*word));
        found.map(|&(_, meaning)| meaning).ok_or_else(|| {
            let words: Vec<&'a str> = served.iter().map(|&(word, _)| word).collect();
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{key}: `{shown}` is not served; {}", are(&words))
        })
    }

    /// Refuses a switch that is on or off other than it must be.
    pub fn must_be(&self, key: &str, served: bool, default: bool) -> Result<(), String> {
        let is = if self.get(key).is_some() { self.flag(key)? } else { default };
        if is == served { Ok(()) } else { Err(format!("{key}: {is} is not served; {served} is")) }
    }

    /// The kinds of attention of all layers, where the file lists them; each is one of the served words.
    pub fn layer_types(&self, layers: usize, served: &[&str]) -> Result<Option<Vec<String>>, String> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let types: Vec<String> = Vec::deserialize(value).map_err(|error| format!("layer_types: {error}"))?;
        if let Some(other) = types.iter().find(|kind| !served.contains(&kind.as_str())) {
            return Err(format!("layer_types: `{other}` is not served; {}", are(served)));
        }
        if types.len() != layers {
            return Err(format!(
                "layer_types: lists {} layers, and num_hidden_layers is {layers}",
                types.len()
            ));
        }
        Ok(Some(types))
    }

    /// The number of heads, which divide the hidden size.
    pub fn heads(&self, hidden: usize) -> Result<usize, String> {
        let heads = self.size("num_attention_heads")?;
        match hidden.is_multiple_of(heads) {
            true => Ok(heads),
            false => Err(format!("num_attention_heads: {heads} does not divide hidden_size {hidden}")),
        }
    }

    /// The row of the classifier that is the score: the only label, or the declared one.
    pub fn label_row(&self, declared: Option<&Label>) -> Result<LabelRow, LabelError> {
        let names = self.label_names().map_err(LabelError::Config)?;
        let of = names.len();
        let listed = || names.join(", ");
        match declared {
            None if of == 1 => Ok(LabelRow { index: 0, of }),
            None => Err(LabelError::Config(format!(
                "id2label: the model has {of} labels ({}), and a score is one of them; name it in podium.json, for \
                 example \"label\": \"{}\"",
                listed(),
                names[of - 1]
            ))),
            Some(Label::Index(index)) if *index < of => Ok(LabelRow { index: *index, of }),
            Some(Label::Index(index)) => Err(LabelError::Declared(format!(
                "label: {index} is not below {of}, the number of labels ({})",
                listed()
            ))),
            Some(Label::Name(name)) => {
                let index = names.iter().position(|known| known == name);
                let index = index.ok_or_else(|| {
                    LabelError::Declared(format!("label: `{name}` is not a label; these are: {}", listed()))
                })?;
                Ok(LabelRow { index, of })
            }
        }
    }

    /// The names of the labels. `transformers` writes them, and their number only if there are none; it takes 2 where it
    /// has written neither.
    fn label_names(&self) -> Result<Vec<String>, String> {
        let Some(labels) = self.below("id2label")? else {
            let count = self.size_or("num_labels", Some(2))?;
            return Ok((0..count).map(|index| format!("LABEL_{index}")).collect());
        };
        let name = |index: usize| {
            let name = labels.get(&index.to_string()).and_then(Value::as_str);
            name.map(str::to_owned).ok_or_else(|| format!("id2label: label {index} has no name"))
        };
        match labels.0.len() {
            0 => Err("id2label: the model has 0 labels".to_owned()),
            count => (0..count).map(name).collect(),
        }
    }
}

/// Why no label is the score.
#[derive(Debug)]
pub enum LabelError {
    /// The configuration has none, or several of which none is declared.
    Config(String),
    /// The declared label is not one of the model's.
    Declared(String),
}

/// The activations of feed-forward parts that are gated, or of heads.
pub const GELU_OR_SILU: [(&str, Activation); 4] = [
    ("gelu", Activation::Gelu(Gelu::Erf)),
    ("gelu_new", Activation::Gelu(Gelu::Tanh)),
    ("gelu_pytorch_tanh", Activation::Gelu(Gelu::Tanh)),
    ("silu", Activation::Silu),
];

/// For example `a, b and c are`.
fn are(words: &[&str]) -> String {
    match words {
        [] => "nothing is".to_owned(),
        [word] => format!("{word} is"),
        [words @ .., last] => format!("{} and {last} are", words.join(", ")),
    }
}
