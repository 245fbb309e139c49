//! What a running mirror can be asked for, and what it answers.

use bson::Document;
use serde::Serialize;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::progress::VerificationResult;

/// A wish of a user.
#[derive(Debug)]
pub enum Request {
    /// Compare these documents with the source now, and put right what differs.
    Sync {
        /// The collection's name.
        collection: String,
        /// Which documents, as a MongoDB filter; it is applied on both sides.
        filter: Document,
        /// Where the answer goes.
        done: oneshot::Sender<Result<Synced, Refusal>>,
    },
    /// Compare everything now.
    Verify {
        /// Where the answer goes.
        done: oneshot::Sender<Result<VerificationResult, Refusal>>,
    },
    /// Begin anew over what the target holds: everything is compared with the source and made
    /// equal, from wherever the mirror stands.
    Resync {
        /// Told when that is planned and remembered.
        done: oneshot::Sender<Result<(), Refusal>>,
    },
}

impl Request {
    /// Answers that it cannot be done.
    pub fn refuse(self, refusal: Refusal) {
        // Whoever asked may be gone.
        match self {
            Self::Sync { done, .. } => drop(done.send(Err(refusal))),
            Self::Verify { done } => drop(done.send(Err(refusal))),
            Self::Resync { done } => drop(done.send(Err(refusal))),
        }
    }
}

/// Asks a running mirror, and waits for its answer. `request` is made with where that goes.
///
/// # Errors
/// What the mirror says; [`Refusal::NotMirroring`] if it ended or was started anew meanwhile, which
/// drops the question.
pub async fn ask<T>(
    mirror: &mpsc::Sender<Request>,
    request: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Request,
) -> Result<T, Refusal> {
    let (done, answer) = oneshot::channel();
    let sent = mirror.send(request(done)).await;
    sent.map_err(|_| Refusal::NotMirroring)?;
    answer.await.map_err(|_| Refusal::NotMirroring)?
}

/// What became of documents that a user asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Synced {
    /// Documents that match on either side.
    pub matched: u64,
    /// Written, because they were missing or different.
    pub written: u64,
    /// Removed, because the source does not have them.
    pub deleted: u64,
    /// As they should be.
    pub unchanged: u64,
    /// Not taken by the target; see its quarantine.
    pub refused: u64,
}

/// Why a wish is not granted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No such collection.
    #[error("there is no collection {0:?} in this mirror")]
    NotFound(String),
    /// The collection is still being copied.
    #[error(
        "the collection {0:?} is still being copied, which brings every document: try again when \
         the phase is Mirroring"
    )]
    Copying(String),
    /// Its documents are not written one by one.
    #[error(
        "the documents of {0:?} are not put right one by one: capped collections keep an order, \
         and system collections belong to the server"
    )]
    NotByDocument(String),
    /// The mirror does not follow its source at the moment.
    #[error("the mirror does not follow its source now: try again when the phase is Mirroring")]
    NotMirroring,
    /// The mirror does not run.
    #[error("the mirror is paused, or not there yet: it begins anew when spec.enabled is true")]
    NotRunning,
    /// The filter runs code on the server.
    #[error("the filter must not use {0}: it would run code on both servers")]
    Code(&'static str),
    /// A server refused something.
    #[error("{0}")]
    Failed(String),
}
