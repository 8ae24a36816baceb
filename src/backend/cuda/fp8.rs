//! A model with linear maps in E4M3. Its scales are calibrated on a sample of pairs, and it is used only if it orders the
//! sample's passages as the model in f16 does.

use super::stack::InputMaxima;
use super::{Cuda, LoadError};
use crate::model::{Model, Plan};
use crate::ops::cuda::{Array, Device, DeviceError, Half};
use crate::rerank::order;
use crate::token::{Packed, PairReader, ReadError};
use std::sync::Arc;

/// Among the pairs of f16's first ten passages, the share that must keep their order.
#[cfg(feature = "cuda")]
pub(super) const AGREEMENT_MIN: f64 = 0.9;
/// Passages of each ranking that are compared.
const DEPTH: usize = 10;
/// Questions, each with a passage that answers it, one per line.
const SAMPLE: &str = include_str!("sample.tsv");

/// A batch for each question of the sample: the question paired with every passage of the sample.
///
/// # Errors
/// [`LoadError::Shape`] if the model's tokenizer cannot be used.
pub fn sample(model: &Model) -> Result<Vec<Packed>, LoadError> {
    let unfit =
        |why: String| LoadError::Shape(format!("the model's tokenizer cannot read the sample: {why}"));
    let tokenizer = model.read_tokenizer().map_err(|error| unfit(error.to_string()))?;
    let reader = PairReader::new(Arc::new(tokenizer), model.pair_tokens_max);
    let lines =
        || SAMPLE.lines().map(|line| line.split_once('\t').expect("a line has a question and a passage"));
    let list = |query: &str| {
        let mut batch = Packed::default();
        lines().try_for_each(|(_, passage)| reader.push(query, passage, &mut batch))?;
        Ok(batch)
    };
    lines()
        .map(|(query, _)| list(query))
        .collect::<Result<_, ReadError>>()
        .map_err(|error| unfit(error.to_string()))
}

impl<D: Device> Cuda<D> {
    /// Makes a copy of this model, which is in f16, with maps in E4M3 on another queue of the same device. Returns it with
    /// the share of pairs, 0 to 1, that it orders as this model does.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn to_fp8(
        &mut self,
        device: D,
        plan: &Plan,
        lists: &[Packed],
        tokens_max: u64,
    ) -> Result<(Self, f64), LoadError> {
        let mut maxima = vec![InputMaxima::default(); plan.blocks.len() - 1];
        for list in lists {
            self.submit_batch(list, Some(&mut maxima))?;
            self.collect_batch(&mut vec![0.0; list.len()])?;
        }
        let mut fp8 = Self::load(device, plan, (Half::F16, Some(&maxima)), tokens_max)?.warmed()?;
        let (mut kept, mut all) = (0, 0);
        for list in lists {
            let (mut exact, mut found) = (vec![0.0; list.len()], vec![0.0; list.len()]);
            self.run_all(list, &mut exact)?;
            fp8.run_all(list, &mut found)?;
            let (kept_here, all_here) = agreement(&exact, &found);
            (kept, all) = (kept + kept_here, all + all_here);
        }
        Ok((fp8, f64::from(kept) / f64::from(all.max(1))))
    }
}

/// An observer that raises the maximum of each map's input, in the order of the maps, to that of the observed arrays
/// (`[tokens, width]`).
pub(super) fn record_maxima<'a, D: Device>(
    device: &'a D,
    half: Half,
    tokens: usize,
    maxima: &'a mut [InputMaxima],
) -> impl FnMut(&Array<D>, usize) -> Result<(), DeviceError> + 'a {
    let mut places = maxima.iter_mut().flatten();
    move |array, width| {
        let mut bytes = vec![0; 2 * tokens * width];
        array.read(device, &mut bytes)?;
        let place = places.next().expect("a layer has four maps");
        *place = half.floats(&bytes).fold(*place, |largest, value| largest.max(value.abs()));
        Ok(())
    }
}

/// Among the pairs of the first ten by `exact`: how many have the same order by `found`, and how many there are. NaN agrees
/// with nothing.
fn agreement(exact: &[f32], found: &[f32]) -> (u32, u32) {
    let Ok(mut first) = order(exact) else { return (0, 1) };
    first.truncate(DEPTH);
    let pairs =
        || first.iter().enumerate().flat_map(|(place, &a)| first[place + 1..].iter().map(move |&b| (a, b)));
    let kept = pairs().filter(|&(a, b)| found[a] > found[b]).count();
    (kept as u32, pairs().count() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_the_share_of_pairs_in_order() {
        assert_eq!(agreement(&[3.0, 2.0, 1.0], &[0.3, 0.2, 0.1]), (3, 3));
        assert_eq!(agreement(&[3.0, 2.0, 1.0], &[0.2, 0.3, 0.1]), (2, 3));
        assert_eq!(agreement(&[3.0, 2.0, 1.0], &[0.0, 0.0, 0.0]), (0, 3));
        assert_eq!(agreement(&[2.0, 1.0], &[f32::NAN, 1.0]), (0, 1));
        let exact: Vec<f32> = (0..20).map(|n| n as f32).collect();
        assert_eq!(agreement(&exact, &exact), (45, 45));
    }

    #[test]
    fn the_sample_s_lines_are_questions_with_passages() {
        let model = crate::model::Model::bundled();
        let lists = sample(&model).unwrap();
        assert_eq!(lists.len(), 24);
        assert!(lists.iter().all(|list| list.len() == 24 && list.tokens().0 > 24 * 30));
    }
}
