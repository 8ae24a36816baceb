//! Floor 6: load on a server, ours or a peer's: answers, latencies, and the highest rate that meets a service level.
//!
//! | file | what it holds |
//! |---|---|
//! | `arrivals` | when requests are sent |
//! | `cases` | the requests: from a log, from a judged set, or random |
//! | `mix` | kinds of requests and their weights: budgets, policies, tenants |
//! | `client` | an HTTP client with pooled connections and timeouts |
//! | `run` | a run, open or closed loop |
//! | `tally` | counts and histograms, merged without loss |
//! | `figures` | the reported figures of a run |
//! | `early` | MLPerf's early-stopping rule |
//! | `search` | bisection |
//! | `sweep` | the highest rate that meets a service level |
//! | `versus` | two servers or settings, measured in turns |
//! | `report` | the description and results of a load |
//! | `table` | the report for a terminal |
//! | `html` | the report as a self-contained page with plots |

mod arrivals;
mod cases;
mod client;
mod early;
mod figures;
mod html;
mod mix;
mod report;
mod run;
mod search;
mod sweep;
mod table;
mod tally;
mod versus;

pub use arrivals::{Arrivals, REQUESTS_MAX, Trace};
pub use cases::{Case, CasesError, Length, drawn_cases, judged_cases, read_cases};
pub use client::{Answer, Client, ClientLimits, Fault, Prepared, Sent, Target};
pub use early::{CONFIDENCE, CONFIDENCE_OVERALL, Judge, Verdict, answers_needed};
pub use figures::{Figures, Moment, PERCENTILES, RunReport};
pub use html::html;
pub use mix::{Key, Kind};
pub use report::{Finding, Report, Side};
pub use run::{Found, Load, Pace, Progress, RunPlan, Slo, run};
pub use search::Search;
pub use sweep::{Step, SweepPlan, SweepReport, sweep};
pub use table::table;
pub use tally::{Slice, Tally, Times};
pub use versus::{Ratio, VersusPlan, VersusReport, versus};
