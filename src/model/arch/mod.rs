//! The architectures that are served: `config.json` to a [`Plan`]. A new one is one file and its rows of [`SERVED`].
//!
//! | file | models |
//! |---|---|
//! | `bert` | BERT, RoBERTa, XLM-R |
//! | `modernbert` | ModernBERT: Ettin, gte-reranker-modernbert, Granite |
//! | `deberta` | DeBERTa-v2: mxbai-rerank-v1 |
//! | `gte` | mGTE: gte-multilingual-reranker |
//! | `qwen` | Qwen3 and Qwen2: Qwen3-Reranker, zerank, mxbai-rerank-v2 |
//! | `post_norm` | the layers that BERT, DeBERTa-v2 and mGTE have in common |
//! | `keys` | the keys of a configuration, read |
//! | `modules` | the modules of sentence-transformers that follow an encoder |

mod bert;
mod deberta;
mod gte;
mod keys;
mod modernbert;
mod modules;
mod post_norm;
mod qwen;

pub use bert::{Bert, Family};
pub(super) use keys::{Keys, Label};

pub(super) use modules::{Module, listed};

use super::plan::{Head, Plan, Score, Tensor};
use keys::{LabelError, LabelRow};
use std::borrow::Cow;

/// Makes a plan, or says which key is wrong and what is served.
type Describe = fn(&Source) -> Result<Plan, Fault>;

/// The names in `architectures`, and what describes a model of each.
const SERVED: [(&str, Describe); 12] = [
    ("BertForSequenceClassification", bert::describe),
    ("RobertaForSequenceClassification", bert::describe),
    ("XLMRobertaForSequenceClassification", bert::describe),
    ("ModernBertForSequenceClassification", modernbert::describe),
    ("ModernBertModel", modernbert::describe),
    ("DebertaV2ForSequenceClassification", deberta::describe),
    ("NewForSequenceClassification", gte::describe),
    ("GteForSequenceClassification", gte::describe),
    ("Qwen3ForCausalLM", qwen::describe),
    ("Qwen3ForSequenceClassification", qwen::describe),
    ("Qwen2ForCausalLM", qwen::describe),
    ("Qwen2ForSequenceClassification", qwen::describe),
];

/// What a model is described by, besides its weights.
#[derive(Debug)]
pub(super) struct Source {
    /// The first name in `architectures`; `none` if there is no name.
    pub architecture: String,
    /// `config.json`.
    pub keys: Keys,
    /// The modules that follow the transformer.
    pub modules: Vec<Module>,
    /// The label that is the score, where one is declared.
    pub label: Option<Label>,
    /// The tokens whose logits are the score, where the prompt says so.
    pub answers: Option<Answers>,
}

/// The tokens with which a decoder says that a document answers the query, or that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answers {
    pub yes: u32,
    pub no: Option<u32>,
}

/// What is wrong with a file of a model.
#[derive(Debug)]
pub(super) struct Fault {
    /// The file in the model's directory.
    pub file: Cow<'static, str>,
    pub reason: String,
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self { file: "config.json".into(), reason }
    }
}

impl Source {
    /// Parses `config.json`.
    pub fn new(config: &[u8]) -> Result<Self, Fault> {
        let keys = Keys::parse(config)?;
        let first = keys.get("architectures").and_then(|names| names.get(0)).and_then(|name| name.as_str());
        let architecture = first.unwrap_or("none").to_owned();
        Ok(Self { architecture, keys, modules: Vec::new(), label: None, answers: None })
    }

    /// The plan of the model.
    pub fn describe(&self) -> Result<Plan, Fault> {
        let name = &self.architecture;
        let (_, describe) = SERVED.into_iter().find(|(served, _)| served == name).ok_or_else(|| {
            let served = SERVED.map(|(name, _)| name).join(", ");
            format!("architectures: `{name}` is not served; these are: {served}")
        })?;
        let plan = describe(self)?;
        if plan.blocks.iter().any(|block| block.attention.rope.is_some() && block.attention.head_dim % 2 == 1)
        {
            return Err("the size of a head is odd, and rotary positions turn pairs of values"
                .to_owned()
                .into());
        }
        Ok(plan)
    }

    /// Whether the model continues a text, so that it needs a prompt.
    pub fn is_decoder(&self) -> bool {
        self.architecture.starts_with("Qwen")
    }

    fn tokens_max(&self) -> Result<u32, Fault> {
        let tokens = self.keys.size("max_position_embeddings")?;
        Ok(u32::try_from(tokens).map_err(|_| format!("max_position_embeddings: {tokens} is too large"))?)
    }

    /// The row of the classifier that is the score.
    fn label_row(&self) -> Result<LabelRow, Fault> {
        self.keys.label_row(self.label.as_ref()).map_err(|error| match error {
            LabelError::Config(reason) => reason.into(),
            LabelError::Declared(reason) => Fault { file: "podium.json".into(), reason },
        })
    }

    /// Refuses modules after a model that has a classifier.
    fn has_no_modules(&self) -> Result<(), Fault> {
        match self.modules.first() {
            None => Ok(()),
            Some(module) => Err(modules::fault(format!(
                "{} follows {}, which gives scores already",
                module.kind, self.architecture
            ))),
        }
    }

    /// The head that the modules are.
    fn module_head(&self, hidden: usize) -> Result<Head, Fault> {
        if self.modules.is_empty() {
            let name = &self.architecture;
            return Err(format!(
                "architectures: `{name}` gives no scores, and there is no modules.json that names what follows it"
            )
            .into());
        }
        modules::head(&self.modules, hidden)
    }

    /// The score by the logits of tokens, whose rows `output` has.
    fn token_score(&self, output: &Tensor) -> Result<Score, Fault> {
        let (file, answers): (Cow<'static, str>, Answers) = match (&self.modules[..], self.answers) {
            ([], None) => {
                let reason = "architectures: the model gives the logits of tokens, and no 1_LogitScore says which are \
                              the score";
                return Err(reason.to_owned().into());
            }
            ([], Some(answers)) => ("podium.json".into(), answers),
            (modules, _) => modules::answers(modules)?,
        };
        let row = |id: u32| match (id as usize) < output.shape[0] {
            true => Ok(output.rows(id as usize, 1)),
            false => {
                let reason = format!("token {id} is not among the model's {}", output.shape[0]);
                Err(Fault { file: file.clone(), reason })
            }
        };
        Ok(Score::Tokens { yes: row(answers.yes)?, no: answers.no.map(row).transpose()? })
    }
}

#[cfg(test)]
mod tests;
