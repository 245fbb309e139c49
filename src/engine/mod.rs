//! The data plane: one mirror between two MongoDB databases. Never names Kubernetes.

pub mod apply;
pub mod bson;
pub mod catalog;
pub mod command;
pub mod config;
pub mod connection;
pub mod copy;
pub mod error;
pub mod mirror;
mod owner;
pub mod plan;
pub mod position;
pub mod progress;
pub mod repair;
pub mod selection;
pub mod snapshot;
pub mod state;
pub mod stream;
mod transaction;
