//! From change events to writes on the target.

mod anew;
pub mod commands;
pub mod ddl;
pub mod delta;
mod documents;
pub mod gather;
mod in_order;
pub mod indexes;
mod outside;
pub mod refused;
pub mod stepping;
pub mod writer;
