//! A prompt in text around a query and a document, as decoders are trained with one.

use super::tokenizer::special_parts;
use super::{Cut, InstructedIds, Template, Tokenizer, TokenizerError};

/// A prompt in pieces, each of which is encoded by itself: so a text's ids do not depend on the other's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Before the query's piece.
    pub before: Vec<String>,
    /// In place of `before` if a request has an instruction; none if there is no place for one.
    pub instructed: Option<Instructed>,
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

/// What stands before the query's piece if a request has an instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instructed {
    /// Before the instruction's piece.
    pub before: Vec<String>,
    /// Around the instruction, in its piece.
    pub instruction: Around,
    /// Between the instruction's piece and the query's.
    pub after: Vec<String>,
    /// In place of all three if the instruction is empty: what the model's own prompt makes of that.
    pub empty: Vec<String>,
}

/// A prompt as text.
#[derive(Clone, Copy, Debug)]
pub struct PromptText<'a> {
    /// Before the query.
    pub before: &'a str,
    /// Between the query and the document.
    pub between: &'a str,
    /// After the document.
    pub after: &'a str,
    /// Whether query and document lose white space at their ends.
    pub is_trimmed: bool,
    /// What stands before the query if a request has an instruction.
    pub instructed: Option<InstructedText<'a>>,
}

/// The part of a prompt before the query, with a place for an instruction.
#[derive(Clone, Copy, Debug)]
pub struct InstructedText<'a> {
    /// Before the instruction.
    pub before: &'a str,
    /// Between the instruction and the query.
    pub after: &'a str,
    /// In place of both if the instruction is empty.
    pub empty: &'a str,
    /// Whether the instruction loses white space at its ends.
    pub is_trimmed: bool,
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

impl Instructed {
    /// The instruction's piece; empty if the instruction is.
    pub(super) fn piece(&self, instruction: &str) -> String {
        let text = if self.instruction.is_trimmed { instruction.trim() } else { instruction };
        if text.is_empty() { String::new() } else { self.instruction.text(text) }
    }

    /// Cuts the text before the query, whose last piece is the beginning of the query's; none if the instruction would be
    /// a part of the query's piece.
    fn of_text(tokenizer: &Tokenizer, text: &InstructedText, query_start: &str) -> Option<Self> {
        let before_query = |text: &str| {
            let mut all = pieces(tokenizer, text);
            (all.pop()? == query_start).then_some(all)
        };
        let mut before = pieces(tokenizer, text.before);
        let start = before.pop().unwrap_or_default();
        let mut after = before_query(text.after)?;
        if after.is_empty() {
            return None;
        }
        let instruction = Around { before: start, after: after.remove(0), is_trimmed: text.is_trimmed };
        let empty = one(before_query(text.empty)?);
        Some(Self { before: one(before), instruction, after: one(after), empty })
    }
}

/// Texts that begin and end as texts may.
const TEXTS: [&str; 10] =
    ["a", "", " a ", "\na\n\n", "?", ":", "7", "\u{301}e\u{301}", "\u{4e2d}", "\t\u{1f680}\u{a0}"];

impl Prompt {
    /// The pieces of a prompt whose ids are those of the whole text: it is cut at special tokens, which are no part of
    /// other tokens, and before the space after a colon, where no word goes on. An instruction that cannot be cut so has
    /// no place in it.
    ///
    /// # Errors
    /// If pieces have other ids than the whole for one of some texts.
    pub fn of_text(tokenizer: &Tokenizer, text: &PromptText) -> Result<Self, TokenizerError> {
        let PromptText { is_trimmed, instructed, .. } = *text;
        let parts = [text.before, text.between, text.after];
        let [mut before, mut between, mut after] = parts.map(|part| pieces(tokenizer, part));
        let before_query = before.pop().unwrap_or_default();
        let after_query = if between.is_empty() { String::new() } else { between.remove(0) };
        let before_document = between.pop().unwrap_or_default();
        let after_document = if after.is_empty() { String::new() } else { after.remove(0) };
        let [before, between, after] = [before, between, after].map(one);
        let instructed = instructed.and_then(|text| Instructed::of_text(tokenizer, &text, &before_query));
        let mut prompt = Self {
            before,
            instructed,
            query: Around { before: before_query, after: after_query, is_trimmed },
            between,
            document: Around { before: before_document, after: after_document, is_trimmed },
            after,
            cut: Some(Cut::End),
        };
        for (query, document) in TEXTS.into_iter().flat_map(|one| TEXTS.map(|other| (one, other))) {
            if !prompt.is_as_whole(tokenizer, None, [query, document])? {
                let reason = format!("{query:?} and {document:?} have other tokens alone than in the prompt");
                return Err(TokenizerError::Prompt { reason });
            }
        }
        if let Some(place) = &prompt.instructed
            && !prompt.takes_all(place, tokenizer)?
        {
            prompt.instructed = None;
        }
        Ok(prompt)
    }

    /// Whether instructions and queries have the ids of the whole text.
    fn takes_all(&self, place: &Instructed, tokenizer: &Tokenizer) -> Result<bool, TokenizerError> {
        for piece in TEXTS.map(|instruction| place.piece(instruction)) {
            if tokenizer.encode_plain(&piece)? != tokenizer.encode(&piece)? {
                return Ok(false);
            }
        }
        for (instruction, query) in TEXTS.into_iter().flat_map(|one| TEXTS.map(|other| (one, other))) {
            if !self.is_as_whole(tokenizer, Some(instruction), [query, "a"])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Compares the ids of pieces with those of the whole.
    fn is_as_whole(
        &self,
        tokenizer: &Tokenizer,
        instruction: Option<&str>,
        [query, document]: [&str; 2],
    ) -> Result<bool, TokenizerError> {
        let pieces = self.all_pieces(instruction, query, document);
        let mut ids = Vec::new();
        for piece in &pieces {
            ids.extend_from_slice(&tokenizer.encode(piece)?);
        }
        Ok(*tokenizer.encode(&pieces.concat())? == *ids)
    }

    fn all_pieces(&self, instruction: Option<&str>, query: &str, document: &str) -> Vec<String> {
        let mut all = match (&self.instructed, instruction) {
            (Some(place), Some(instruction)) => match place.piece(instruction) {
                piece if piece.is_empty() => place.empty.clone(),
                piece => [&*place.before, &[piece], &*place.after].concat(),
            },
            (None, _) | (_, None) => self.before.clone(),
        };
        all.push(self.query.text(query));
        all.extend_from_slice(&self.between);
        all.push(self.document.text(document));
        all.extend_from_slice(&self.after);
        all
    }

    /// The prompt as one text, with these in the places of the query and of the document.
    pub fn text(&self, query: &str, document: &str) -> String {
        self.all_pieces(None, query, document).concat()
    }

    /// The prompt as one text with a request's instruction.
    pub fn instructed_text(&self, instruction: &str, query: &str, document: &str) -> String {
        self.all_pieces(Some(instruction), query, document).concat()
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
        let instructed = |place: &Instructed| -> Result<InstructedIds, TokenizerError> {
            let [before, after, empty] = [&place.before, &place.after, &place.empty].map(|part| ids(part));
            Ok(InstructedIds { before: before?, after: after?, empty: empty? })
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
            instructed: self.instructed.as_ref().map(instructed).transpose()?,
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
