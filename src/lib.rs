//! Podium: a reranking inference server.
//!
//! A module imports only from lower floors. `src/README.md` follows a request from the socket to the scheduler and back, file
//! by file. A new architecture is one file in `model/arch`, a new dialect one in `wire`, a new command one in `cli`.
//!
//! | floor | modules |
//! |---|---|
//! | 8 | [`cli`]: the commands, one per file |
//! | 7 | [`compare`]: quality, latency and cost of ways to answer |
//! | 6 | [`distill`]: trains a student on a teacher's labels |
//! | 6 | [`load`]: load tests of a server |
//! | 6 | [`http`]: connections, routes, the life of a request |
//! | 5 | [`engine`]: the running server, which drives the scheduler |
//! | 5 | [`eval`]: judged sets and quality measures |
//! | 5 | [`sim`]: the simulated server, which drives the same scheduler |
//! | 4 | [`backend`]: models on CPUs and GPUs, behind one trait |
//! | 3 | [`sched`]: the scheduler, pure: events in, actions out |
//! | 2 | [`deployments`]: which versions are live on which route, on disk
//! | 2 | [`forecast`]: predicted device time |
//! | 2 | [`ledger`]: device time, priced and charged |
//! | 2 | [`model`]: model files, architectures, and the reference forward |
//! | 2 | [`telemetry`]: metrics and traces |
//! | 2 | [`wire`]: the dialects |
//! | 1 | [`ops`]: an encoder's operations on CPUs and NVIDIA GPUs, each beside its reference |
//! | 1 | [`rerank`]: requests, outcomes, ranking |
//! | 1 | [`token`]: from text to packed pairs |
//! | 0 | [`base`]: units, hours of the calendar |
//! | 0 | [`page`]: reports as self-contained pages, and plots |

pub mod backend;
pub mod base;
pub mod cli;
pub mod compare;
pub mod deployments;
pub mod distill;
pub mod engine;
pub mod eval;
pub mod forecast;
pub mod http;
pub mod ledger;
pub mod load;
pub mod model;
pub mod ops;
pub mod page;
pub mod rerank;
pub mod sched;
pub mod sim;
pub mod telemetry;
pub mod token;
pub mod wire;
