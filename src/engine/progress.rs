//! What anyone may watch of a running mirror.
//!
//! The owner task publishes a [`Progress`] through a watch channel; status, HTTP, metrics and the
//! terminal all read the same one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::headroom::Headroom;
use super::position::ClusterTime;
use super::quarantine::Quarantined;
use crate::reason::Reason;

/// Where a mirror is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub enum Phase {
    /// Not running yet: connecting, probing, planning.
    #[default]
    Pending,
    /// The initial copy runs, the change stream beside it.
    Copying,
    /// Everything is copied; the target has not yet reached one single time of the source.
    CatchingUp,
    /// The target is, as of `consistent_at`, exactly the source.
    Mirroring,
    /// Stopped on request; goes on from the checkpoint.
    Paused,
    /// Stopped by something that needs a human.
    Failed,
}

/// The connection to one side.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Link {
    /// Whether the last exchange with the server succeeded; `None` before the first.
    pub connected: Option<bool>,
    /// Since when `connected` is what it is.
    #[serde(skip)]
    pub since: SystemTime,
    /// Why there is no connection, in words without credentials. Empty while connected.
    pub message: String,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            connected: None,
            since: SystemTime::now(),
            message: String::new(),
        }
    }
}

impl Link {
    /// Notes the outcome of an exchange; returns whether `connected` changed.
    pub fn set(&mut self, connected: bool, message: impl Into<String>) -> bool {
        self.message = message.into();
        if self.connected == Some(connected) {
            return false;
        }
        self.connected = Some(connected);
        self.since = SystemTime::now();
        true
    }
}

/// Counts of the initial copy.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InitialSync {
    /// Documents to copy, as the servers estimated them when the copy was planned.
    pub documents_total: u64,
    /// Documents copied so far.
    pub documents_copied: u64,
    /// Bytes to copy (uncompressed BSON), as estimated when the copy was planned.
    pub bytes_total: u64,
    /// Bytes copied so far (uncompressed BSON).
    pub bytes_copied: u64,
    /// Collections that take part.
    pub collections_total: u64,
    /// Collections copied to the end, indexes included.
    pub collections_done: u64,
    /// When the copy was planned.
    #[serde(skip)]
    pub started_at: Option<SystemTime>,
    /// When the last range was done.
    #[serde(skip)]
    pub completed_at: Option<SystemTime>,
}

impl InitialSync {
    /// 0 to 100; 100 only when the copy is complete.
    pub fn percent(&self) -> u8 {
        if self.completed_at.is_some() {
            return 100;
        }
        let part = |done: u64, total: u64| {
            if total == 0 {
                0
            } else {
                (u128::from(done) * 100 / u128::from(total)).min(99) as u8
            }
        };
        part(self.bytes_copied, self.bytes_total)
    }
}

/// How updates reach the target when the plain form is not exact.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum ApplyForm {
    /// The server's own deltas (`$_internalApplyOplogUpdate`).
    InternalDelta,
    /// The changed documents are read again from the source at the batch's cluster time: the
    /// servers refused the internal flags.
    Refetch,
}

/// Something of the source that is not mirrored.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Unsupported {
    /// Collection, index or option, e.g. `orders.readings` or `orders (index k_1)`.
    pub name: String,
    /// Why, in words.
    pub reason: String,
}

/// What keeps the mirror from its work.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// CamelCase, from a closed set (`Error::reason`), e.g. `TargetNotEmpty`.
    pub reason: Reason,
    /// A sentence with a next step; never a credential.
    pub message: String,
    /// Whether the mirror goes on by itself once the cause is gone. If true, nothing is retried
    /// before the configuration changes or a long while has passed.
    pub needs_human: bool,
    /// Since when.
    #[serde(skip)]
    pub since: SystemTime,
    /// When the mirror is tried again; `None` if that waits for an event, or goes on all the time.
    #[serde(skip)]
    pub next_attempt: Option<SystemTime>,
}

