//! MongoDB: replica sets and standalone servers.
//!
//! `builder` collects what a test wants, `node` is one server, `replica_set` and `standalone`
//! bring servers up, `access` knows how to connect to them.

mod access;
mod builder;
mod node;
mod replica_set;
mod standalone;

pub use access::{ROOT_PASSWORD, ROOT_USER};
pub use builder::Builder;
pub use node::Node;
pub use replica_set::ReplicaSet;
pub use standalone::Standalone;
