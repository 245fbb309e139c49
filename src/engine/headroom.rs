//! How long the source's oplog still holds the mirror's position, and where that is going.
//!
//! A mirror that is paused, or cannot keep up, is lost when the oplog has dropped what follows its
//! position. So this is measured all the time, also while a mirror is paused or fails.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::config::MirrorConfig;
use super::connection::oplog::{Oplog, measure};
use super::connection::shared::Clients;
use super::connection::vitals::Heard;
use super::error::{Error, Result, Side, code};
use super::position::ClusterTime;
use super::progress::Progress;
use super::state::StateStore;

/// Time between two measurements of one that does not run, and has nothing to do in between.
const EVERY_PAUSED: Duration = Duration::from_secs(30);

/// The trend is told from measurements of so much time: long enough to see more than one burst of
/// writes, short enough to show that something has changed.
const TREND: Duration = Duration::from_secs(3600);

/// The least time from which a trend is told.
const LEAST_TREND: Duration = Duration::from_secs(30);

/// Measurements that are kept for it: beyond, the older half is thinned out.
const KEPT: usize = 120;

/// Less than this much time left is worth a warning, if it is also little of the whole.
const LOW: Duration = Duration::from_secs(3600);

/// The part of the oplog's reach below which the time left is little.
const LOW_PART: u32 = 4;

/// What is left before the oplog drops what follows a position.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Left {
    /// How long it takes, if as much is written as on average over what the oplog holds.
    #[serde(skip)]
    pub time: Duration,
    /// How much may be written until then.
    pub bytes: u64,
    /// How long a time the oplog holds when it is full, at that same rate.
    #[serde(skip)]
    pub window: Duration,
}

/// Where it is going.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Trend {
    /// Not measured for long enough.
    Unknown,
    /// It stays, or grows.
    Steady,
    /// It shrinks.
    Shrinking {
        /// By so many seconds in an hour.
        seconds_per_hour: u64,
        /// And is used up after this time, if it goes on so.
        lost_in: Duration,
    },
}

/// What is known.
#[derive(Clone, PartialEq, Debug)]
pub enum Headroom {
    /// It was measured.
    Measured {
        /// How much.
        left: Left,
        /// Where it is going.
        trend: Trend,
        /// When.
        at: SystemTime,
    },
    /// It cannot be told.
    Unknown {
        /// Why, and what to do about it.
        why: String,
    },
}

impl Left {
    /// Of an oplog, for a position; `None` if it holds too little to tell a rate.
    pub fn of(oplog: &Oplog, position: ClusterTime) -> Option<Self> {
        let held = oplog.newest.seconds_since(oplog.oldest).as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
        let (bytes, most) = (oplog.bytes as f64, oplog.most_bytes.max(oplog.bytes) as f64);
        if held <= 0.0 || bytes <= 0.0 {
            return None;
        }
        let rate = bytes / held;
        let window = seconds(most / rate);
        if position < oplog.oldest {
            return Some(Self {
                time: Duration::ZERO,
                bytes: 0,
                window,
            });
        }
        // What is behind the position has to be overwritten, and what is free be filled, first.
        let passed = position.seconds_since(oplog.oldest).as_secs_f64().min(held);
        let left = passed * rate + (most - bytes);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and below a size that came as an integer"
        )]
        Some(Self {
            time: seconds(left / rate),
            bytes: left as u64,
            window,
        })
    }

    /// Whether that is little: less than an hour, and less than a quarter of what is possible. An
    /// oplog that holds minutes at all is the deployment's choice; one that a mirror has nearly
    /// used up is not.
    pub fn is_low(&self) -> bool {
        self.time < LOW && self.time < self.window / LOW_PART
    }
}

impl Headroom {
    /// What is left, if it is known.
    pub fn left(&self) -> Option<Left> {
        match self {
            Self::Measured { left, .. } => Some(*left),
            Self::Unknown { .. } => None,
        }
    }
}

fn seconds(seconds: f64) -> Duration {
    // A hundred years are as good as for ever, and fit every arithmetic.
    Duration::from_secs_f64(seconds.clamp(0.0, 3e9))
}

/// Measurements of one mirror, to tell the trend.
#[derive(Debug, Default)]
pub struct History {
    measured: VecDeque<(Duration, Duration)>,
}

