//! The initial copy: ranges of `_id`, each read at a cluster time of its own.
//!
//! From its time on a range is exactly the source; stream events up to that time are skipped,
//! later ones applied. So there is no overlap to be replayed, and the stream is consumed from the
//! first second.

mod align;
pub mod lane;
pub mod natural;
pub mod pace;
pub mod ranges;
pub mod split;
mod writing;
