//! Floor 7: what each way to answer is worth, and what it costs.
//!
//! | file | what it holds |
//! |---|---|
//! | `run` | from models and judged sets to a comparison |
//! | `query` | judged queries with everybody's scores |
//! | `way` | a way to answer, and the scores that it orders by |
//! | `fuse` | a reranker's scores mixed with the first stage's |
//! | `serve` | measured devices, and a simulated server on them: latency, cost, degradation |
//! | `ask` | servers asked over HTTP |
//! | `table` | the comparison for a terminal, and as a TREC run |
//! | `html` | the comparison as one page with plots |

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
