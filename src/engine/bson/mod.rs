//! BSON as bytes: what the hot path needs, without decoding or re-encoding values.

pub mod definition;
pub mod encode;
pub mod order;
pub mod scan;
