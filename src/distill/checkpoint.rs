//! The training state on disk, so that an interrupted training can continue.

use super::student::{Parameter, Student};
use super::train::{Moments, State, TrainError};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::PathBuf;

/// A file for the training state.
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// A digest of plan and lists. A state with another digest is ignored.
    pub plan: String,
}

/// The keys of the file's metadata.
const PLAN: &str = "plan";
const STEP: &str = "step";
const SINCE: &str = "since";
const BEST: &str = "best";

impl Checkpoint {
    /// Writes the state to a new file, then renames it over the old one.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`].
    pub(super) fn save(&self, state: &State) -> Result<(), TrainError> {
        let mut tensors: Vec<(String, Vec<u8>)> = Vec::new();
        let mut put = |name: String, values: &[f32]| {
            tensors.push((name, values.iter().flat_map(|value| value.to_le_bytes()).collect()));
        };
        let best = state.best.as_ref().map(|(_, student)| ("best", student));
        for (kind, student) in [("now", &state.student)].into_iter().chain(best) {
            for (name, parameter) in student.parameters() {
                put(format!("{kind}.{name}"), &parameter.values);
            }
        }
        let moments = state.dense.iter().chain([&state.words]);
        for ((name, _), Moments { first, second }) in state.student.parameters().zip(moments) {
            put(format!("first.{name}"), first);
            put(format!("second.{name}"), second);
        }
        let mut facts = HashMap::from([
            (PLAN.to_owned(), self.plan.clone()),
            (STEP.to_owned(), state.step.to_string()),
            (SINCE.to_owned(), state.since.to_string()),
        ]);
        facts.extend(state.best.as_ref().map(|(score, _)| (BEST.to_owned(), score.to_string())));
        let views = tensors.iter().map(|(name, bytes)| {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes);
            (name, view.expect("four bytes make a float"))
        });
        let bytes = safetensors::serialize(views, Some(facts)).map_err(|error| self.failed(&error))?;
        let fresh = self.path.with_extension("new");
        std::fs::write(&fresh, bytes)
            .and_then(|()| std::fs::rename(&fresh, &self.path))
            .map_err(|error| self.failed(&error))
    }

    /// Loads the state if the file exists and belongs to this plan; else leaves `state` unchanged.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] if the file is damaged.
    pub(super) fn load(&self, state: &mut State) -> Result<(), TrainError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failed(&error)),
        };
        let damaged = |error: &dyn std::fmt::Display| {
            self.failed(&format!("{error}; delete the file to start training again"))
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(&error))?;
        let facts = metadata.metadata().clone().unwrap_or_default();
        if facts.get(PLAN) != Some(&self.plan) {
            return Ok(());
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&error))?;
        let read = |name: String, into: &mut Vec<f32>| {
            let view = file.tensor(&name).map_err(|error| self.failed(&error))?;
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            if values.len() != into.len() {
                return Err(self.failed(&format!(
                    "`{name}` has {} values, not {}",
                    values.len(),
                    into.len()
                )));
            }
            *into = values;
            Ok(())
        };
        let read_student = |kind: &str, student: &mut Student| {
            student
                .parameters_mut()
                .try_for_each(|(name, Parameter { values, .. })| read(format!("{kind}.{name}"), values))
        };
        read_student("now", &mut state.student)?;
        let moments = state.dense.iter_mut().chain([&mut state.words]);
        for ((name, _), Moments { first, second }) in state.student.parameters().zip(moments) {
            read(format!("first.{name}"), first)?;
            read(format!("second.{name}"), second)?;
        }
        let number = |name: &str| {
            let number = facts.get(name).and_then(|text| text.parse().ok());
            number.ok_or_else(|| self.failed(&format!("`{name}` is missing")))
        };
        (state.step, state.since) = (number(STEP)?, number(SINCE)?);
        if let Some(score) = facts.get(BEST).and_then(|score| score.parse().ok()) {
            let mut best = state.student.clone();
            read_student("best", &mut best)?;
            state.best = Some((score, best));
        }
        Ok(())
    }

    fn failed(&self, reason: &dyn std::fmt::Display) -> TrainError {
        TrainError::Checkpoint { path: self.path.clone(), reason: reason.to_string() }
    }
}
