//! Mixes a reranker's scores with the first stage's (Fox and Shaw 1994, weighted CombSUM). Both are scaled to 0..1
//! within a query. The weight is tuned on sets that are not reported.

/// The number of steps of the weight, from 0 to 1.
const STEPS: u8 = 20;

/// `weight` times the reranker's scores plus the rest times the first stage's, each scaled to 0..1 within this query.
pub(super) fn fuse(reranker: &[f32], first_stage: &[f32], weight: f32) -> Vec<f32> {
    let (a, b) = (min_max(reranker), min_max(first_stage));
    a.zip(b).map(|(a, b)| weight * a + (1.0 - weight) * b).collect()
}

/// All 0 if all scores are equal.
fn min_max(scores: &[f32]) -> impl Iterator<Item = f32> {
    let low = scores.iter().copied().fold(f32::INFINITY, f32::min);
    let width = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) - low;
    scores.iter().map(move |score| if width > 0.0 { (score - low) / width } else { 0.0 })
}

/// The weight with the best value; among equals the largest, which trusts the reranker more.
pub(super) fn tune(value: impl Fn(f32) -> f64) -> f32 {
    let weights = (0..=STEPS).map(|step| f32::from(step) / f32::from(STEPS));
    let valued = weights.map(|weight| (weight, value(weight)));
    valued.max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are weights").0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_count_from_nothing_to_one() {
        assert_eq!(fuse(&[-10.0, 10.0, 0.0], &[1.0, 3.0, 5.0], 0.5), [0.0, 0.75, 0.75]);
        assert_eq!(fuse(&[2.0, 2.0], &[1.0, 3.0], 0.25), [0.0, 0.75]);
        assert!(fuse(&[], &[], 0.5).is_empty());
    }

    #[test]
    fn the_best_weight_is_found() {
        assert_eq!(tune(|weight| -f64::from((weight - 0.7).abs())), 0.7);
        assert_eq!(tune(|_| 1.0), 1.0);
    }
}
