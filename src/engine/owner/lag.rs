//! How far the target is behind the source, measured on the source's own clock.
//!
//! A sample is the source's newest majority-committed operation and when we learned of it. The
//! mirror is caught up with a sample once its position has reached that operation; so the lag is
//! how long the oldest sample that is not reached has been waiting. No clock is compared with
//! another machine's.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::connection::oplog::Oplog;
use crate::engine::connection::pulse::Listener;
use crate::engine::connection::shared::Connections;
use crate::engine::connection::vitals::{Heard, Sample};
use crate::engine::position::ClusterTime;

/// Samples that are kept: beyond these the seconds of the cluster times tell enough.
const KEPT: usize = 240;

/// What the monitor found out.
#[derive(Debug)]
pub enum Measured {
    /// How far the source is.
    Source(Heard<Sample>),
    /// Whether the target answers.
    Target(Heard<()>),
    /// What the source said of its oplog.
    Oplog(Heard<Oplog>),
}

/// Compares the source's time with the mirror's position.
pub struct Monitor {
    times: Listener<Heard<Sample>>,
    target: Listener<Heard<()>>,
    oplog: Listener<Heard<Oplog>>,
    behind: Behind,
}

/// The pure part.
#[derive(Debug, Default)]
struct Behind {
    waiting: VecDeque<Sample>,
    reached: Option<ClusterTime>,
    newest: Option<Sample>,
    /// Samples since this moment that are younger than this may have been reached without our
    /// knowing.
    patience: Option<(Instant, Duration)>,
    /// All samples were reached once: from then on the seconds of the cluster times, which jump
    /// by ten on an idle source, say less than the samples' waits.
    was_level: bool,
}

impl Monitor {
    /// Begins to listen to both sides, for a mirror that has reached this time.
    pub fn new(connections: &Connections, reached: ClusterTime) -> Self {
        let behind = Behind {
            reached: Some(reached),
            ..Behind::default()
        };
        Self {
            times: connections.source.times(),
            target: connections.target.answers(),
            oplog: connections.source.oplog(),
            behind,
        }
    }

    /// The next measurement. May be cut off at any point.
    pub async fn next(&mut self) -> Measured {
        tokio::select! {
            sample = self.times.next() => Measured::Source(sample),
            answers = self.target.next() => Measured::Target(answers),
            oplog = self.oplog.next() => Measured::Oplog(oplog),
        }
    }

    /// Takes a sample into account.
    pub fn note(&mut self, sample: Sample) {
        self.behind.note(sample);
    }

    /// The target holds everything up to here.
    pub fn reached(&mut self, time: ClusterTime) {
        self.behind.reached(time);
    }

    /// From now on the stream tells of the absence of events so much later than it could.
    pub fn bear_with(&mut self, patience: Duration) {
        self.behind.bear_with(patience, Instant::now());
    }

    /// How far behind; `None` before the first sample or when the newest is old.
    pub fn lag(&self) -> Option<Duration> {
        self.behind.lag(Instant::now())
    }

    /// Whether some sample was reached.
    pub fn is_caught_up(&self) -> bool {
        self.behind.newest.is_some() && self.behind.waiting.is_empty()
    }
}

impl Behind {
    /// A measurement older than this says nothing any more.
    const STALE: Duration = Duration::from_secs(15);

    fn bear_with(&mut self, patience: Duration, now: Instant) {
        if let Some((since, before)) = self.patience {
            if before == patience {
                return;
            }
            // What did not count until now has not waited.
            for sample in self.waiting.iter_mut().filter(|it| it.at >= since) {
                sample.at = now.min(sample.at + before);
            }
        }
        self.patience = (patience > Duration::ZERO).then_some((now, patience));
    }

    fn patience_with(&self, sample: &Sample) -> Duration {
        let patience = self.patience.filter(|(since, _)| sample.at >= *since);
        patience.map_or(Duration::ZERO, |(_, patience)| patience)
    }

    fn note(&mut self, sample: Sample) {
        self.newest = Some(sample);
        if self.reached.is_none_or(|reached| reached < sample.time) {
            if self.waiting.len() == KEPT {
                self.waiting.pop_back();
            }
            self.waiting.push_back(sample);
        }
        self.was_level |= self.waiting.is_empty();
    }