impl History {
    /// Adds what is left now, where `now` counts from any fixed moment; returns the trend.
    pub fn note(&mut self, now: Duration, left: Duration) -> Trend {
        while self
            .measured
            .front()
            .is_some_and(|(at, _)| now.saturating_sub(*at) > TREND)
        {
            self.measured.pop_front();
        }
        if self.measured.len() >= KEPT {
            // The oldest counts for the trend, and the ones between it and now are only there to
            // become the oldest: every second one will do.
            let mut index = 0;
            self.measured.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.measured.push_back((now, left));
        self.trend()
    }

    fn trend(&self) -> Trend {
        let (Some((first_at, first)), Some((last_at, last))) =
            (self.measured.front(), self.measured.back())
        else {
            return Trend::Unknown;
        };
        let between = last_at.saturating_sub(*first_at);
        if between < LEAST_TREND {
            return Trend::Unknown;
        }
        let shrunk = first.saturating_sub(*last);
        let part = shrunk.as_secs_f64() / between.as_secs_f64();
        // Measured to the second: what may be rounding is none.
        if shrunk < Duration::from_secs(2) {
            return Trend::Steady;
        }
        Trend::Shrinking {
            seconds_per_hour: seconds(part * 3600.0).as_secs(),
            lost_in: seconds(last.as_secs_f64() / part),
        }
    }
}

/// One measurement, in words for whoever watches.
pub fn told(
    measured: Heard<Oplog>,
    position: ClusterTime,
    history: &mut History,
    now: Duration,
) -> Headroom {
    let oplog = match measured {
        Ok(oplog) => oplog,
        Err(error) if error.code() == Some(code::UNAUTHORIZED) => {
            return Headroom::Unknown {
                why: "the user of the source may not look at the oplog: grant serverStatus on the \
                      cluster and collStats on local.oplog.rs, as `mongomirror roles` prints it, or \
                      the role clusterMonitor on the database admin"
                    .to_owned(),
            };
        }
        Err(error) => {
            return Headroom::Unknown {
                why: error.to_string(),
            };
        }
    };
    match Left::of(&oplog, position) {
        Some(left) => Headroom::Measured {
            left,
            trend: history.note(now, left.time),
            at: SystemTime::now(),
        },
        None => Headroom::Unknown {
            why: "the source's oplog holds too little to tell how fast it fills".to_owned(),
        },
    }
}

/// Watches over a mirror that does not run, because it is paused or cannot: measures, tells, and
/// writes nothing. It may be cut off at any point. Ends by itself if there is no position to watch
/// over; the target is asked for it unless it is `known`.
pub fn watch_over(
    config: MirrorConfig,
    clients: Clients,
    known: Option<ClusterTime>,
    publish: watch::Sender<Progress>,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(watch(config, clients, known, publish)))
}

async fn watch(
    config: MirrorConfig,
    clients: Clients,
    known: Option<ClusterTime>,
    publish: watch::Sender<Progress>,
) {
    let mut every = tokio::time::interval(EVERY_PAUSED);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let started = tokio::time::Instant::now();
    let mut history = History::default();
    let (mut source, mut position) = (None, known.map(Some));
    loop {
        every.tick().await;
        let measured = async {
            if position.is_none() {
                position = Some(position_of(&config, &clients).await?);
            }
            let Some(Some(position)) = position else {
                return Ok(None);
            };
            let connection = match source.take() {
                Some(connection) => connection,
                None => clients.connect(&config.source, Side::Source).await?,
            };
            let oplog = measure(connection.client()).await;
            match &oplog {
                Err(error) if error.is_connection() => connection.give_up().await,
                _ => source = Some(connection),
            }
            Ok(Some((position, oplog)))
        };
        let headroom = match measured.await {
            Ok(None) => return,
            Ok(Some((position, oplog))) => {
                let oplog = oplog.map_err(Arc::new);
                told(oplog, position, &mut history, started.elapsed())
            }
            Err(error) => Headroom::Unknown {
                why: Error::to_string(&error),
            },
        };
        publish.send_modify(|progress| progress.headroom = Some(headroom));
    }
}

