//! A scorer for tests and benches: predictable logits, and faults on demand.

use super::{DeviceState, ScoreError, Scorer};
use crate::base::DeviceNs;
use crate::token::Packed;
use crossbeam_channel::never;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Gives each sequence the logit [`Scripted::logit`] of its ids, at once or after a time in proportion to the tokens. A
/// [`Script`] shared with the test makes batches fail.
#[derive(Clone, Debug, Default)]
pub struct Scripted {
    /// Time per token. The thread sleeps through it.
    pub per_token: Duration,
    /// Faults to play.
    pub script: Script,
    /// The device time of each batch and the device state that it reports, if any.
    pub device: Option<(DeviceNs, DeviceState)>,
}

/// What scripted scorers do with their next batches. With an empty script they answer.
#[derive(Clone, Debug, Default)]
pub struct Script(Arc<Mutex<VecDeque<Play>>>);

/// What a scripted scorer does with one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Play {
    /// Answers.
    Answer,
    /// Returns [`ScoreError::OutOfMemory`].
    OutOfMemory,
    /// Answers with a NaN.
    NonFinite,
    /// Panics.
    Panic,
    /// Returns [`ScoreError::Failed`].
    Fail,
    /// Answers after this long.
    Hang(Duration),
}

impl Script {
    /// Appends plays.
    pub fn extend(&self, plays: impl IntoIterator<Item = Play>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(plays);
    }

    /// Drops the remaining plays.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The number of plays that remain.
    pub fn left(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn next(&self) -> Play {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(Play::Answer)
    }
}

impl Scripted {
    /// The logit of a sequence: between -10 and 10, by its ids alone (FNV-1a).
    pub fn logit(ids: &[u32]) -> f32 {
        let hash = ids.iter().fold(0x811c_9dc5_u32, |hash, id| (hash ^ id).wrapping_mul(0x0100_0193));
        (hash >> 8) as f32 / (1 << 24) as f32 * 20.0 - 10.0
    }
}

impl Scorer for Scripted {
    fn score(&mut self, batch: &Packed, logits: &mut [f32]) -> Result<(), ScoreError> {
        for (logit, bounds) in logits.iter_mut().zip(batch.starts().windows(2)) {
            *logit = Self::logit(&batch.ids()[bounds[0] as usize..bounds[1] as usize]);
        }
        wait(self.per_token * batch.tokens().0 as u32);
        match self.script.next() {
            Play::Answer => {}
            Play::OutOfMemory => return Err(ScoreError::OutOfMemory),
            Play::NonFinite => logits[0] = f32::NAN,
            Play::Panic => panic!("the script says so"),
            Play::Fail => return Err(ScoreError::Failed("the script says so".to_owned())),
            Play::Hang(time) => wait(time),
        }
        Ok(())
    }

    fn device_time(&self) -> Option<DeviceNs> {
        self.device.map(|(time, _)| time)
    }

    fn device_state(&self) -> Option<DeviceState> {
        self.device.map(|(_, state)| state)
    }
}

fn wait(time: Duration) {
    if !time.is_zero() {
        let _ = never::<()>().recv_timeout(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_plays_its_script_and_then_answers() {
        let mut scorer = Scripted::default();
        scorer.script.extend([Play::OutOfMemory, Play::NonFinite, Play::Fail]);
        let mut batch = Packed::default();
        batch.push([(7, 0), (8, 0)]);
        let mut logits = [0.0];
        assert_eq!(scorer.score(&batch, &mut logits), Err(ScoreError::OutOfMemory));
        assert!(scorer.score(&batch, &mut logits).is_ok() && logits[0].is_nan());
        assert!(matches!(scorer.score(&batch, &mut logits), Err(ScoreError::Failed(_))));
        assert!(scorer.score(&batch, &mut logits).is_ok());
        assert_eq!(logits, [Scripted::logit(&[7, 8])]);
    }
}
