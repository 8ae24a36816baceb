//! Reads the text to distil from: queries and passages, from several file formats.

use crate::base::{FileError, each_line};
use serde::Deserialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A query or a passage with its source. Queries are drawn from the sources in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The first column of a TSV, or the file's name.
    pub source: String,
    /// Never empty.
    pub text: String,
}

/// A line of JSON: a BEIR entry or a logged request.
#[derive(Deserialize)]
struct Entry {
    title: Option<String>,
    text: Option<String>,
    query: Option<String>,
    #[serde(default)]
    documents: Vec<Document>,
}

/// A document of a logged request.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Plain(String),
    Fields { text: String },
}

/// The texts to read from a logged request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `query`.
    Queries,
    /// `documents`.
    Passages,
}

/// Reads files and drops repeated texts. A file `*.jsonl` has one object per line: a BEIR entry (`title` and `text`) or a
/// logged request (`query` and `documents`). Any other file has lines with a source, a tab and a text, or only a text.
///
/// # Errors
/// [`FileError`], which names the file and the line.
pub fn read(files: &[PathBuf], kind: Kind) -> Result<Vec<Text>, FileError> {
    let mut seen = HashSet::new();
    let mut texts = Vec::new();
    for path in files {
        let name = name_of(path);
        let is_json = path.extension().is_some_and(|extension| extension == "jsonl");
        each_line(path, |_, line| {
            let found = if is_json { of_json(line, kind)? } else { vec![line.to_owned()] };
            for whole in found {
                let (source, text) = match whole.split_once('\t') {
                    Some((source, text)) if !is_json => (source, text),
                    _ => (name.as_str(), whole.as_str()),
                };
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                if !text.is_empty() && seen.insert(text.clone()) {
                    texts.push(Text { source: source.to_owned(), text });
                }
            }
            Ok(())
        })?;
    }
    Ok(texts)
}

/// The file's folder and stem: the files of all BEIR sets have the same names.
pub(super) fn name_of(path: &Path) -> String {
    let part = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let stem = part(path.file_stem()).unwrap_or_default();
    match path.parent().and_then(|folder| part(folder.file_name())) {
        Some(folder) => format!("{folder}/{stem}"),
        None => stem,
    }
}

fn of_json(line: &str, kind: Kind) -> Result<Vec<String>, String> {
    let entry: Entry = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if let Some(text) = entry.text {
        return Ok(vec![entry.title.map_or_else(|| text.clone(), |title| format!("{title} {text}"))]);
    }
    match (kind, entry.query) {
        (Kind::Queries, Some(query)) => Ok(vec![query]),
        (Kind::Passages, Some(_)) => {
            let text = |document| match document {
                Document::Plain(text) | Document::Fields { text } => text,
            };
            Ok(entry.documents.into_iter().map(text).collect())
        }
        (_, None) => Err("neither `text` nor `query` is present".to_owned()),
    }
}

/// Splits a passage into sentences: after `.`, `?` or `!` before a capital letter or a digit. A sentence shorter than
/// `bytes_min` is joined with the next.
pub fn sentences(passage: &str, bytes_min: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for (place, _) in passage
        .match_indices(". ")
        .chain(passage.match_indices("? "))
        .chain(passage.match_indices("! "))
        .collect::<std::collections::BTreeMap<_, _>>()
    {
        let end = place + 1;
        let next = passage[end + 1..].chars().next();
        if end - start >= bytes_min && next.is_some_and(|c| c.is_uppercase() || c.is_ascii_digit()) {
            pieces.push(passage[start..end].trim());
            start = end + 1;
        }
    }
    let rest = passage[start..].trim();
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::write;

    #[test]
    fn every_format_is_read_and_repeated_texts_are_dropped() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            write(place.path().join(name), text).unwrap();
            place.path().join(name)
        };
        let plain = file("a.tsv", "web\twhat  is it\nwho\n\nweb\twhat is it\n");
        let set = file("b.jsonl", "{\"_id\": \"1\", \"title\": \"T\", \"text\": \"x\"}\n");
        let log =
            file("c.jsonl", "{\"query\": \"q\", \"documents\": [\"d\", {\"text\": \"e\"}], \"top_n\": 1}\n");
        let of = |kind| {
            let texts = read(&[plain.clone(), set.clone(), log.clone()], kind).unwrap();
            texts.into_iter().map(|text| text.text).collect::<Vec<_>>()
        };
        assert_eq!(of(Kind::Queries), ["what is it", "who", "T x", "q"]);
        assert_eq!(of(Kind::Passages), ["what is it", "who", "T x", "d", "e"]);
        assert_eq!(read(&[plain], Kind::Queries).unwrap()[0].source, "web");
    }

    #[test]
    fn an_error_names_the_line() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.jsonl");
        write(&path, "{\"text\": \"a\"}\n{\"title\": \"b\"}\n").unwrap();
        let error = read(&[path], Kind::Queries).unwrap_err().to_string();
        assert!(error.ends_with("x.jsonl:2: neither `text` nor `query` is present"), "{error}");
    }

    #[test]
    fn sentences_end_before_capitals() {
        let text = "It grew by 3.5 percent, e.g. in Rome. Then it fell! Why? 12 reasons.";
        assert_eq!(
            sentences(text, 1),
            ["It grew by 3.5 percent, e.g. in Rome.", "Then it fell!", "Why?", "12 reasons."]
        );
        assert_eq!(
            sentences(text, 20),
            ["It grew by 3.5 percent, e.g. in Rome.", "Then it fell! Why? 12 reasons."]
        );
        assert!(sentences("  ", 1).is_empty());
    }
}
