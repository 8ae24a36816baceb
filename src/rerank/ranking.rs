//! From scores to a ranking: score descending, index ascending; the sigmoid in f32.

use super::ScoreForm;
use thiserror::Error;

/// A candidate in a ranking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// The candidate's index in the request.
    pub index: usize,
    /// Its score, in the requested form.
    pub score: f32,
}

/// A score that cannot be ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the score of document {index} is not a number")]
pub struct RankError {
    /// The candidate's index in the request.
    pub index: usize,
}

/// Orders candidates by logit and returns the best `top_n` (all if none) in the requested form. The order is by logit,
/// so that saturated sigmoids do not create ties.
///
/// # Errors
/// A NaN is an error and never ranked.
pub fn rank(logits: &[f32], form: ScoreForm, top_n: Option<usize>) -> Result<Vec<Ranked>, RankError> {
    let mut order = order(logits)?;
    order.truncate(top_n.unwrap_or(usize::MAX));
    Ok(order
        .into_iter()
        .map(|index| {
            let score = match form {
                ScoreForm::Probability => sigmoid(logits[index]),
                ScoreForm::Logit => logits[index],
            };
            Ranked { index, score }
        })
        .collect())
}

/// Indexes of `logits` from best to worst: logit descending, index ascending.
///
/// # Errors
/// A NaN is an error and never ranked.
pub fn order(logits: &[f32]) -> Result<Vec<usize>, RankError> {
    if let Some(index) = logits.iter().position(|logit| logit.is_nan()) {
        return Err(RankError { index });
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let descending = |a: usize, b: usize| logits[b].partial_cmp(&logits[a]).expect("no logit is NaN");
    order.sort_by(|&a, &b| descending(a, b).then(a.cmp(&b)));
    Ok(order)
}

/// The scores of a top-k answer: the primary's for the fallback's best `k`, which come first, and the fallback's for
/// the others.
///
/// `fallback` is on the primary's scale; both are complete and without NaN.
pub fn top_k_scores(fallback: &[f32], primary: &[f32], k: usize) -> Vec<f32> {
    let best = order(fallback).expect("a lane's scores are finite");
    let block: Vec<(usize, f32)> = best.into_iter().take(k).map(|place| (place, primary[place])).collect();
    let mut scores = fallback.to_vec();
    merge_top_k(&mut scores, &block);
    scores
}

/// Replaces the fallback's logits of the best candidates by the primary's, so that these come first. If a remaining
/// fallback logit would outrank the lowest of them, all remaining ones are shifted down together, which keeps their
/// order and keeps scores descending.
///
/// `scores` holds the fallback's logits on the primary's scale and is changed in place; `block` pairs each index that
/// the primary scored with its logit.
pub fn merge_top_k(scores: &mut [f32], block: &[(usize, f32)]) {
    let Some(lowest) = block.iter().map(|&(_, logit)| logit).min_by(f32::total_cmp) else { return };
    let mut leads = vec![false; scores.len()];
    for &(index, logit) in block {
        leads[index] = true;
        scores[index] = logit;
    }
    let rest = || (0..leads.len()).filter(|&index| !leads[index]);
    let Some(highest) = rest().map(|index| scores[index]).max_by(f32::total_cmp) else { return };
    let excess = highest - lowest;
    if excess >= 0.0 {
        // A margin of 0.1%, so that f32 rounding creates no tie with the block.
        let drop = excess + 1e-3 * (1.0 + lowest.abs());
        for index in rest().collect::<Vec<_>>() {
            scores[index] -= drop;
        }
    }
}

/// The logistic function in f32, without overflow.
pub fn sigmoid(logit: f32) -> f32 {
    if logit >= 0.0 {
        1.0 / (1.0 + (-logit).exp())
    } else {
        let e = logit.exp();
        e / (1.0 + e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_earlier_candidate() {
        assert_eq!(order(&[1.0, 2.0, 1.0, 2.0]).unwrap(), [1, 3, 0, 2]);
    }

    #[test]
    fn a_nan_is_an_error_and_names_the_document() {
        assert_eq!(rank(&[0.0, f32::NAN], ScoreForm::Logit, None), Err(RankError { index: 1 }));
    }

    #[test]
    fn saturated_probabilities_keep_the_logits_order() {
        let ranked = rank(&[40.0, 50.0], ScoreForm::Probability, None).unwrap();
        assert_eq!(ranked.iter().map(|r| r.index).collect::<Vec<_>>(), [1, 0]);
        assert_eq!(ranked[0].score, 1.0);
    }

    #[test]
    fn the_best_few_come_in_the_form_that_was_asked_for() {
        let logits = [-2.0, 1.0, 0.0];
        let ranked = |form, top_n| rank(&logits, form, top_n).unwrap();
        let row = |index, score| Ranked { index, score };
        assert_eq!(ranked(ScoreForm::Logit, Some(2)), [row(1, 1.0), row(2, 0.0)]);
        // 1 / (1 + exp(-x)) of 1, 0 and -2.
        let expected = [row(1, 0.731_058_6), row(2, 0.5), row(0, 0.119_202_92)];
        assert_eq!(ranked(ScoreForm::Probability, None), expected);
        assert_eq!(ranked(ScoreForm::Probability, Some(9)), expected);
    }

    #[test]
    fn what_the_primary_did_not_score_moves_down_together_and_no_further_than_it_must() {
        for (fallback, block, expected) in [
            // Nothing outranks the block: all stay where they are.
            (vec![1.0, 2.0, 0.5], vec![(1, 1.5)], vec![1.0, 1.5, 0.5]),
            // 5 - 3 and a thousandth of 1 + 3.
            (vec![5.0, 4.0, 1.0], vec![(1, 3.0)], vec![2.996, 3.0, -1.004]),
            // A tie would go to the earlier candidate, which the primary did not score.
            (vec![2.0, 3.0], vec![(1, 2.0)], vec![1.997, 2.0]),
            (vec![0.0, 3.0], vec![(1, -1.0)], vec![-1.002, -1.0]),
            (vec![7.0, 3.0], vec![(0, 1.0), (1, 2.0)], vec![1.0, 2.0]),
            (vec![7.0, 3.0], vec![], vec![7.0, 3.0]),
        ] {
            let mut merged: Vec<f32> = fallback.clone();
            merge_top_k(&mut merged, &block);
            let is_close = |(found, expected): (&f32, &f32)| (found - expected).abs() < 1e-5;
            assert!(merged.iter().zip(&expected).all(is_close), "{fallback:?} {block:?}: {merged:?}");
        }
        assert_eq!(top_k_scores(&[5.0, 4.0, 6.0], &[1.0, 2.0, 3.0], 0), [5.0, 4.0, 6.0]);
        assert_eq!(top_k_scores(&[5.0, 4.0, 6.0], &[1.0, 2.0, 9.0], 1), [5.0, 4.0, 9.0]);
        assert_eq!(top_k_scores(&[5.0, 4.0, 6.0], &[1.0, 2.0, 3.0], 3), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn an_empty_request_ranks_to_nothing() {
        assert!(rank(&[], ScoreForm::Probability, Some(3)).unwrap().is_empty());
    }

    #[test]
    fn infinities_have_probabilities() {
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (1.0, 0.0));
        assert_eq!((sigmoid(f32::MAX), sigmoid(f32::MIN)), (1.0, 0.0));
    }

    #[test]
    fn a_small_probability_is_not_0_as_long_as_f32_has_one() {
        // exp(-100) is 3.8e-44, and exp(100) is beyond f32.
        assert!(sigmoid(-100.0) > 0.0 && sigmoid(-100.0) < 1e-43);
    }

    proptest! {
        #[test]
        fn the_primary_s_block_leads_and_both_parts_keep_their_order(
            fallback in prop::collection::vec(-15f32..15.0, 1..60),
            primary in prop::collection::vec(-15f32..15.0, 0..60),
        ) {
            let best: Vec<usize> = order(&fallback).unwrap().into_iter().take(primary.len()).collect();
            let block: Vec<(usize, f32)> = best.iter().copied().zip(primary).collect();
            let mut merged = fallback.clone();
            merge_top_k(&mut merged, &block);
            let ranked = order(&merged).unwrap();
            let (lead, rest) = ranked.split_at(block.len());
            let mut expected_lead = best.clone();
            let logit = |i: usize| block.iter().find(|b| b.0 == i).unwrap().1;
            expected_lead.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
            prop_assert_eq!(lead, &expected_lead[..]);
            prop_assert!(rest.iter().all(|i| !best.contains(i)));
        }
    }
}
