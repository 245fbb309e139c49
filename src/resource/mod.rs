//! The `MongoMirror` resource: its spec, its status and what makes a spec valid.
//!
//! Types only: no client, no input or output, and nothing of the other rooms.

pub mod crd;
pub mod reference;
mod rules;
pub mod shape;
pub mod spec;
pub mod status;
pub mod validation;

pub use spec::{MongoMirror, MongoMirrorSpec};
pub use status::MongoMirrorStatus;
