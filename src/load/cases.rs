//! The requests of a load: queries with candidates, from a log, from a judged set, or made of random words.

use crate::base::{FileError, each_line};
use crate::eval::Judged;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, LogNormal};
use rand_pcg::Pcg64;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Most candidates of a random request, and most words of a random text. The first is Podium's default limit, the
/// second more than any encoder reads.
const DRAWN_MAX: f64 = 10_000.0;

/// A query and its candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The query.
    pub query: String,
    /// Its candidates; at least one.
    pub documents: Vec<String>,
    /// The task in words, for a model that reads one in its prompt.
    pub instruction: Option<String>,
}

/// Why cases cannot be read.
#[derive(Debug, Error)]
pub enum CasesError {
    /// A file cannot be read, or a line is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file contains no request.
    #[error("{}: there is no request in it", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// A line of a log.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    query: String,
    documents: Vec<Document>,
    instruction: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Plain(String),
    Fields { text: String },
}

/// Reads requests from lines of JSON, `{"query": …, "documents": […]}`. A document is a string or an object with
/// `text`. A line may have an `instruction`.
///
/// # Errors
/// [`CasesError`], which names the file and the line.
pub fn read_cases(path: &Path) -> Result<Vec<Case>, CasesError> {
    let read = |line: &str| {
        let Line { query, documents, instruction } =
            serde_json::from_str(line).map_err(|error| error.to_string())?;
        if query.is_empty() || documents.is_empty() {
            return Err("a request needs a query and a document".to_owned());
        }
        let text = |document| match document {
            Document::Plain(text) | Document::Fields { text } => text,
        };
        Ok(Case { query, documents: documents.into_iter().map(text).collect(), instruction })
    };
    let mut cases = Vec::new();
    each_line(path, |_, line| {
        cases.push(read(line)?);
        Ok(())
    })?;
    match cases.is_empty() {
        true => Err(CasesError::Empty { path: path.to_owned() }),
        false => Ok(cases),
    }
}

/// The judged queries of a set, each with at most `documents_max` of the first stage's best candidates.
pub fn judged_cases(set: &Judged, documents_max: usize) -> Vec<Case> {
    let case = |(query, found): (&String, &Vec<crate::eval::Candidate>)| Case {
        query: set.queries[query].clone(),
        documents: found.iter().take(documents_max).map(|one| set.documents[&one.document].clone()).collect(),
        instruction: None,
    };
    set.run.iter().map(case).collect()
}

/// A lognormal distribution of lengths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Length {
    /// The median.
    pub median: f64,
    /// The standard deviation of the logarithm; 0 makes all lengths equal.
    pub sigma: f64,
}

impl Length {
    /// Parses `20` or `20:0.5`: median and sigma.
    ///
    /// # Errors
    /// The message names the limits.
    /// Names the limits.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (median, sigma) = text.split_once(':').unwrap_or((text, "0"));
        let number = |text: &str, low: f64, high: f64| {
            text.parse().ok().filter(|number| (low..=high).contains(number))
        };
        match (number(median, 1.0, DRAWN_MAX), number(sigma, 0.0, 3.0)) {
            (Some(median), Some(sigma)) => Ok(Self { median, sigma }),
            _ => Err(format!("a median from 1 to {DRAWN_MAX}, or MEDIAN:SIGMA with a sigma from 0 to 3")),
        }
    }

    fn draw(self, random: &mut Pcg64) -> usize {
        let lengths = LogNormal::new(self.median.ln(), self.sigma).expect("a sigma is a number");
        lengths.sample(random).round().clamp(1.0, DRAWN_MAX) as usize
    }
}

impl std::fmt::Display for Length {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} (sigma {})", self.median, self.sigma)
    }
}

/// Makes random requests: the numbers of documents and of words per document are drawn, and queries have six words.
/// Words are plain English, about one token each. Texts do not repeat, so that a server's token cache has no effect.
pub fn drawn_cases(count: usize, documents: Length, words: Length, seed: u64) -> Vec<Case> {
    const WORDS: &str = "time year people way day man thing woman life child world school state family student \
        group country problem hand part place case week company system program question work number night \
        point home water room mother area money story fact month lot right study book eye job word business \
        issue side kind head house service friend father power hour game line end member law car city";
    let vocabulary: Vec<&str> = WORDS.split_whitespace().collect();
    let mut random = Pcg64::seed_from_u64(seed);
    let text = |words: usize, random: &mut Pcg64| {
        let words = (0..words).map(|_| vocabulary[random.random_range(0..vocabulary.len())]);
        words.collect::<Vec<_>>().join(" ")
    };
    let mut case = || {
        let query = text(6, &mut random);
        let documents = documents.draw(&mut random);
        let documents = (0..documents).map(|_| {
            let words = words.draw(&mut random);
            text(words, &mut random)
        });
        Case { query, documents: documents.collect(), instruction: None }
    };
    (0..count).map(|_| case()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Case>, String> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log.jsonl");
        std::fs::write(&path, text).unwrap();
        read_cases(&path).map_err(|error| error.to_string().replace(&*place.path().to_string_lossy(), ""))
    }

    #[test]
    fn a_log_is_read_line_by_line() {
        let plain = r#"{"query": "q", "documents": ["a", {"text": "b"}]}"#;
        let instructed = r#"{"query": "q", "documents": ["a"], "instruction": "judge"}"#;
        let cases = read(&format!("{plain}\n\n{instructed}\n")).unwrap();
        let case = |documents: &[&str], instruction: Option<&str>| Case {
            query: "q".to_owned(),
            documents: documents.iter().map(|text| (*text).to_owned()).collect(),
            instruction: instruction.map(str::to_owned),
        };
        assert_eq!(cases, [case(&["a", "b"], None), case(&["a"], Some("judge"))]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("", "/log.jsonl: there is no request in it"),
            ("{\"query\": \"q\", \"documents\": [\"a\"]}\n{\n", "/log.jsonl:2: EOF"),
            ("{\"query\": \"q\"}", "/log.jsonl:1: missing field `documents`"),
            ("{\"query\": \"q\", \"documents\": [], \"k\": 1}", "/log.jsonl:1: unknown field `k`"),
            ("{\"query\": \"q\", \"documents\": []}", "/log.jsonl:1: a request needs"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(read_cases(Path::new("/nowhere")).unwrap_err().to_string().starts_with("/nowhere: "));
    }

    #[test]
    fn drawn_lengths_have_their_median_and_spread() {
        let (documents, words) = (Length::parse("20:0.5").unwrap(), Length::parse("60").unwrap());
        let cases = drawn_cases(1_000, documents, words, 3);
        let mut counts: Vec<usize> = cases.iter().map(|case| case.documents.len()).collect();
        counts.sort_unstable();
        // The standard error of the median's logarithm is 0.02. One standard deviation (0.5) below and above the median are 12 and 33.
        assert!((19..=21).contains(&counts[500]), "{}", counts[500]);
        assert!((11..=13).contains(&counts[158]) && (30..=36).contains(&counts[842]));
        let words = |text: &String| text.split(' ').count();
        assert!(cases.iter().flat_map(|case| &case.documents).all(|text| words(text) == 60));
        assert_eq!(cases, drawn_cases(1_000, documents, Length { median: 60.0, sigma: 0.0 }, 3));
    }

    #[test]
    fn lengths_that_are_none_are_refused() {
        for text in ["0", "x", "20:", "20:-1", "20:4", "NaN", "20:NaN", "1e9"] {
            assert!(Length::parse(text).is_err(), "{text}");
        }
    }
}
