//! The data plane: one mirror between two MongoDB databases. Never names Kubernetes.

pub mod config;
pub mod connection;
pub mod mirror;
pub mod position;
pub mod progress;
pub mod selection;
