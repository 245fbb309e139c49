//! What one mirror is asked to do, in the engine's own words.

use super::connection::uri::ConnectionUri;
use super::selection::Selection;

/// Everything the engine needs to run one mirror.
///
/// Two equal configurations make the same mirror, so a change is found by comparing.
#[derive(Clone, PartialEq, Debug)]
pub struct MirrorConfig {
    /// Who this mirror is, `<namespace>/<name>`: kept in the checkpoint, shown in logs.
    pub name: String,
    /// The database that is mirrored.
    pub source: Endpoint,
    /// The database that becomes equal to it.
    pub target: Endpoint,
    /// Which collections take part.
    pub selection: Selection,
    /// Bounds on what the mirror may use.
    pub limits: Limits,
}

/// One database on one deployment.
#[derive(Clone, PartialEq, Debug)]
pub struct Endpoint {
    /// How to reach the deployment.
    pub uri: ConnectionUri,
    /// The database's name.
    pub database: String,
}

/// Bounds of one mirror.
#[derive(Clone, PartialEq, Debug)]
pub struct Limits {
    /// Bytes of documents and events in flight at any time, all queues together.
    pub memory_bytes: usize,
    /// Ranges that are copied at the same time.
    pub copy_lanes: usize,
    /// Bytes of data in one range of the copy.
    pub range_bytes: u64,
    /// Whether the servers' internal deltas may be used; if not, changed documents are read again.
    pub internal_delta: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            copy_lanes: 3,
            range_bytes: 64 << 20,
            internal_delta: true,
        }
    }
}
