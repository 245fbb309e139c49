//! From change events to writes on the target.

pub mod commands;
pub mod ddl;
pub mod delta;
pub mod gather;
pub mod writer;
