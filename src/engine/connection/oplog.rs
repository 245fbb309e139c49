//! What a deployment says of its oplog.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;

use crate::engine::command::{Commands, number};
use crate::engine::error::{Error, Result, Side};
use crate::engine::position::ClusterTime;

/// Longest wait for the whole measurement.
const LIMIT: Duration = Duration::from_secs(20);

/// The source's oplog, as asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Oplog {
    /// The oldest operation it holds.
    pub oldest: ClusterTime,
    /// The newest.
    pub newest: ClusterTime,
    /// How much it holds.
    pub bytes: u64,
    /// How much it holds at most, before it drops the oldest.
    pub most_bytes: u64,
}

/// Asks the source.
///
/// # Errors
/// What the exchange met; without the role `clusterMonitor` the source refuses.
pub async fn measure(source: &Client) -> Result<Oplog> {
    let doing = "look at the oplog";
    let commands = |name| Commands {
        side: Side::Source,
        db: source.database(name),
    };
    let asked = async {
        let mut question = doc! {"serverStatus": 1, "oplog": 1};
        // Only what is asked for: the rest takes a server longer than it is worth.
        for section in SECTIONS {
            question.insert(section, 0);
        }
        let status = commands("admin").read(doing, question).await?;
        let size = doc! {"collStats": "oplog.rs"};
        let size = commands("local").read(doing, size).await?;
        Ok((status, size))
    };
    let (status, size) =
        tokio::time::timeout(LIMIT, asked)
            .await
            .unwrap_or(Err(Error::Timeout {
                side: Side::Source,
                doing,
                after: LIMIT,
            }))?;
    parse(&status, &size).ok_or_else(|| Error::Reply {
        side: Side::Source,
        doing,
        what: "it says nothing of the oplog".into(),
    })
}

/// Sections of `serverStatus` that cost something and say nothing here.
const SECTIONS: [&str; 6] = [
    "wiredTiger",
    "tcmalloc",
    "metrics",
    "locks",
    "repl",
    "opLatencies",
];

fn parse(status: &Document, size: &Document) -> Option<Oplog> {
    let oplog = status.get_document("oplog").ok()?;
    let time = |name| oplog.get_timestamp(name).ok().map(ClusterTime::from);
    Some(Oplog {
        oldest: time("earliestOptime")?,
        newest: time("latestOptime")?,
        bytes: u64::try_from(number(size, "size")).ok()?,
        most_bytes: u64::try_from(number(size, "maxSize")).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_understood() {
        let at = |time| bson::Timestamp { time, increment: 1 };
        let status = doc! {"oplog": {"earliestOptime": at(1000), "latestOptime": at(2000)}};
        let size = doc! {"size": 1_000_000_i64, "maxSize": 3_000_000.0};
        let time = |time| ClusterTime::from(at(time));
        let expected = Oplog {
            oldest: time(1000),
            newest: time(2000),
            bytes: 1_000_000,
            most_bytes: 3_000_000,
        };
        assert_eq!(parse(&status, &size), Some(expected));
        assert_eq!(parse(&doc! {}, &size), None);
    }
}
