//! From change events to writes on the target.

mod anew;
mod builder;
pub mod commands;
pub mod ddl;
pub mod delta;
mod documents;
pub mod entity;
mod forms;
pub mod gather;
mod in_order;
pub mod indexes;
pub mod lanes;
pub mod merge;
mod outside;
pub mod refused;
pub mod stepping;
pub mod writer;
