//! Holds a mirror's copy still, so that what happens meanwhile happens during the copy.
//!
//! A lane begins each range, and writes each batch, together with the range's own document. Whoever
//! holds these documents in an open transaction therefore holds the copy, and nothing else.

use std::time::Duration;

use bson::doc;
use mongodb::{Client, ClientSession};
use mongomirror::engine::config::MirrorConfig;
use mongomirror::engine::progress::Phase;
use mongomirror::runner::MirrorHandle;

use super::{PATIENCE, wait_for};

/// A held copy.
pub struct Gate {
    session: ClientSession,
    /// Ranges that are held.
    pub ranges: u64,
}

impl Gate {
    /// Holds all ranges in this state (`pending` or `copying`), as soon as there is one.
    pub async fn close(target: &Client, database: &str, state: &str) -> Self {
        let closing = async {
            loop {
                if let Some(gate) = Self::try_close(target, database, state).await {
                    return gate;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, closing)
            .await
            .expect("no range could be held")
    }

    async fn try_close(target: &Client, database: &str, state: &str) -> Option<Self> {
        let mut session = target.start_session().await.expect("a session");
        session.start_transaction().await.expect("a transaction");
        let ranges = target
            .database("mongomirror")
            .collection::<bson::Document>("ranges");
        let held = ranges
            .update_many(
                doc! {"_id.t": database, "state": state},
                doc! {"$set": {"held": true}},
            )
            .session(&mut session)
            .await;
        match held {
            Ok(held) if held.modified_count > 0 => Some(Self {
                session,
                ranges: held.modified_count,
            }),
            // A conflict with a lane, or nothing there yet.
            _ => {
                let _ = session.abort_transaction().await;
                None
            }
        }
    }

    /// Lets the copy go on.
    pub async fn open(mut self) {
        self.session
            .abort_transaction()
            .await
            .expect("the transaction was still open");
    }
}

/// Starts a mirror and holds its copy in the middle, before ranges that are not begun yet.
pub async fn start_held(config: &MirrorConfig, target: &Client) -> (MirrorHandle, Gate) {
    start_held_in(config, target, "pending").await
}

/// Starts a mirror and holds its copy in the middle of a range, which must take its time.
pub async fn start_held_within_a_range(
    config: &MirrorConfig,
    target: &Client,
) -> (MirrorHandle, Gate) {
    start_held_in(config, target, "copying").await
}

async fn start_held_in(
    config: &MirrorConfig,
    target: &Client,
    state: &str,
) -> (MirrorHandle, Gate) {
    let mirror = MirrorHandle::start(config.clone());
    wait_for(&mirror, "copying", |now| now.phase == Phase::Copying).await;
    let gate = Gate::close(target, &config.target.database, state).await;
    (mirror, gate)
}