    fn reached(&mut self, time: ClusterTime) {
        self.reached = Some(time);
        while self
            .waiting
            .front()
            .is_some_and(|sample| sample.time <= time)
        {
            self.waiting.pop_front();
        }
        self.was_level |= self.newest.is_some() && self.waiting.is_empty();
    }

    fn lag(&self, now: Instant) -> Option<Duration> {
        let newest = self.newest?;
        if now.duration_since(newest.at) > Self::STALE {
            return None;
        }
        let Some(oldest) = self.waiting.front() else {
            return Some(Duration::ZERO);
        };
        let waited = now
            .duration_since(oldest.at)
            .saturating_sub(self.patience_with(oldest));
        // After a pause the first sample is young, but the position is old.
        let by_clock = self
            .reached
            .map_or(Duration::ZERO, |reached| newest.time.seconds_since(reached));
        if !self.was_level && by_clock > Duration::from_secs(2) {
            Some(waited.max(by_clock))
        } else {
            Some(waited)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(seconds: u32) -> ClusterTime {
        ClusterTime {
            seconds,
            increment: 1,
        }
    }

    #[test]
    fn nothing_is_known_before_the_first_sample() {
        assert_eq!(Behind::default().lag(Instant::now()), None);
    }

    #[test]
    fn the_lag_is_how_long_the_oldest_sample_waits() {
        let start = Instant::now();
        let mut behind = Behind::default();
        let within = |increment| ClusterTime {
            seconds: 10,
            increment,
        };
        behind.reached(within(0));
        for n in 0..3 {
            let at = start + Duration::from_millis(100 * u64::from(n));
            behind.note(Sample {
                time: within(1 + n),
                at,
            });
        }
        let now = start + Duration::from_millis(250);
        assert_eq!(behind.lag(now), Some(Duration::from_millis(250)));
        behind.reached(within(1));
        assert_eq!(behind.lag(now), Some(Duration::from_millis(150)));
        behind.reached(within(3));
        assert_eq!(behind.lag(now), Some(Duration::ZERO));
    }

    #[test]
    fn what_a_quiet_stream_would_have_told_does_not_count() {
        let start = Instant::now();
        let mut behind = Behind::default();
        behind.bear_with(Duration::from_secs(1), start);
        behind.reached(time(10));
        behind.note(Sample {
            time: time(10),
            at: start,
        });
        behind.note(Sample {
            time: time(11),
            at: start,
        });
        let lag = |behind: &Behind, millis| behind.lag(start + Duration::from_millis(millis));
        assert_eq!(lag(&behind, 900), Some(Duration::ZERO));
        assert_eq!(lag(&behind, 1500), Some(Duration::from_millis(500)));
        behind.bear_with(Duration::ZERO, start + Duration::from_millis(900));
        assert_eq!(lag(&behind, 900), Some(Duration::ZERO));
        assert_eq!(lag(&behind, 910), Some(Duration::from_millis(10)));
        behind.reached(time(11));
        assert_eq!(lag(&behind, 1500), Some(Duration::ZERO));
    }

    #[test]
    fn what_waited_before_a_stream_became_quiet_goes_on_to_count() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut behind = Behind::default();
        behind.reached(time(10));
        behind.note(Sample {
            time: time(11),
            at: start,
        });
        for turn in 1..=10 {
            behind.bear_with(Duration::from_secs(1), after(4 * turn));
            behind.bear_with(Duration::ZERO, after(4 * turn + 2));
        }
        assert_eq!(behind.lag(after(42)), None, "nothing was measured for long");
        behind.note(Sample {
            time: time(12),
            at: after(42),
        });
        assert_eq!(behind.lag(after(42)), Some(Duration::from_secs(42)));
    }

    #[test]
    fn an_old_position_counts_although_the_sample_is_young() {
        let start = Instant::now();
        let mut behind = Behind::default();
        behind.reached(time(100));
        behind.note(Sample {
            time: time(3700),
            at: start,
        });
        assert_eq!(behind.lag(start), Some(Duration::from_secs(3600)));
    }

    #[test]
    fn a_stale_measurement_is_unknown() {
        let start = Instant::now();
        let mut behind = Behind::default();
        behind.reached(time(100));
        behind.note(Sample {
            time: time(100),
            at: start,
        });
        assert_eq!(behind.lag(start + Duration::from_secs(20)), None);
    }
}
