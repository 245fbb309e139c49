//! What one mirror is asked to do, in the engine's own words.

use std::time::Duration;

use super::connection::tls::Tls;
use super::connection::uri::ConnectionUri;
use super::quarantine;
use super::selection::Selection;

/// Everything the engine needs to run one mirror.
///
/// Two equal configurations make the same mirror, so a change is found by comparing.
#[derive(Clone, PartialEq, Debug)]
pub struct MirrorConfig {
    /// Who this mirror is, `<namespace>/<name>`: kept in the checkpoint, shown in logs.
    pub name: String,
    /// Which of several mirrors of this name it is, as the uid of its resource: only one of them may
    /// have the target. Without it, any process of the name may.
    pub holder: Option<String>,
    /// The database that is mirrored.
    pub source: Endpoint,
    /// Which of its members documents and changes are read from.
    pub read_from: ReadFrom,
    /// The database that becomes equal to it.
    pub target: Endpoint,
    /// The database beside it in which the mirror keeps its memory.
    pub state_database: String,
    /// Which collections take part.
    pub selection: Selection,
    /// What to do with a target that is not empty when the mirror begins.
    pub on_existing_data: OnExistingData,
    /// What becomes of collections that are no longer selected.
    pub on_deselected: OnDeselected,
    /// What to do when the source's oplog no longer reaches back to the mirror's position.
    pub on_history_lost: OnHistoryLost,
    /// How changes are written.
    pub apply_mode: ApplyMode,
    /// How often both sides are compared; always once after a copy.
    pub verify_every: Option<Duration>,
    /// Bounds on what the mirror may use.
    pub limits: Limits,
}

/// Which members of the source's replica set are read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReadFrom {
    /// The primary.
    #[default]
    Primary,
    /// The primary; another one while there is none.
    PrimaryPreferred,
    /// A secondary.
    Secondary,
    /// A secondary; the primary while there is none.
    SecondaryPreferred,
    /// The nearest.
    Nearest,
}

/// What to do with a target database that holds collections before the mirror has made any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnExistingData {
    /// Stop, and wait for a person.
    #[default]
    Refuse,
    /// Drop all of them, and copy.
    Replace,
    /// Compare them with the source's, write what differs, and drop what the source does not have.
    Adopt,
}

/// What becomes of the target's copy of a collection that no longer takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDeselected {
    /// It stays as it is.
    #[default]
    Retain,
    /// It is dropped.
    Drop,
}

/// What to do when the changes since the mirror's position can no longer be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnHistoryLost {
    /// Compare both sides range by range, write what differs, and go on.
    #[default]
    Resync,
    /// Stop, and wait for a person.
    Stop,
}

/// How changes are written to the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ApplyMode {
    /// A batch is one transaction: readers of the target see nothing but states that the source had.
    #[default]
    Transactional,
    /// A large batch is several transactions at the same time: readers see what the source had in a
    /// snapshot at a time between two batches.
    Parallel,
}

/// One database on one deployment.
#[derive(Clone, PartialEq, Debug)]
pub struct Endpoint {
    /// How to reach the deployment.
    pub uri: ConnectionUri,
    /// How the connection is encrypted, beyond what that says.
    pub tls: Option<Tls>,
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
    /// Batches of the copy that are written at the same time; as many as there are lanes, without.
    pub copy_writers: Option<usize>,
    /// Documents from which on a batch is worth [several transactions](ApplyMode::Parallel).
    pub lanes_from: usize,
    /// Bytes that a copy reads of the source per second, all lanes together.
    pub copy_bytes_per_second: Option<u64>,
    /// Bytes of data in one range of the copy.
    pub range_bytes: u64,
    /// Bytes that a verification reads per second, of each side.
    pub verify_bytes_per_second: u64,
    /// Documents that the target may refuse before the mirror waits for somebody.
    pub quarantine: usize,
    /// Whether the servers' internal deltas may be used; if not, changed documents are read again.
    pub internal_delta: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            copy_lanes: 3,
            copy_writers: None,
            // Two more commits a batch, of some milliseconds each, have to be worth it.
            lanes_from: small("MONGOMIRROR_LANES_FROM").unwrap_or(256),
            copy_bytes_per_second: None,
            range_bytes: small("MONGOMIRROR_RANGE_BYTES").unwrap_or(64 << 20),
            verify_bytes_per_second: 64 << 20,
            quarantine: quarantine::MOST,
            internal_delta: true,
        }
    }
}

#[cfg(not(feature = "crash-points"))]
fn small<T>(_: &str) -> Option<T> {
    None
}

/// Processes that shall die in the middle of something need it to be cheap to make.
#[cfg(feature = "crash-points")]
fn small<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}
