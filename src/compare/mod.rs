//! Floor 7: quality, latency and cost of the ways to answer.
//!
//! | file | what it holds |
//! |---|---|
//! | `run` | from models and judged sets to a comparison |
//! | `query` | judged queries with the scores of both models |
//! | `way` | a way to answer, and its scores |
//! | `fuse` | mixes a reranker's scores with the first stage's |
//! | `serve` | measures devices and simulates a server on them: latency, cost, degradation |
//! | `ask` | asks servers over HTTP |
//! | `table` | the comparison for a terminal, and as a TREC run |
//! | `html` | the comparison as a self-contained page with plots |

mod ask;
mod fuse;
mod html;
mod query;
mod run;
mod serve;
mod table;
mod way;

pub use ask::{Server, ServerError};
pub use html::{html, svg};
pub use run::{CompareError, Comparison, Cost, Inputs, Plan, Progress, Row, SetRow, TrecRun, compare};
pub use table::{file_name, table};
pub use way::Way;
