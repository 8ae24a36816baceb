//! A judged set in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels.tsv`, and a TREC run of the first stage,
//! `bm25.run`.

use crate::base::{FileError, each_line};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Queries with judgements, and the candidates of a first stage.
#[derive(Debug)]
pub struct Judged {
    /// Each document's title and text, by id.
    pub documents: HashMap<String, String>,
    /// Each query's text, by id.
    pub queries: HashMap<String, String>,
    /// Grades, by query and document.
    pub grades: HashMap<String, HashMap<String, i32>>,
    /// The first stage's candidates of each judged query, best first.
    pub run: BTreeMap<String, Vec<Candidate>>,
}

/// A candidate of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub document: String,
    /// The first stage's score.
    pub score: f32,
}

/// Why a set cannot be used.
#[derive(Debug, Error)]
pub enum SetError {
    /// A file cannot be read, or a line is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// The run names a query or document that is missing.
    #[error("{}: {kind} `{id}` of the run is not in the set", .path.display())]
    Unknown {
        /// The set's folder.
        path: PathBuf,
        /// `query` or `document`.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// No query has both judgements and candidates.
    #[error("{}: no query has both judgements and candidates", .path.display())]
    Empty {
        /// The set's folder.
        path: PathBuf,
    },
}

/// A line of `corpus.jsonl` or `queries.jsonl`.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

impl Judged {
    /// Reads a set's folder.
    ///
    /// # Errors
    /// [`SetError`], which names the file and the line.
    pub fn read(folder: &Path) -> Result<Self, SetError> {
        let documents = texts(&folder.join("corpus.jsonl"))?;
        let queries = texts(&folder.join("queries.jsonl"))?;
        let mut grades: HashMap<String, HashMap<String, i32>> = HashMap::new();
        each_line(&folder.join("qrels.tsv"), |number, line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [query, .., document, grade] = fields[..] else {
                return Err("a judgement is a query, a document and a grade between tabs".to_owned());
            };
            match grade.trim().parse() {
                Ok(grade) => {
                    grades.entry(query.to_owned()).or_default().insert(document.to_owned(), grade);
                    Ok(())
                }
                // BEIR's header line.
                Err(_) if number == 1 && query == "query-id" => Ok(()),
                Err(_) => Err(format!("`{grade}` is no grade")),
            }
        })?;
        let mut seen = HashSet::new();
        let mut run: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
        each_line(&folder.join("bm25.run"), |_, line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [query, _, document, _, score, _] = fields[..] else {
                return Err("a run's line is `query Q0 document rank score tag`".to_owned());
            };
            let score = score.parse().ok().filter(|score: &f32| score.is_finite());
            let score = score.ok_or_else(|| format!("`{}` is no score", fields[4]))?;
            if !seen.insert((query.to_owned(), document.to_owned())) {
                return Err(format!("document `{document}` is there twice for query `{query}`"));
            }
            run.entry(query.to_owned()).or_default().push(Candidate { document: document.to_owned(), score });
            Ok(())
        })?;
        run.retain(|query, _| grades.contains_key(query));
        for found in run.values_mut() {
            found.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| b.document.cmp(&a.document)));
        }
        let unknown = |kind, id: &String| SetError::Unknown { path: folder.to_owned(), kind, id: id.clone() };
        for (query, found) in &run {
            if !queries.contains_key(query) {
                return Err(unknown("query", query));
            }
            if let Some(missing) = found.iter().find(|found| !documents.contains_key(&found.document)) {
                return Err(unknown("document", &missing.document));
            }
        }
        if run.is_empty() {
            return Err(SetError::Empty { path: folder.to_owned() });
        }
        Ok(Self { documents, queries, grades, run })
    }
}

fn texts(path: &Path) -> Result<HashMap<String, String>, FileError> {
    let mut texts = HashMap::new();
    each_line(path, |_, line| {
        let Entry { id, title, text } = serde_json::from_str(line).map_err(|error| error.to_string())?;
        texts.insert(id, format!("{title} {text}").trim().to_owned());
        Ok(())
    })?;
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::write;

    const FILES: [(&str, &str); 4] = [
        (
            "corpus.jsonl",
            "{\"_id\": \"d1\", \"title\": \"A title\", \"text\": \"and a text\"}\n{\"_id\": \"d2\", \"text\": \"b\"}\n",
        ),
        (
            "queries.jsonl",
            "{\"_id\": \"1\", \"text\": \"what\"}\n{\"_id\": \"2\", \"text\": \"nobody has judged\"}\n",
        ),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\n1\td1\t2\n1\td2\t0\n"),
        ("bm25.run", "1 Q0 d2 2 0.5 x\n1 Q0 d1 1 1.5 x\n2 Q0 d1 1 1.5 x\n3 Q0 d1 1 1.5 x\n"),
    ];

    fn read(change: Option<(&str, &str)>) -> Result<Judged, String> {
        let place = tempfile::tempdir().unwrap();
        for (file, text) in FILES.into_iter().chain(change) {
            write(place.path().join(file), text).unwrap();
        }
        let here = place.path().display().to_string();
        Judged::read(place.path()).map_err(|error| error.to_string().replace(&here, ""))
    }

    #[test]
    fn a_set_is_read_with_its_run_in_the_order_of_scores() {
        let set = read(None).unwrap();
        assert_eq!(set.documents["d1"], "A title and a text");
        assert_eq!(set.grades["1"]["d1"], 2);
        let found = [("d1", 1.5), ("d2", 0.5)];
        let found = found.map(|(document, score)| Candidate { document: document.to_owned(), score });
        assert_eq!(set.run, [("1".to_owned(), found.to_vec())].into());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let rows = [
            ("corpus.jsonl", "{\"_id\": \"d1\"}\n", "/corpus.jsonl:1: missing field `text`"),
            ("qrels.tsv", "1\td1\t1\n1\td2\tx\n", "/qrels.tsv:2: `x` is no grade"),
            ("qrels.tsv", "1 d1 1\n", "/qrels.tsv:1: a judgement is"),
            ("qrels.tsv", "", ": no query has both"),
            ("bm25.run", "1 Q0 d1 1\n", "/bm25.run:1: a run's line is"),
            ("bm25.run", "1 Q0 d1 1 2 x\n1 Q0 d1 2 1 x\n", "/bm25.run:2: document `d1` is there twice"),
            ("qrels.tsv", "1\td1\tx\n", "/qrels.tsv:1: `x` is no grade"),
            ("bm25.run", "1 Q0 d9 1 1.0 x\n", ": document `d9` of the run"),
            ("bm25.run", "1 Q0 d1 1 NaN x\n", "/bm25.run:1: `NaN` is no score"),
            ("queries.jsonl", "", ": query `1` of the run"),
        ];
        for (file, text, expected) in rows {
            let error = read(Some((file, text))).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(Judged::read(Path::new("/nowhere")).unwrap_err().to_string().contains("corpus.jsonl"));
    }
}