/// Monotonic counts since the mirror was started in this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Change events read from the source.
    pub events_read: u64,
    /// Change events applied to the target (superseded ones included).
    pub events_applied: u64,
    /// Inserts among them.
    pub inserts: u64,
    /// Updates and replaces among them.
    pub updates: u64,
    /// Deletes among them.
    pub deletes: u64,
    /// Collection and index commands carried out.
    pub commands: u64,
    /// Write operations sent to the target, after merging.
    pub operations_written: u64,
    /// Transactions committed on the target.
    pub batches: u64,
    /// Documents found different or missing and repaired.
    pub repaired: u64,
    /// Times that both sides were compared and made equal because history was lost.
    pub resyncs: u64,
    /// Times a connection or a batch was tried again.
    pub retries: u64,
}

/// The comparison of both sides.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Verification {
    /// The one that runs now.
    pub running: Option<VerificationRun>,
    /// The last one that came to its end, also of earlier processes.
    pub last: Option<VerificationResult>,
    /// Why the last one did not come to its end, if so.
    pub failed: Option<String>,
}

/// A comparison under way.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationRun {
    /// Since when.
    #[serde(skip)]
    pub started_at: SystemTime,
    /// Documents of the source that were compared so far.
    pub documents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Differences so far.
    pub differences: u64,
}

/// What a comparison of both sides came to.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationResult {
    /// When it ended.
    #[serde(skip)]
    pub time: SystemTime,
    /// The cluster time of the source that the last part was compared at.
    pub consistent_at: ClusterTime,
    /// Collections compared.
    pub collections: u64,
    /// Documents of the source.
    pub documents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Documents, options and indexes that were not equal.
    pub differences: u64,
    /// Documents among them that were put right.
    pub repaired: u64,
    /// How long it took.
    #[serde(skip)]
    pub duration: Duration,
    /// Options and indexes that were not equal, in words; the first of them.
    pub definitions: Vec<String>,
}

impl VerificationResult {
    /// Nothing was different, or everything that was is put right.
    pub fn is_equal(&self) -> bool {
        self.differences == self.repaired
    }
}

/// A mirror as seen from outside.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Where it is in its life.
    pub phase: Phase,
    /// The source's connection.
    pub source: Link,
    /// The target's connection.
    pub target: Link,
    /// The database that the source is a mirror of itself, in words, if it is known to be one.
    #[serde(skip)]
    pub comes_from: Option<String>,
    /// The initial copy, from the moment it is planned.
    pub initial_sync: Option<InitialSync>,
    /// How far the stream is applied.
    pub position: Option<ClusterTime>,
    /// The cluster time at which the target is exactly the source; `None` until the first one.
    pub consistent_at: Option<ClusterTime>,
    /// A cluster time of the target at which it was that: in several lanes the target is exactly
    /// something in a snapshot at such a time. `None` until the first batch.
    pub target_time: Option<ClusterTime>,
    /// How far the target is behind the source; `None` as long as it is unknown.
    #[serde(skip)]
    pub lag: Option<Duration>,
    /// When `lag` and the connections were last measured.
    #[serde(skip)]
    pub measured_at: Option<SystemTime>,
    /// What is wrong, if anything.
    pub problem: Option<Problem>,
    /// The comparison of both sides.
    pub verification: Verification,
    /// Documents that the target refuses, the oldest first. While there are any, the target is not
    /// exactly the source.
    #[serde(skip)]
    pub quarantine: Arc<[Quarantined]>,
    /// What is not mirrored, sorted.
    pub unsupported: Vec<Unsupported>,
    /// Which update path is in use; `None` before the servers were probed.
    pub apply_form: Option<ApplyForm>,
    /// How long the source's oplog still holds the position; `None` before the first measurement.
    #[serde(skip)]
    pub headroom: Option<Headroom>,
    /// Counts since the start.
    pub totals: Totals,
}

impl Progress {
    /// The target's time at which it was exactly what the source was at `consistent_at`, if that is
    /// there.
    pub fn snapshot_time(&self) -> Option<ClusterTime> {
        self.target_time.filter(|_| self.consistent_at.is_some())
    }

    /// Both sides answer.
    pub fn connected(&self) -> bool {
        self.source.connected == Some(true) && self.target.connected == Some(true)
    }
}
