//! The data plane: one mirror between two MongoDB databases. Never names Kubernetes.

pub mod bson;
pub mod command;
pub mod config;
pub mod connection;
pub mod error;
pub mod mirror;
pub mod position;
pub mod progress;
pub mod selection;
