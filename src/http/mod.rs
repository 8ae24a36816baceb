//! Floor 6: HTTP/1.1 and HTTP/2 on one port, plain or over TLS.
//!
//! | file | what it holds |
//! |---|---|
//! | `server` | connections: bounds, time limits, drain |
//! | `guard` | a stream that gives up on clients that stall |
//! | `tls` | certificate and key |
//! | `auth` | API keys to tenants |
//! | `policy` | the policy of a request that names none |
//! | `route` | from method and path to what is wanted |
//! | `handler` | the life of a request, on one screen |
//! | `rank` | from a request's bytes to its answer's, for any transport |
//! | `admin` | costs and the drain |
//! | `models` | loads and unloads models, and rolls routes back |
//! | `tokens` | TEI's tokens of texts |
//! | `pages` | models, health, descriptions |

mod admin;
mod auth;
mod guard;
mod handler;
mod models;
mod pages;
mod policy;
mod rank;
mod route;
mod server;
mod tls;
mod tokens;

pub use auth::{Admin, Auth};
pub use handler::App;
pub use policy::Policies;
pub use server::{Connections, Server, ServerLimits, listen};
pub use tls::TlsFiles;
