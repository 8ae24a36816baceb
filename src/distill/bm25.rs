//! BM25 over passages in memory: the first stage that candidates are mined from.

use std::collections::HashMap;

/// Robertson and Zaragoza 2009, with Anserini's parameters.
const K1: f32 = 0.9;
const B: f32 = 0.4;
/// Terms in more than this share of the passages are ignored: they hardly affect the order and take most of the time.
const COMMON: f32 = 0.2;

/// An inverted index.
pub struct Bm25 {
    terms: HashMap<String, u32>,
    /// For each term its passages and weights.
    postings: Vec<Vec<(u32, f32)>>,
    passages: usize,
}

impl Bm25 {
    /// Indexes passages. A passage is identified by its position.
    pub fn new<'a>(passages: impl IntoIterator<Item = &'a str>) -> Self {
        let mut terms = HashMap::new();
        let mut counts: Vec<Vec<(u32, f32)>> = Vec::new();
        let mut lengths = Vec::new();
        for (text, passage) in passages.into_iter().zip(0..) {
            let mut length = 0;
            for term in words(text) {
                length += 1;
                let term = *terms.entry(term).or_insert_with(|| {
                    counts.push(Vec::new());
                    counts.len() as u32 - 1
                });
                match counts[term as usize].last_mut() {
                    Some((last, count)) if *last == passage => *count += 1.0,
                    _ => counts[term as usize].push((passage, 1.0)),
                }
            }
            lengths.push(length as f32);
        }
        let n = lengths.len() as f32;
        let mean = lengths.iter().sum::<f32>() / n.max(1.0);
        for list in &mut counts {
            let df = list.len() as f32;
            let idf =
                if df > COMMON * n && n > 10.0 { 0.0 } else { (1.0 + (n - df + 0.5) / (df + 0.5)).ln() };
            for (passage, count) in list.iter_mut() {
                let length = lengths[*passage as usize] / mean;
                *count = idf * *count * (K1 + 1.0) / (*count + K1 * (1.0 - B + B * length));
            }
            if idf == 0.0 {
                list.clear();
            }
        }
        Self { terms, postings: counts, passages: lengths.len() }
    }

    /// The best passages for a query, at most `depth`, best first; ties by position.
    pub fn search(&self, query: &str, depth: usize) -> Vec<u32> {
        let mut scores = vec![0.0f32; self.passages];
        let mut found = Vec::new();
        for term in words(query) {
            let Some(&term) = self.terms.get(&term) else { continue };
            for &(passage, weight) in &self.postings[term as usize] {
                let score = &mut scores[passage as usize];
                if *score == 0.0 {
                    found.push(passage);
                }
                *score += weight;
            }
        }
        let better = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
        if found.len() > depth && depth > 0 {
            found.select_nth_unstable_by(depth - 1, better);
        }
        found.truncate(depth);
        found.sort_unstable_by(better);
        found
    }
}

/// Runs of letters and digits, in lower case.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_terms_count_for_more_and_long_passages_for_less() {
        let passages = ["the cat sat", "the dog sat", "the dog sat on a very long and winding road", "a fox"];
        let index = Bm25::new(passages);
        assert_eq!(index.search("Dog?", 10), [1, 2]);
        assert_eq!(index.search("the CAT", 10), [0, 1, 2]);
        assert_eq!(index.search("the cat", 1), [0]);
        assert!(index.search("nothing", 10).is_empty());
        assert!(Bm25::new([]).search("the cat", 10).is_empty());
    }
}
