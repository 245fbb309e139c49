//! What is noted beside the checkpoint: only by the process that holds the mirror.
//!
//! A process that hangs and wakes up when another has taken over may still be about to note
//! something. So each note is a transaction that touches the checkpoint with the process's epoch,
//! as a batch is.

use bson::{DateTime, Document, RawDocumentBuf, doc};
use mongodb::ClientSession;
use tokio::sync::Mutex;

use super::codec::{fenced_unless, raw};
use super::{CHECKPOINTS, StateStore};
use crate::engine::command::number;
use crate::engine::error::{Error, Result, Side};
use crate::engine::transaction::{Tries, abort, begin, commit};
use crate::engine::writes::Write;

/// The epoch of the process, and the session of its notes.
#[derive(Debug)]
pub(super) struct Fence {
    epoch: i64,
    /// Only the owner task notes anything, so nobody ever waits for it.
    session: Mutex<ClientSession>,
}

impl Fence {
    pub(super) fn new(epoch: i64, session: ClientSession) -> Self {
        Self {
            epoch,
            session: Mutex::new(session),
        }
    }
}

impl StateStore {
    /// Carries out a command on what is noted.
    ///
    /// # Errors
    /// [`Error::Fenced`] if another process took the mirror over; what the exchange met.
    pub(super) async fn note(&self, write: Write, command: Document) -> Result<()> {
        let fence = self.fence.as_deref().ok_or_else(|| Error::Reply {
            side: Side::Target,
            doing: write.doing(),
            what: "the mirror was not taken over".into(),
        })?;
        let command = raw(&command)?;
        let mut session = fence.session.lock().await;
        let mut tries = Tries::default();
        loop {
            begin(&mut session).await?;
            let noted = self.note_in(write, &command, fence.epoch, &mut session);
            let outcome = match noted.await {
                Ok(()) => commit(Write::CommitNote, &mut session).await,
                Err(error) => {
                    abort(&mut session).await;
                    Err(error)
                }
            };
            match outcome {
                Err(error) if tries.again(&error).await => {
                    tracing::debug!(%error, "noting something again");
                }
                outcome => return outcome,
            }
        }
    }

    /// Ends a note that was cut off in its middle.
    pub async fn give_up_note(&self) {
        if let Some(fence) = self.fence.as_deref() {
            abort(&mut *fence.session.lock().await).await;
        }
    }

    async fn note_in(
        &self,
        write: Write,
        command: &RawDocumentBuf,
        epoch: i64,
        session: &mut ClientSession,
    ) -> Result<()> {
        let hold = raw(&doc! {
            "update": CHECKPOINTS,
            "updates": [{
                "q": {"_id": &self.target, "epoch": epoch},
                "u": {"$set": {"updatedAt": DateTime::now()}},
            }],
        })?;
        let commands = &self.commands;
        let reply = commands.write_in(Write::FenceNote, hold, session).await?;
        fenced_unless(number(&reply, "n") == 1, epoch)?;
        commands.write_in(write, command.clone(), session).await?;
        Ok(())
    }
}
