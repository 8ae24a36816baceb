//! Floor 6: load on a server, ours or a peer's: what it answers, how late, and up to which rate.
//!
//! | file | what it holds |
//! |---|---|
//! | `arrivals` | when requests are sent |
//! | `cases` | what is asked: from a log, from a judged set, or drawn |
//! | `mix` | kinds of requests and their weights: budgets, policies, tenants |
//! | `client` | connections, kept and bounded; each request with its time |
//! | `run` | a run, open or closed loop |
//! | `tally` | counts and histograms, merged without loss |
//! | `figures` | what a run is reported by |
//! | `early` | how many answers are enough |
//! | `search` | bisection |
//! | `sweep` | the highest rate that meets a service level |
//! | `versus` | two servers or settings in turns |
//! | `report` | how a load was made, and what it found |
//! | `table` | the report for a terminal |
//! | `html` | the report as one page with plots |

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
