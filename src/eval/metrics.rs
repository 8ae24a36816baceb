//! Quality measures of a ranking, with the definitions and tie rules of trec_eval.

use std::cmp::Ordering;
use std::collections::HashMap;

/// A measure of one query's ranking. Documents without a judgement count as not relevant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// nDCG at a depth (Järvelin and Kekäläinen 2002). The gain is the grade, at least 0; the ideal ranking is that of
    /// all judged documents.
    Ndcg(usize),
    /// 1 / rank of the first relevant document, 0 if it is below the depth.
    ReciprocalRank(usize),
    /// Average precision: the mean precision at the ranks of all relevant documents.
    AveragePrecision,
    /// The share of all relevant documents within a depth.
    Recall(usize),
}

impl Measure {
    /// Its name in `ir_measures`.
    pub fn name(self) -> String {
        match self {
            Self::Ndcg(depth) => format!("nDCG@{depth}"),
            Self::ReciprocalRank(depth) => format!("RR@{depth}"),
            Self::AveragePrecision => "AP".to_owned(),
            Self::Recall(depth) => format!("R@{depth}"),
        }
    }

    /// Its value for a ranking, best first, between 0 and 1; 0 without relevant documents.
    pub fn of(self, ranked: &[&str], grades: &HashMap<String, i32>) -> f64 {
        let grade = |document: &&str| grades.get(*document).copied().unwrap_or(0).max(0);
        let found = ranked.iter().map(grade);
        let relevant = grades.values().filter(|&&grade| grade > 0).count() as f64;
        if relevant == 0.0 {
            return 0.0;
        }
        match self {
            Self::Ndcg(depth) => {
                let mut ideal: Vec<i32> = grades.values().map(|&grade| grade.max(0)).collect();
                ideal.sort_unstable_by(|a, b| b.cmp(a));
                discounted(found.take(depth)) / discounted(ideal.into_iter().take(depth))
            }
            Self::ReciprocalRank(depth) => found
                .zip(1..)
                .take(depth)
                .find(|(grade, _)| *grade > 0)
                .map_or(0.0, |(_, place)| 1.0 / f64::from(place)),
            Self::AveragePrecision => {
                let hits = found.zip(1..).filter(|(grade, _)| *grade > 0);
                hits.zip(1..).map(|((_, place), hit)| f64::from(hit) / f64::from(place)).sum::<f64>()
                    / relevant
            }
            Self::Recall(depth) => found.take(depth).filter(|&grade| grade > 0).count() as f64 / relevant,
        }
    }
}

fn discounted(gains: impl Iterator<Item = i32>) -> f64 {
    gains.zip(2..).map(|(gain, place)| f64::from(gain) / f64::from(place).log2()).sum()
}

/// A query's documents by falling score. Among equal scores the greater id comes first, as in trec_eval, so that the
/// order of lines has no effect.
pub fn rank<'a>(scored: impl IntoIterator<Item = (&'a str, f32)>) -> Vec<&'a str> {
    let mut scored: Vec<(&str, f32)> = scored.into_iter().collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| b.0.cmp(a.0)));
    scored.into_iter().map(|(document, _)| document).collect()
}

/// Kendall's tau-b between two scorings of the same documents (Kendall 1945): 1 for the same order, -1 for the reverse.
/// None if all scores of one are equal.
pub fn kendall_tau(a: &[f32], b: &[f32]) -> Option<f64> {
    let (mut agree, mut a_differs, mut b_differs) = (0i64, 0u64, 0u64);
    for one in 0..a.len() {
        for other in 0..one {
            let (x, y) = (a[one].total_cmp(&a[other]), b[one].total_cmp(&b[other]));
            a_differs += u64::from(x != Ordering::Equal);
            b_differs += u64::from(y != Ordering::Equal);
            agree += x as i64 * y as i64;
        }
    }
    let pairs = (a_differs as f64 * b_differs as f64).sqrt();
    (pairs > 0.0).then(|| agree as f64 / pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades() -> HashMap<String, i32> {
        [("a", 3), ("b", 2), ("c", 0), ("d", 1), ("e", -1)].map(|(id, grade)| (id.into(), grade)).into()
    }

    /// Computed by hand; `tests/clients/measures.py` compares them with `ir_measures`.
    #[test]
    fn the_values_are_trec_eval_s() {
        let ideal = 3.0 + 2.0 / 3f64.log2() + 0.5;
        let (ndcg, rr, ap) = (Measure::Ndcg(10), Measure::ReciprocalRank(10), Measure::AveragePrecision);
        let rows: [(Measure, &[&str], f64); 14] = [
            (ndcg, &["a", "b", "d"], 1.0),
            (ndcg, &["b", "a"], (2.0 + 3.0 / 3f64.log2()) / ideal),
            (ndcg, &["x", "e", "c", "a"], 3.0 / 5f64.log2() / ideal),
            (Measure::Ndcg(1), &["x", "a"], 0.0),
            (Measure::Ndcg(1), &["b"], 2.0 / 3.0),
            (ndcg, &[], 0.0),
            (rr, &["x", "d", "a"], 0.5),
            (Measure::ReciprocalRank(1), &["x", "d"], 0.0),
            (rr, &["c", "e"], 0.0),
            (ap, &["a", "x", "b"], (1.0 + 2.0 / 3.0) / 3.0),
            (ap, &["a", "b", "d"], 1.0),
            (Measure::Recall(2), &["a", "x", "b"], 1.0 / 3.0),
            (Measure::Recall(10), &["a", "x", "b"], 2.0 / 3.0),
            (Measure::Recall(10), &[], 0.0),
        ];
        for (measure, ranked, expected) in rows {
            let found = measure.of(ranked, &grades());
            assert!(
                (found - expected).abs() < 1e-12,
                "{} {ranked:?}: {found}, not {expected}",
                measure.name()
            );
        }
        assert_eq!(ndcg.of(&["c"], &[("c".to_owned(), 0)].into()), 0.0);
    }

    #[test]
    fn of_equal_scores_the_greater_id_is_first() {
        assert_eq!(rank([("a", 1.0), ("c", 2.0), ("b", 1.0)]), ["c", "b", "a"]);
    }

    #[test]
    fn tau_counts_pairs() {
        assert_eq!(kendall_tau(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]), Some(1.0));
        assert_eq!(kendall_tau(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), Some(-1.0));
        // scipy.stats.kendalltau([1, 2, 2, 3], [1, 3, 2, 4])
        let tau = kendall_tau(&[1.0, 2.0, 2.0, 3.0], &[1.0, 3.0, 2.0, 4.0]).unwrap();
        assert!((tau - 0.912_870_929_175_276_8).abs() < 1e-12, "{tau}");
        assert_eq!(kendall_tau(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(kendall_tau(&[], &[]), None);
    }
}
