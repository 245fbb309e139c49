//! What mirrors want to know of a deployment all the time: whether it answers, how far it is, and
//! what its oplog holds. Asked once for all mirrors that share a client.

use std::sync::Arc;
use std::time::Duration;

use bson::doc;
use mongodb::Client;
use tokio::time::Instant;

use super::oplog::{Oplog, measure};
use super::probe::majority_time;
use super::pulse::{Listener, Pulse};
use crate::engine::command::Commands;
use crate::engine::error::{Error, Result, Side};
use crate::engine::position::ClusterTime;

/// Time between two samples of how far it is.
const TIME_EVERY: Duration = Duration::from_millis(500);

/// Time between two questions to a target: only whether it answers.
const ANSWER_EVERY: Duration = Duration::from_secs(2);

/// Time between two looks at the oplog.
const OPLOG_EVERY: Duration = Duration::from_secs(10);

/// A server that takes longer for the smallest question is reported as not answering.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// An answer that many hear.
pub type Heard<T> = std::result::Result<T, Arc<Error>>;

/// Where the source was, and when that was known.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// The newest majority-committed operation.
    pub time: ClusterTime,
    /// When the question was sent.
    pub at: Instant,
}

/// What is asked of a deployment, each question only as long as somebody wants to know.
#[derive(Default)]
pub struct Vitals {
    times: Pulse<Heard<Sample>>,
    answers: Pulse<Heard<()>>,
    oplog: Pulse<Heard<Oplog>>,
}

impl Vitals {
    /// How far a source is.
    pub fn times(&self, source: &Client) -> Listener<Heard<Sample>> {
        let source = source.clone();
        self.times.listen(TIME_EVERY, move || {
            let source = source.clone();
            async move {
                let at = Instant::now();
                let time = in_time(Side::Source, majority_time(&source)).await?;
                Ok(Sample { time, at })
            }
        })
    }

    /// Whether a target answers.
    pub fn answers(&self, target: &Client) -> Listener<Heard<()>> {
        let target = target.clone();
        self.answers.listen(ANSWER_EVERY, move || {
            let admin = Commands {
                side: Side::Target,
                db: target.database("admin"),
            };
            async move {
                let hello = admin.read("hear from it", doc! {"hello": 1});
                in_time(Side::Target, hello).await.map(drop)
            }
        })
    }

    /// What a source's oplog holds.
    pub fn oplog(&self, source: &Client) -> Listener<Heard<Oplog>> {
        let source = source.clone();
        self.oplog.listen(OPLOG_EVERY, move || {
            let source = source.clone();
            async move { measure(&source).await.map_err(Arc::new) }
        })
    }
}

async fn in_time<T>(side: Side, exchange: impl Future<Output = Result<T>>) -> Heard<T> {
    let timeout = Error::Timeout {
        side,
        doing: "hear from it",
        after: ANSWER_LIMIT,
    };
    tokio::time::timeout(ANSWER_LIMIT, exchange)
        .await
        .unwrap_or(Err(timeout))
        .map_err(Arc::new)
}
