//! From a connection string to a probed server.

pub mod client;
pub mod members;
pub mod probe;
pub mod shared;
pub mod tls;
pub mod uri;
