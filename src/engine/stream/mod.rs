//! The source's change stream: read ahead as raw replies, and what their bytes mean.

pub mod event;
pub mod reader;
pub mod slim;
