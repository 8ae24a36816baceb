//! Floor 6: distils a student that can be served, from text and a teacher.
//!
//! | file | what it holds |
//! |---|---|
//! | `run` | the stages, from mining to the card |
//! | `text` | reads queries and passages from files |
//! | `bm25` | a first stage in memory |
//! | `mine` | draws easy and hard candidates for each query |
//! | `student` | the trainable model, with gradients |
//! | `grad` | its operations and their derivatives |
//! | `loss` | MarginMSE and ListNet |
//! | `train` | AdamW, evaluation, selection of the best student |
//! | `checkpoint` | the training state on disk |
//! | `judge` | nDCG@10 on judged sets, calibration to the teacher's scale |
//! | `card` | writes the model's directory |

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
