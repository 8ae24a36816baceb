//! Podium: a reranking inference server.
//!
//! A module imports only from lower floors. A request enters at the top, sinks to the scheduler,
//! and comes back as scores with a receipt; `src/README.md` follows it file by file.
//!
//! | floor | modules |
//! |---|---|
//! | 8 | [`cli`]: one file a command |
//! | 7 | [`compare`]: what each way to answer is worth, and what it costs |
//! | 6 | [`distill`]: from text and a teacher to a student |
//! | 6 | [`load`]: load on a server: how late its answers are, and up to which rate |
//! | 6 | [`http`]: accept, route, the life of a request |
//! | 5 | [`engine`]: the running server, a driver of the scheduler |
//! | 5 | [`eval`]: judged sets, and how good an order is |
//! | 5 | [`sim`]: the simulated server, another driver of it |
//! | 4 | [`backend`]: devices behind one trait |
//! | 3 | [`sched`]: pure; events in, actions out |
//! | 2 | [`forecast`]: how long a device will need |
//! | 2 | [`ledger`]: device time, priced and charged |
//! | 2 | [`model`]: a model's files, checked; the reference forward |
//! | 2 | [`telemetry`]: metrics and traces |
//! | 2 | [`wire`]: the dialects |
//! | 1 | [`ops`]: an encoder's operations on the CPU, each beside its reference, and on GPUs |
//! | 1 | [`rerank`]: requests, outcomes, ranking |
//! | 1 | [`token`]: from text to packed pairs |
//! | 0 | [`base`]: units, hours of the calendar |
//! | 0 | [`page`]: a report as one page, and its plots |

pub mod backend;
pub mod base;
pub mod cli;
pub mod compare;
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
