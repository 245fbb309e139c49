//! How far the target is behind the source, measured on the source's own clock.
//!
//! A sample is the source's newest majority-committed operation and when we learned of it. The
//! mirror is caught up with a sample once its position has reached that operation; so the lag is
//! how long the oldest sample that is not reached has been waiting. No clock is compared with
//! another machine's.

use std::collections::VecDeque;
use std::time::Duration;

use bson::doc;
use mongodb::Database;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::engine::command::Commands;
use crate::engine::connection::probe::majority_time;
use crate::engine::error::{Error, Result, Side};
use crate::engine::headroom::{self, Oplog};
use crate::engine::position::ClusterTime;

/// Time between two samples.
const EVERY: Duration = Duration::from_millis(500);

/// Time between two questions to the target: only whether it answers.
const TARGET_EVERY: Duration = Duration::from_secs(2);

/// A server that takes longer for the smallest question is reported as not answering.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Samples that are kept: beyond these the seconds of the cluster times tell enough.
const KEPT: usize = 240;

/// Where the source was, and when that was known.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// The newest majority-committed operation.
    pub time: ClusterTime,
    /// When the question was sent.
    pub at: Instant,
}

/// What the monitor found out.
#[derive(Debug)]
pub enum Measured {
    /// The source answered.
    Source(Sample),
    /// It did not.
    SourceSilent(Error),
    /// The target answered.
    Target,
    /// It did not.
    TargetSilent(Error),
    /// What the source said of its oplog.
    Oplog(Result<Oplog>),
}

/// Compares the source's time with the mirror's position.
pub struct Monitor {
    measured: mpsc::Receiver<Measured>,
    tasks: [JoinHandle<()>; 3],
    behind: Behind,
}

/// The pure part.
#[derive(Debug, Default)]
struct Behind {
    waiting: VecDeque<Sample>,
    reached: Option<ClusterTime>,
    newest: Option<Sample>,
    /// All samples were reached once: from then on the seconds of the cluster times, which jump
    /// by ten on an idle source, say less than the samples' waits.
    was_level: bool,
}

impl Monitor {
    /// Starts asking both sides.
    pub fn start(source: &Database, target: &Database) -> Self {
        let (send, measured) = mpsc::channel(1);
        let source = source.client().clone();
        let target = Commands {
            side: Side::Target,
            db: target.clone(),
        };
        let (told, source_client) = (send.clone(), source.clone());
        let ask_source = tokio::spawn(ask(EVERY, told, async move || {
            let at = Instant::now();
            match in_time(Side::Source, majority_time(&source)).await {
                Ok(time) => Measured::Source(Sample { time, at }),
                Err(error) => Measured::SourceSilent(error),
            }
        }));
        let (client, told) = (source_client, send.clone());
        let ask_oplog = tokio::spawn(ask(headroom::EVERY, told, async move || {
            Measured::Oplog(headroom::measure(&client).await)
        }));
        let ask_target = tokio::spawn(ask(TARGET_EVERY, send, async move || {
            let hello = target.read("hear from it", doc! {"hello": 1});
            match in_time(Side::Target, hello).await {
                Ok(_) => Measured::Target,
                Err(error) => Measured::TargetSilent(error),
            }
        }));
        Self {
            measured,
            tasks: [ask_source, ask_target, ask_oplog],
            behind: Behind::default(),
        }
    }

    /// The next measurement.
    pub async fn next(&mut self) -> Measured {
        match self.measured.recv().await {
            Some(measured) => measured,
            None => std::future::pending().await,
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

    /// How far behind; `None` before the first sample or when the newest is old.
    pub fn lag(&self) -> Option<Duration> {
        self.behind.lag(Instant::now())
    }

    /// Whether some sample was reached.
    pub fn is_caught_up(&self) -> bool {
        self.behind.newest.is_some() && self.behind.waiting.is_empty()
    }

    /// Stops asking.
    pub fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Asks again and again until nobody listens.
async fn ask(every: Duration, told: mpsc::Sender<Measured>, question: impl AsyncFn() -> Measured) {
    let mut every = tokio::time::interval(every);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if told.send(question().await).await.is_err() {
            return;
        }
    }
}

async fn in_time<T>(side: Side, exchange: impl Future<Output = Result<T>>) -> Result<T> {
    let timeout = Error::Timeout {
        side,
        doing: "hear from it",
        after: ANSWER_LIMIT,
    };
    tokio::time::timeout(ANSWER_LIMIT, exchange)
        .await
        .unwrap_or(Err(timeout))
}

impl Behind {
    /// A measurement older than this says nothing any more.
    const STALE: Duration = Duration::from_secs(15);

    fn note(&mut self, sample: Sample) {
        self.newest = Some(sample);
        if self.reached.is_none_or(|reached| reached < sample.time) {
            if self.waiting.len() == KEPT {
                self.waiting.pop_back();
            }
            self.waiting.push_back(sample);
        }
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
        let waited = now.duration_since(oldest.at);
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
