//! The training loss: the student's scores of a list compared with the teacher's.

/// The weights of the parts.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct LossWeights {
    /// MarginMSE (Hofstätter et al. 2020) over all pairs of a list: half the mean squared error of the difference between
    /// two candidates, which equals the variance of the error.
    pub margin: f64,
    /// ListNet (Cao et al. 2007): the KL divergence of the student's softmax over the list from the teacher's.
    pub list: f64,
    /// The mean squared error, which keeps the student on the teacher's scale across lists.
    pub point: f64,
}

impl Default for LossWeights {
    fn default() -> Self {
        Self { margin: 0.1, list: 1.0, point: 0.02 }
    }
}

/// The loss of one list and its derivative with respect to each of the student's logits.
pub fn loss(student: &[f32], teacher: &[f32], weights: LossWeights) -> (f64, Vec<f32>) {
    let n = student.len() as f64;
    let errors: Vec<f64> = student.iter().zip(teacher).map(|(&s, &t)| f64::from(s) - f64::from(t)).collect();
    let mean = errors.iter().sum::<f64>() / n;
    let variance = errors.iter().map(|error| (error - mean).powi(2)).sum::<f64>() / n;
    let square = errors.iter().map(|error| error * error).sum::<f64>() / n;
    let (p, q) = (log_softmax(teacher), log_softmax(student));
    let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
    let slope = |place: usize| {
        let error = errors[place];
        let margin = weights.margin * 2.0 * (error - mean) / n;
        let point = weights.point * 2.0 * error / n;
        (margin + point + weights.list * (q[place].exp() - p[place].exp())) as f32
    };
    let loss = weights.margin * variance + weights.list * divergence + weights.point * square;
    (loss, (0..student.len()).map(slope).collect())
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let apart = |&logit: &f32| f64::from(logit) - f64::from(largest);
    let sum: f64 = logits.iter().map(|logit| apart(logit).exp()).sum();
    logits.iter().map(|logit| apart(logit) - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derivative_matches_finite_differences() {
        let student = [0.3f32, -1.2, 2.5, 0.0, -4.0];
        let teacher = [5.0f32, -11.0, 3.0, -2.0, -2.5];
        let weights = LossWeights { margin: 0.7, list: 1.3, point: 0.2 };
        let (_, slopes) = loss(&student, &teacher, weights);
        for place in 0..student.len() {
            let at = |step: f32| {
                let mut moved = student;
                moved[place] += step;
                loss(&moved, &teacher, weights).0
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((slope - f64::from(slopes[place])).abs() < 1e-3, "{place}: {slope}, {}", slopes[place]);
        }
    }

    #[test]
    fn a_perfect_student_has_no_loss() {
        let logits = [9.0, -11.0, 0.5];
        let (loss, slopes) = loss(&logits, &logits, LossWeights::default());
        assert!(loss.abs() < 1e-12 && slopes.iter().all(|slope| slope.abs() < 1e-6));
    }
}
