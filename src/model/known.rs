//! The prompts that families of decoders were trained with, as their model cards and packages have them.

use crate::token::{Around, Cut, Instructed, Prompt};

/// A prompt that a family of models was trained with.
pub(super) struct Known {
    pub name: &'static str,
    /// Text that the family's model cards have.
    pub mark: &'static str,
    pub before: &'static [&'static str],
    /// Between that and the query; none if the family was trained without instructions.
    pub instruction: Option<KnownInstruction>,
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

/// The place of an instruction in a known prompt, in a piece of its own.
pub(super) struct KnownInstruction {
    around: (&'static str, &'static str),
    /// The instruction if the caller gives none. With a default, an empty instruction is an empty text in its place;
    /// without one, it is the same as none.
    default: Option<&'static str>,
}

pub(super) static KNOWN: [Known; 3] = [
    Known {
        name: "qwen3-reranker",
        mark: "Judge whether the Document meets the requirements based on the Query and the Instruct provided",
        before: &[
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct \
             provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n",
            "<Instruct>:",
        ],
        instruction: Some(KnownInstruction {
            around: (" ", "\n<Query>:"),
            default: Some("Given a web search query, retrieve relevant passages that answer the query"),
        }),
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
        // As the package has it since 0.1: `instruction: ...`, a line's end, and the query.
        instruction: Some(KnownInstruction { around: ("instruction: ", "\n"), default: None }),
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
        instruction: None,
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
        let owned = |pieces: &[&str]| pieces.iter().map(|&piece| piece.to_owned()).collect::<Vec<_>>();
        let around = |(before, after): (&str, &str), is_trimmed: bool| Around {
            before: before.to_owned(),
            after: after.to_owned(),
            is_trimmed,
        };
        let fixed = owned(self.before);
        let instructed = self.instruction.as_ref().map(|KnownInstruction { around: place, default }| {
            let instruction = around(*place, false);
            let with = |text: &str| [&*fixed, &[instruction.text(text)]].concat();
            let (before, empty) =
                default.map_or((fixed.clone(), fixed.clone()), |text| (with(text), with("")));
            (before, Instructed { before: fixed.clone(), instruction, after: Vec::new(), empty })
        });
        let (before, instructed) = match instructed {
            Some((before, instructed)) => (before, Some(instructed)),
            None => (fixed, None),
        };
        Prompt {
            before,
            instructed,
            query: around(self.query, self.is_trimmed),
            between: owned(self.between),
            document: around((self.document, ""), self.is_trimmed),
            after: owned(self.after),
            cut: self.cut,
        }
    }
}
