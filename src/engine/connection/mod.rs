//! From a connection string to a probed server.

pub mod client;
pub mod members;
pub mod oplog;
pub mod privileges;
pub mod probe;
pub mod pulse;
pub mod shared;
pub mod tls;
pub mod uri;
pub mod vitals;
