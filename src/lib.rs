//! MongoMirror keeps a second MongoDB database exactly equal to the first one, live.
//!
//! The house, from the roof down. A room imports only rooms below it:
//!
//! - [`cli`]: the commands (`operator`, `run`, `ready`, `roles`, `crd`)
//! - [`operator`]: the control plane: Kubernetes resources and Secrets → mirrors, progress →
//!   status
//! - [`http`]: the status API, health and metrics
//! - [`runner`]: decides, starts, stops and supervises mirrors, and lists them for everybody who
//!   wants to tell of them; used by `operator` and by `run` alike
//! - [`resource`]: the MongoMirror resource; types only, names no other room
//! - [`engine`]: the data plane: one mirror between two MongoDB databases; names neither
//!   Kubernetes nor the resource
//! - [`reason`]: the words for why something is as it is, for all rooms
//! - [`telemetry`]: the log
//!
//! From a manifest to a mirror: `resource::validation` → `runner::translate` → `runner::decide` →
//! `runner::slot` → `engine::mirror`. From a mirror to its readers: `engine::progress` →
//! `runner::registry` → `operator::report`, `http`, `cli`.

#![warn(clippy::unwrap_used)]
// Every write has a name: engine/writes.rs.
#![warn(clippy::disallowed_methods)]

pub mod cli;
pub mod engine;
pub mod http;
pub mod operator;
pub mod reason;
pub mod resource;
pub mod runner;
pub mod telemetry;
