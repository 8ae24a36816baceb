//! A model with linear maps in E4M3. Its scales are calibrated on a sample of pairs, and it is used only if it orders the
//! sample's passages as the model in f16 does.

use super::stack::InputMaxima;
use super::{Cuda, LoadError};
use crate::backend::sample::Agreement;
use crate::model::Plan;
use crate::ops::cuda::{Array, Device, DeviceError, Half};
use crate::token::Packed;

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
        let mut agreement = Agreement::default();
        for list in lists {
            let (mut exact, mut found) = (vec![0.0; list.len()], vec![0.0; list.len()]);
            self.run_all(list, &mut exact)?;
            fp8.run_all(list, &mut found)?;
            agreement.count(&exact, &found);
        }
        Ok((fp8, agreement.share()))
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
