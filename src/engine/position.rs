//! Cluster times and resume tokens: where in the source's history something stands.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bson::{RawDocument, RawDocumentBuf, Timestamp};
use serde::{Serialize, Serializer};

/// A point in the history of one MongoDB cluster, as its servers count it.
///
/// Ordered by seconds, then by increment. Only times of the same cluster can be compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterTime {
    /// Seconds since the epoch on the cluster's own clock.
    pub seconds: u32,
    /// Counts the operations within that second, from 1.
    pub increment: u32,
}

impl ClusterTime {
    /// Before everything.
    pub const ZERO: Self = Self {
        seconds: 0,
        increment: 0,
    };

    /// Behind everything.
    pub const NEVER: Self = Self {
        seconds: u32::MAX,
        increment: u32::MAX,
    };

    /// How far `self` is ahead of `earlier`, in whole seconds (increments are not time).
    pub fn seconds_since(self, earlier: Self) -> Duration {
        Duration::from_secs(u64::from(self.seconds.saturating_sub(earlier.seconds)))
    }

    /// The same instant on a wall clock, to the second.
    pub fn as_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::from(self.seconds))
    }
}

impl From<Timestamp> for ClusterTime {
    fn from(time: Timestamp) -> Self {
        Self {
            seconds: time.time,
            increment: time.increment,
        }
    }
}

impl From<ClusterTime> for Timestamp {
    fn from(time: ClusterTime) -> Self {
        Self {
            time: time.seconds,
            increment: time.increment,
        }
    }
}

impl fmt::Display for ClusterTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.seconds, self.increment)
    }
}

impl Serialize for ClusterTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An opaque resume token of a change stream (`{_data: …}`), kept byte for byte.
#[derive(Clone, PartialEq, Debug)]
pub struct ResumeToken(RawDocumentBuf);

impl ResumeToken {
    /// Copies the token out of a reply or an event.
    pub fn from_raw(token: &RawDocument) -> Self {
        Self(token.to_owned())
    }

    /// The token's bytes, to be sent back or stored.
    pub fn as_raw(&self) -> &RawDocument {
        &self.0
    }

    /// The cluster time that every token starts with: `82`, then seconds and increment, each as
    /// eight hex digits (`facts` mongodb 5.1). `None` if the token does not look like that.
    pub fn cluster_time(&self) -> Option<ClusterTime> {
        let data = self.0.get_str("_data").ok()?;
        let digits = data.get(2..18)?;
        Some(ClusterTime {
            seconds: u32::from_str_radix(digits.get(..8)?, 16).ok()?,
            increment: u32::from_str_radix(digits.get(8..)?, 16).ok()?,
        })
    }
}

/// Where a change stream is to be opened.
#[derive(Clone, PartialEq, Debug)]
pub enum StartPoint {
    /// All events with `clusterTime >= ` this one (`startAtOperationTime` is inclusive).
    At(ClusterTime),
    /// All events behind this token. `startAfter` is sent, which does what `resumeAfter` does and
    /// also passes an invalidate (`facts` mongodb 1.5).
    After(ResumeToken),
}

/// The position of a mirror: everything of the source up to `time` (and up to `start`) is on the
/// target, nothing later is.
#[derive(Clone, PartialEq, Debug)]
pub struct Position {
    /// The cluster time of the last thing applied, or of the newest token seen on an idle source.
    pub time: ClusterTime,
    /// How the stream goes on from here.
    pub start: StartPoint,
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn cluster_time_is_read_from_a_token() {
        let token = ResumeToken::from_raw(&rawdoc! {
            "_data": "826703A1B2000000052B0429296E1404"
        });
        assert_eq!(
            token.cluster_time(),
            Some(ClusterTime {
                seconds: 0x6703_A1B2,
                increment: 5
            })
        );
    }

    #[test]
    fn a_short_token_has_no_cluster_time() {
        assert_eq!(
            ResumeToken::from_raw(&rawdoc! { "_data": "82" }).cluster_time(),
            None
        );
    }

    #[test]
    fn cluster_times_order_by_second_then_increment() {
        let time = |seconds, increment| ClusterTime { seconds, increment };
        assert!(time(1, 9) < time(2, 1));
        assert!(time(2, 1) < time(2, 2));
        assert_eq!(time(7, 3).to_string(), "7.3");
    }
}
