//! nDCG of logits on a judged set, and calibration of the student's logits to the teacher's scale.

use crate::backend::Scorer;
use crate::eval::{CacheError, Candidate, Judged, List, Measure};
use crate::model::Calibration;
use crate::rerank::{order, top_k_scores};
use crate::token::{Packed, PairReader};

/// Depth of nDCG.
const DEPTH: usize = 10;

/// A scorer's logits for every list.
///
/// # Errors
/// [`CacheError`] of tokenising or scoring.
pub(super) fn score(
    lists: &[List],
    scorer: &mut dyn Scorer,
    reader: &PairReader,
) -> Result<Vec<Vec<f32>>, CacheError> {
    let mut batch = Packed::default();
    let one = |list: &List| {
        batch.clear();
        list.documents.iter().try_for_each(|document| reader.push(&list.query, document, &mut batch))?;
        let mut logits = vec![0.0; batch.len()];
        scorer.score(&batch, &mut logits)?;
        Ok(logits)
    };
    lists.iter().map(one).collect()
}

/// Positions from best to worst. The scores must be finite.
fn ordered(scores: &[f32]) -> Vec<usize> {
    order(scores).expect("scores are finite")
}

/// Mean nDCG@10 of the run's candidates, ordered by these scores.
pub(super) fn mean_ndcg(set: &Judged, scores: &[Vec<f32>]) -> f64 {
    let one = |((query, candidates), scores): ((&String, &Vec<Candidate>), &Vec<f32>)| {
        let ranked: Vec<&str> =
            ordered(scores).into_iter().map(|place| candidates[place].document.as_str()).collect();
        Measure::Ndcg(DEPTH).of(&ranked, &set.grades[query])
    };
    set.run.iter().zip(scores).map(one).sum::<f64>() / set.run.len() as f64
}

/// The scores of a top-k answer: the teacher's logits for the student's best `k`, which come first, and the student's
/// calibrated logits for the others.
pub(super) fn top_k(teacher: &[f32], student: &[f32], calibration: Calibration, k: usize) -> Vec<f32> {
    let student: Vec<f32> = student.iter().map(|&logit| calibration.apply(logit)).collect();
    top_k_scores(&student, teacher, k)
}

/// The least-squares line from the student's logits to the teacher's. Its slope is at least 0.001: a falling or flat line, as
/// of an untrained student, would reverse or destroy the order.
pub(super) fn calibrate(student: &[Vec<f32>], teacher: &[Vec<f32>]) -> Calibration {
    let pairs = || {
        student.iter().flatten().zip(teacher.iter().flatten()).map(|(&s, &t)| (f64::from(s), f64::from(t)))
    };
    let n = pairs().count().max(1) as f64;
    let (s_mean, t_mean) =
        (pairs().map(|pair| pair.0).sum::<f64>() / n, pairs().map(|pair| pair.1).sum::<f64>() / n);
    let along: f64 = pairs().map(|(s, t)| (s - s_mean) * (t - t_mean)).sum();
    let across: f64 = pairs().map(|(s, _)| (s - s_mean).powi(2)).sum();
    let slope = if across > 0.0 { (along / across).max(1e-3) } else { 1.0 };
    Calibration { scale: slope as f32, offset: (t_mean - slope * s_mean) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_recovered() {
        let student = vec![vec![-1.0, 0.0], vec![2.0]];
        let teacher = vec![vec![-5.0, -3.0], vec![1.0]];
        assert_eq!(calibrate(&student, &teacher), Calibration { scale: 2.0, offset: -3.0 });
        let falling = vec![vec![5.0, 3.0], vec![-1.0]];
        assert!(calibrate(&student, &falling).scale > 0.0);
        assert_eq!(calibrate(&[], &[]).scale, 1.0);
    }

    #[test]
    fn a_top_k_has_the_teacher_s_scores_for_the_student_s_best() {
        let calibration = Calibration { scale: 2.0, offset: 1.0 };
        let mixed = top_k(&[9.0, 8.0, 7.0], &[0.1, 0.3, 0.2], calibration, 2);
        assert_eq!(mixed, [1.2, 8.0, 7.0]);
    }
}
