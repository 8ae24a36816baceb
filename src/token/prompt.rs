//! A prompt in text around a query and a document, as decoders are trained with one.

use super::tokenizer::special_parts;
use super::{Cut, Template, Tokenizer, TokenizerError};

/// A prompt in pieces, each of which is encoded by itself: so a text's ids do not depend on the other's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Before the query's piece.
    pub before: Vec<String>,
    /// Around the query, in its piece.
    pub query: Around,
    /// Between the two pieces.
    pub between: Vec<String>,
    /// Around the document, in its piece.
    pub document: Around,
    /// After the document's piece.
    pub after: Vec<String>,
    /// What a pair loses that is too long, unless a request says otherwise.
    pub cut: Option<Cut>,
}

/// What stands around a text in its piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// Before the text.
    pub before: String,
    /// After the text.
    pub after: String,
    /// Whether the text loses white space at its ends.
    pub is_trimmed: bool,
}

impl Around {
    /// A text with what stands around it.
    pub fn text(&self, text: &str) -> String {
        let text = if self.is_trimmed { text.trim() } else { text };
        [&self.before, text, &self.after].concat()
    }
}

impl Prompt {
    /// The pieces of a prompt whose ids are those of the whole text: it is cut at special tokens, which are no part of
    /// other tokens, and before the space after a colon, where no word goes on.
    ///
    /// # Errors
    /// If pieces have other ids than the whole for one of some texts.
    pub fn of_text(
        tokenizer: &Tokenizer,
        texts: [&str; 3],
        is_trimmed: bool,
    ) -> Result<Self, TokenizerError> {
        let [mut before, mut between, mut after] = texts.map(|text| pieces(tokenizer, text));
        let before_query = before.pop().unwrap_or_default();
        let after_query = if between.is_empty() { String::new() } else { between.remove(0) };
        let before_document = between.pop().unwrap_or_default();
        let after_document = if after.is_empty() { String::new() } else { after.remove(0) };
        let [before, between, after] = [before, between, after].map(one);
        let prompt = Self {
            before,
            query: Around { before: before_query, after: after_query, is_trimmed },
            between,
            document: Around { before: before_document, after: after_document, is_trimmed },
            after,
            cut: Some(Cut::End),
        };
        prompt.check(tokenizer)?;
        Ok(prompt)
    }

    /// Compares the ids of pieces with those of the whole, on texts that begin and end as texts may.
    fn check(&self, tokenizer: &Tokenizer) -> Result<(), TokenizerError> {
        const TEXTS: [&str; 10] =
            ["a", "", " a ", "\na\n\n", "?", ":", "7", "\u{301}e\u{301}", "\u{4e2d}", "\t\u{1f680}\u{a0}"];
        for (query, document) in TEXTS.into_iter().flat_map(|one| TEXTS.map(|other| (one, other))) {
            let mut ids = Vec::new();
            let pieces = self.all_pieces(query, document);
            for piece in &pieces {
                ids.extend_from_slice(&tokenizer.encode(piece)?);
            }
            if *tokenizer.encode(&pieces.concat())? != *ids {
                let reason = format!("{query:?} and {document:?} have other tokens alone than in the prompt");
                return Err(TokenizerError::Prompt { reason });
            }
        }
        Ok(())
    }

    fn all_pieces(&self, query: &str, document: &str) -> Vec<String> {
        let mut all = self.before.clone();
        all.push(self.query.text(query));
        all.extend_from_slice(&self.between);
        all.push(self.document.text(document));
        all.extend_from_slice(&self.after);
        all
    }

    /// The prompt as one text, with these in the places of the query and of the document.
    pub fn text(&self, query: &str, document: &str) -> String {
        self.all_pieces(query, document).concat()
    }

    /// Its ids around the pieces of the query and of the document.
    pub(super) fn template(&self, tokenizer: &Tokenizer) -> Result<Template, TokenizerError> {
        let ids = |pieces: &[String]| -> Result<Vec<(u32, u8)>, TokenizerError> {
            let mut ids = Vec::new();
            for piece in pieces {
                ids.extend(tokenizer.encode(piece)?.iter().map(|&id| (id, 0)));
            }
            Ok(ids)
        };
        Ok(Template {
            before: ids(&self.before)?,
            between: ids(&self.between)?,
            after: ids(&self.after)?,
            query_type: 0,
            document_type: 0,
            query_end: tokenizer.encode(&self.query.after)?,
            document_end: tokenizer.encode(&self.document.after)?,
            cut: self.cut,
        })
    }
}

/// A text between two pieces of which it may be cut: at special tokens, and before a space that follows a colon.
fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for (part, is_special) in special_parts(tokenizer, text) {
        if is_special {
            pieces.push(part.to_owned());
            pieces.push(String::new());
            continue;
        }
        for (place, c) in part.char_indices() {
            if c == ' ' && part[..place].ends_with(':') {
                pieces.push(String::new());
            }
            pieces.last_mut().expect("it has one").push(c);
        }
    }
    pieces
}

/// Pieces that follow each other, as one; none if they are empty.
fn one(pieces: Vec<String>) -> Vec<String> {
    let text = pieces.concat();
    if text.is_empty() { Vec::new() } else { vec![text] }
}
