//! A sample of pairs, by which a coarse precision is tested: it may be used if it orders the sample as a finer one does.

use crate::model::Model;
use crate::rerank::order;
use crate::token::{Packed, PairReader, ReadError};
use thiserror::Error;

/// Questions, each with a passage that answers it, one per line.
const SAMPLE: &str = include_str!("sample.tsv");
/// Passages of each ranking that are compared.
const DEPTH: usize = 10;

/// A model whose tokenizer cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the model's tokenizer cannot read the sample: {0}")]
pub struct SampleError(String);

/// A batch for each question of the sample: the question paired with every passage of the sample.
///
/// # Errors
/// [`SampleError`].
pub fn sample(model: &Model) -> Result<Vec<Packed>, SampleError> {
    let tokenizer = model.read_tokenizer().map_err(|error| SampleError(error.to_string()))?;
    let reader = PairReader::new(tokenizer, model.pair_tokens_max);
    let lines =
        || SAMPLE.lines().map(|line| line.split_once('\t').expect("a line has a question and a passage"));
    let list = |query: &str| {
        let mut batch = Packed::default();
        lines().try_for_each(|(_, passage)| reader.push(query, passage, &mut batch))?;
        Ok(batch)
    };
    let lists = lines().map(|(query, _)| list(query)).collect::<Result<_, ReadError>>();
    lists.map_err(|error| SampleError(error.to_string()))
}

/// Among the pairs of first-ten passages by the exact scores: how many have the same order by the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreement {
    kept: u32,
    all: u32,
}

impl Agreement {
    /// The share that must be kept.
    pub const MIN: f64 = 0.9;

    /// Counts a list's pairs. NaN agrees with nothing.
    pub fn count(&mut self, exact: &[f32], found: &[f32]) {
        let Ok(mut first) = order(exact) else {
            self.all += 1;
            return;
        };
        first.truncate(DEPTH);
        let pairs = || {
            first.iter().enumerate().flat_map(|(place, &a)| first[place + 1..].iter().map(move |&b| (a, b)))
        };
        self.kept += pairs().filter(|&(a, b)| found[a] > found[b]).count() as u32;
        self.all += pairs().count() as u32;
    }

    /// The share of pairs in order, 0 to 1.
    pub fn share(self) -> f64 {
        f64::from(self.kept) / f64::from(self.all.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_the_share_of_pairs_in_order() {
        let counted = |exact: &[f32], found: &[f32]| {
            let mut agreement = Agreement::default();
            agreement.count(exact, found);
            (agreement.kept, agreement.all)
        };
        assert_eq!(counted(&[3.0, 2.0, 1.0], &[0.3, 0.2, 0.1]), (3, 3));
        assert_eq!(counted(&[3.0, 2.0, 1.0], &[0.2, 0.3, 0.1]), (2, 3));
        assert_eq!(counted(&[3.0, 2.0, 1.0], &[0.0, 0.0, 0.0]), (0, 3));
        assert_eq!(counted(&[2.0, 1.0], &[f32::NAN, 1.0]), (0, 1));
        assert_eq!(counted(&[f32::NAN, 1.0], &[2.0, 1.0]), (0, 1));
        let exact: Vec<f32> = (0..20).map(|n| n as f32).collect();
        assert_eq!(counted(&exact, &exact), (45, 45));
    }

    #[test]
    fn the_sample_s_lines_are_questions_with_passages() {
        let lists = sample(&Model::bundled()).unwrap();
        assert_eq!(lists.len(), 24);
        assert!(lists.iter().all(|list| list.len() == 24 && list.tokens().0 > 24 * 30));
    }
}
