//! From a connection string to a probed server.

pub mod uri;
