//! The prompts that families of decoders were trained with, as their model cards and packages have them.

use crate::token::{Around, Cut, Prompt};

/// A prompt that a family of models was trained with.
pub(super) struct Known {
    pub name: &'static str,
    /// Text that the family's model cards have.
    pub mark: &'static str,
    pub before: &'static [&'static str],
    pub query: (&'static str, &'static str),
    pub between: &'static [&'static str],
    pub document: &'static str,
    pub after: &'static [&'static str],
    pub is_trimmed: bool,
    pub cut: Option<Cut>,
    pub yes: &'static str,
    pub no: Option<&'static str>,
    pub scale: f32,
    pub tokens_max: Option<u32>,
}

pub(super) static KNOWN: [Known; 3] = [
    Known {
        name: "qwen3-reranker",
        mark: "Judge whether the Document meets the requirements based on the Query and the Instruct provided",
        before: &[
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct \
             provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n",
            "<Instruct>:",
            " Given a web search query, retrieve relevant passages that answer the query\n<Query>:",
        ],
        query: (" ", "\n<Document>:"),
        between: &[],
        document: " ",
        after: &["<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"],
        is_trimmed: false,
        cut: Some(Cut::End),
        yes: "yes",
        no: Some("no"),
        scale: 1.0,
        tokens_max: Some(8_192),
    },
    // The package `mxbai-rerank` encodes each of these by itself.
    Known {
        name: "mxbai-rerank-v2",
        mark: "MxbaiRerankV2",
        before: &[
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n\
             <|im_start|>user\n",
        ],
        query: ("query: ", ""),
        between: &["\n"],
        document: "document: ",
        after: &[
            "\n",
            "You are a search relevance expert who evaluates how well documents match search queries. For each \
             query-document pair, carefully analyze the semantic relationship between them, then provide your binary \
             relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
            "<|im_end|>\n<|im_start|>assistant\n",
        ],
        is_trimmed: false,
        // A share of three quarters for the query, which is the server's default.
        cut: None,
        yes: "1",
        no: Some("0"),
        scale: 1.0,
        tokens_max: Some(8_192),
    },
    Known {
        name: "zerank-2",
        mark: "zeroentropy/zerank-2",
        before: &["<|im_start|>"],
        query: ("system\n", ""),
        between: &["<|im_end|>\n<|im_start|>"],
        document: "user\n",
        after: &["<|im_end|>\n<|im_start|>assistant\n"],
        is_trimmed: true,
        cut: Some(Cut::End),
        yes: "Yes",
        no: None,
        // Its probability is sigmoid(logit / 5).
        scale: 0.2,
        tokens_max: None,
    },
];

impl Known {
    pub fn prompt(&self) -> Prompt {
        let owned = |pieces: &[&str]| pieces.iter().map(|&piece| piece.to_owned()).collect();
        let around = |before: &str, after: &str| Around {
            before: before.to_owned(),
            after: after.to_owned(),
            is_trimmed: self.is_trimmed,
        };
        Prompt {
            before: owned(self.before),
            query: around(self.query.0, self.query.1),
            between: owned(self.between),
            document: around(self.document, ""),
            after: owned(self.after),
            cut: self.cut,
        }
    }
}
