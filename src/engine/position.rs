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

    /// The last time that is not this one.
    pub fn just_before(self) -> Self {
        match (self.seconds, self.increment) {
            (seconds, 1..) => Self {
                seconds,
                increment: self.increment - 1,
            },
            (seconds, 0) => Self {
                seconds: seconds.saturating_sub(1),
                increment: u32::MAX,
            },
        }
    }

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

impl Position {
    /// Whether an event of this time tells what the target has already: a stream that begins at a
    /// time shows that time's events once more.
    pub fn holds(&self, time: ClusterTime) -> bool {
        matches!(self.start, StartPoint::At(begin) if time <= begin)
    }

    /// The stream was read up to here. Within the time at which it begins the position stays, so
    /// that the rest of that time's events is known for what it is, by a later process too.
    pub fn advance(&mut self, time: ClusterTime, token: ResumeToken) {
        let time = time.max(self.time);
        if !self.holds(time) {
            *self = Self {
                time,
                start: StartPoint::After(token),
            };
        }
    }
}

/// When something was read that was read in pieces: the first at `from`, the last at `to`.
///
/// Changes up to `from` are in all of it, changes behind `to` in none of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The first of the times.
    pub from: ClusterTime,
    /// The last of them; the same if there was but one piece.
    pub to: ClusterTime,
}

impl From<ClusterTime> for Span {
    fn from(time: ClusterTime) -> Self {
        Self {
            from: time,
            to: time,
        }
    }
}

/// Some documents on the target were read later than the position.
///
/// A document that must be read again is read as of the position. Where the source no longer keeps
/// that state it is read as of a later time, and is ahead then: a change up to that time would be
/// applied to it twice. Which documents those are is not remembered, only until when: up to there
/// every changed document is read again, whatever its event says. That is exact, because a document
/// that is read again at a position is what the source had then, whatever it was before; and once
/// the position has passed the time, no document can be ahead of it. A document that must be read
/// again meanwhile, and again too late, moves the time on; that ends when the mirror is no longer
/// so far behind that the source has forgotten its position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ahead {
    until: Option<ClusterTime>,
}

impl Ahead {
    /// As remembered, at this position.
    pub fn new(until: Option<ClusterTime>, position: ClusterTime) -> Self {
        Self { until }.at(position)
    }

    /// The same, or what remains of it, at a later position.
    #[must_use]
    pub fn at(self, position: ClusterTime) -> Self {
        Self {
            until: self.until.filter(|until| *until > position),
        }
    }

    /// The same, where some documents were read at `until` (if any were).
    #[must_use]
    pub fn and(self, until: Option<ClusterTime>) -> Self {
        Self {
            until: self.until.max(until),
        }
    }

    /// Until when; `None` if no document is ahead.
    pub fn until(self) -> Option<ClusterTime> {
        self.until
    }

    /// Whether documents are ahead.
    pub fn is_any(self) -> bool {
        self.until.is_some()
    }
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
    fn what_the_first_time_shows_once_more_moves_nothing() {
        let time = |increment| ClusterTime {
            seconds: 7,
            increment,
        };
        let token = || ResumeToken::from_raw(&rawdoc! { "_data": "82" });
        let begin = Position {
            time: time(3),
            start: StartPoint::At(time(3)),
        };
        let mut position = begin.clone();
        position.advance(time(2), token());
        position.advance(time(3), token());
        assert_eq!(position, begin);
        assert!(position.holds(time(3)) && !position.holds(time(4)));
        position.advance(time(4), token());
        assert_eq!(position.time, time(4));
        assert_eq!(position.start, StartPoint::After(token()));
        // Behind a token nothing comes twice.
        assert!(!position.holds(time(4)));
        position.advance(time(3), token());
        assert_eq!(position.time, time(4));
    }

    #[test]
    fn documents_are_ahead_until_the_position_has_reached_the_last_of_them() {
        let time = |seconds| ClusterTime {
            seconds,
            increment: 1,
        };
        let none = Ahead::default();
        assert!(!none.and(None).is_any());
        let ahead = none.and(Some(time(9))).and(Some(time(5))).and(None);
        assert_eq!(ahead.until(), Some(time(9)));
        assert!(ahead.at(time(8)).is_any());
        assert!(!ahead.at(time(9)).is_any());
        // Read too late once more.
        let again = ahead.at(time(8)).and(Some(time(12)));
        assert_eq!(again.at(time(9)).until(), Some(time(12)));
        assert_eq!(again.at(time(12)), none);
        // A process that starts behind the time that is remembered has nothing to mind.
        assert_eq!(Ahead::new(Some(time(3)), time(3)), none);
        assert_eq!(Ahead::new(Some(time(4)), time(3)).until(), Some(time(4)));
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