/// Where a mirror stands, as the target remembers; `None` if it has not begun.
async fn position_of(config: &MirrorConfig, clients: &Clients) -> Result<Option<ClusterTime>> {
    let connection = clients.connect(&config.target, Side::Target).await?;
    let state = StateStore::new(
        connection.client(),
        &config.state_database,
        &config.target.database,
    );
    let checkpoint = state.load().await;
    connection.close().await;
    let checkpoint = checkpoint?.filter(|checkpoint| checkpoint.mirror == config.name);
    let position = checkpoint.and_then(|checkpoint| checkpoint.position);
    Ok(position.map(|position| position.time))
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

    /// Holds the seconds 1000 to 2000, a thousand bytes each.
    fn oplog(most_bytes: u64) -> Oplog {
        Oplog {
            oldest: time(1000),
            newest: time(2000),
            bytes: 1_000_000,
            most_bytes,
        }
    }

    fn left(most_bytes: u64, position: u32) -> (u64, u64, u64) {
        let left = Left::of(&oplog(most_bytes), time(position)).unwrap();
        (left.time.as_secs(), left.bytes, left.window.as_secs())
    }

    #[test]
    fn a_full_oplog_leaves_what_is_behind_the_position() {
        assert_eq!(left(1_000_000, 2000), (1000, 1_000_000, 1000));
        assert_eq!(left(1_000_000, 1250), (250, 250_000, 1000));
        assert_eq!(left(1_000_000, 1000), (0, 0, 1000));
        assert_eq!(left(1_000_000, 900), (0, 0, 1000));
        // The source's own clock is ahead of its newest operation, or it holds more than it must.
        assert_eq!(left(1_000_000, 2010), (1000, 1_000_000, 1000));
        assert_eq!(left(500_000, 1250), (250, 250_000, 1000));
    }

    #[test]
    fn what_is_still_free_comes_on_top() {
        assert_eq!(left(3_000_000, 1250), (2250, 2_250_000, 3000));
    }

    #[test]
    fn an_oplog_of_a_single_second_tells_nothing() {
        let mut young = oplog(1_000_000);
        young.newest = young.oldest;
        assert_eq!(Left::of(&young, time(1000)), None);
    }

    #[test]
    fn little_is_less_than_an_hour_and_less_than_a_quarter() {
        let low = |seconds, window| {
            let left = Left {
                time: Duration::from_secs(seconds),
                bytes: 1,
                window: Duration::from_secs(window),
            };
            left.is_low()
        };
        assert!(low(3000, 100_000));
        assert!(!low(4000, 100_000));
        // Half of a small oplog is what the deployment can give.
        assert!(!low(300, 600));
        assert!(low(100, 600));
    }

    #[test]
    fn the_trend_tells_when_it_is_lost() {
        let seconds = Duration::from_secs;
        let mut history = History::default();
        assert_eq!(history.note(seconds(0), seconds(7200)), Trend::Unknown);
        assert_eq!(history.note(seconds(10), seconds(7190)), Trend::Unknown);
        let expected = Trend::Shrinking {
            seconds_per_hour: 3600,
            lost_in: seconds(7140),
        };
        assert_eq!(history.note(seconds(60), seconds(7140)), expected);
        let mut steady = History::default();
        steady.note(seconds(0), seconds(7200));
        assert_eq!(steady.note(seconds(60), seconds(7300)), Trend::Steady);
    }

    #[test]
    fn what_was_long_ago_no_longer_counts_and_the_memory_is_bounded() {
        let mut history = History::default();
        let mut trend = Trend::Unknown;
        for n in 0..2000_u64 {
            let now = Duration::from_secs(n * 10);
            // Shrinks for a while, then no more.
            let left = Duration::from_secs(90_000 - n.min(1000) * 10);
            trend = history.note(now, left);
            assert!(history.measured.len() <= KEPT);
        }
        assert_eq!(trend, Trend::Steady);
    }

    #[test]
    fn without_the_privilege_it_is_said_what_to_grant() {
        let refused = Error::Write {
            side: Side::Source,
            doing: "look at the oplog",
            code: code::UNAUTHORIZED,
            name: "Unauthorized".into(),
            statement: None,
        };
        let mut history = History::default();
        let headroom = told(
            Err(Arc::new(refused)),
            time(1),
            &mut history,
            Duration::ZERO,
        );
        let Headroom::Unknown { why } = headroom else {
            panic!("{headroom:?}");
        };
        assert!(why.contains("clusterMonitor"), "{why}");
    }
}
