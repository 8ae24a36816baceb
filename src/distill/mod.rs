//! Floor 6: from text and a teacher to a student that can be served.
//!
//! | file | what it holds |
//! |---|---|
//! | `run` | the stages one after the other |
//! | `text` | queries and passages from files |
//! | `bm25` | a first stage in memory |
//! | `mine` | for each query a list of candidates, easy and hard |
//! | `student` | the model that learns, with gradients |
//! | `grad` | its operations and their derivatives |
//! | `loss` | MarginMSE and ListNet |
//! | `train` | AdamW, evaluation, the best one kept |
//! | `checkpoint` | training's state on disk |
//! | `judge` | nDCG@10 on judged sets, and the line to the teacher's scale |
//! | `card` | the model's directory with its papers |

mod bm25;
mod card;
mod checkpoint;
mod grad;
mod judge;
mod loss;
mod mine;
mod run;
mod student;
#[cfg(test)]
mod tests;
mod text;
mod train;

pub use card::{Card, Figures};
pub use loss::LossWeights;
pub use mine::MinePlan;
pub use run::{DistillError, Inputs, Plan, Stage, run};
pub use student::Shape;
pub use train::{TrainError, TrainPlan};
