//! What is noted beside the checkpoint: only by the process that holds the mirror.
//!
//! A process that hangs and wakes up when another has taken over may still be about to note
//! something. So each note is a transaction that touches a document with the process's epoch, as a
//! batch touches the checkpoint. It is one of its own: notes would conflict with every batch that
//! is on its way. So does each lane that writes a part of a batch: it has a document of its own.

use std::sync::Arc;
use std::time::Duration;

use bson::{DateTime, Document, RawDocumentBuf, doc};
use mongodb::ClientSession;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::codec::{fenced_unless, raw};
use super::{CHECKPOINTS, FENCES, StateStore};
use crate::engine::command::number;
use crate::engine::error::{Error, Result, Side};
use crate::engine::transaction::{Tries, abort, begin, commit};
use crate::engine::writes::Write;

/// The epoch of the process, and the session of its notes.
#[derive(Debug)]
pub(super) struct Fence {
    epoch: i64,
    /// The owner task notes, and seldom its writer: nobody ever waits long for it.
    session: Mutex<ClientSession>,
    /// When the process last wrote something that others see.
    shown: watch::Sender<Instant>,
}

/// A process that waits for one long command, as the build of an index, shows that it is alive as
/// often. Others look twice, half a minute apart (`plan/identity.rs`).
const SIGN: Duration = Duration::from_secs(10);

/// Lanes that a process may have.
pub const MOST_LANES: usize = 4;

/// A write, and the command that carries it out.
pub(super) type Noted = (Write, RawDocumentBuf);

impl StateStore {
    /// From now on notes are those of this epoch's process, in this session, and so is what is
    /// written in `lanes`.
    ///
    /// # Errors
    /// [`Error::Fenced`] if another process took the mirror over; what the exchange met.
    pub async fn take_over(
        &mut self,
        epoch: i64,
        session: ClientSession,
        lanes: usize,
    ) -> Result<()> {
        let fence = Fence {
            epoch,
            session: Mutex::new(session),
            shown: watch::Sender::new(Instant::now()),
        };
        // The checkpoint is held meanwhile, so that of two processes the newer one is the last.
        let held = self.hold(
            CHECKPOINTS,
            epoch,
            &doc! {"$set": {"updatedAt": DateTime::now()}},
        )?;
        let ours = doc! {"$set": {"epoch": epoch}};
        let own = doc! {"q": {"_id": &self.target}, "u": &ours, "upsert": true};
        // Those of an earlier process, too, which may have had more.
        let lanes = (0..MOST_LANES).map(|lane| {
            doc! {"q": {"_id": self.lane_id(lane)}, "u": &ours, "upsert": lane < lanes}
        });
        let updates: Vec<Document> = std::iter::once(own).chain(lanes).collect();
        let taken = doc! {"update": FENCES, "updates": updates};
        let taken = [(Write::TakeNotes, raw(&taken)?)];
        self.carry_out(&fence, &held, &taken).await?;
        self.fence = Some(Arc::new(fence));
        Ok(())
    }

    /// Carries out commands on what is noted: all of them or none.
    ///
    /// # Errors
    /// [`Error::Fenced`] if another process took the mirror over; what the exchange met.
    pub(super) async fn note(&self, notes: &[Noted]) -> Result<()> {
        let fence = self.fence.as_deref().ok_or_else(|| Error::Reply {
            side: Side::Target,
            doing: Write::FenceNote.doing(),
            what: "the mirror was not taken over".into(),
        })?;
        let held = self.hold(FENCES, fence.epoch, &doc! {"$inc": {"notes": 1_i64}})?;
        self.carry_out(fence, &held, notes).await
    }

    fn lane_id(&self, lane: usize) -> Document {
        doc! {"t": &self.target, "lane": i64::try_from(lane).unwrap_or(i64::MAX)}
    }

    /// The command that a lane's transaction holds its document with; must match one.
    ///
    /// # Errors
    /// If it cannot be encoded, which no lane can cause.
    pub fn lane_command(&self, epoch: i64, lane: usize) -> Result<RawDocumentBuf> {
        raw(&doc! {
            "update": FENCES,
            "updates": [{
                "q": {"_id": self.lane_id(lane), "epoch": epoch},
                "u": {"$inc": {"batches": 1_i64}},
            }],
        })
    }

    /// Something was written that others see.
    pub fn shown(&self) {
        if let Some(fence) = self.fence.as_deref() {
            fence.shown.send_replace(Instant::now());
        }
    }

    /// Shows that the process is alive, whenever nothing else has shown it for a while. Never ends.
    pub async fn keep_showing(self) {
        loop {
            let last = self.fence.as_deref().map(|fence| *fence.shown.borrow());
            let quiet = last.map_or(Duration::ZERO, |last| last.elapsed());
            if quiet < SIGN {
                tokio::time::sleep(SIGN - quiet).await;
                continue;
            }
            if let Err(error) = self.note(&[]).await {
                // Whoever does something meets it, too.
                tracing::debug!(%error, "showing that the mirror is alive");
            }
            self.shown();
        }
    }

    /// Ends a note that was cut off in its middle.
    pub async fn give_up_note(&self) {
        if let Some(fence) = self.fence.as_deref() {
            abort(&mut *fence.session.lock().await).await;
        }
    }

    /// How many notes there were: a process that plans moves nothing else.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn noted(&self) -> Result<i64> {
        let found = self.find_one(FENCES).await?;
        Ok(found.map_or(0, |fence| number(&fence, "notes")))
    }

    /// The epoch of the last process that noted anything.
    pub(super) async fn last_epoch(&self) -> Result<i64> {
        let found = self.find_one(FENCES).await?;
        Ok(found.map_or(0, |fence| number(&fence, "epoch")))
    }

    /// The command that touches this target's document of a collection only if it is of this epoch.
    fn hold(&self, collection: &str, epoch: i64, touch: &Document) -> Result<RawDocumentBuf> {
        raw(&doc! {
            "update": collection,
            "updates": [{"q": {"_id": &self.target, "epoch": epoch}, "u": touch}],
        })
    }

    async fn carry_out(&self, fence: &Fence, held: &RawDocumentBuf, notes: &[Noted]) -> Result<()> {
        let mut session = fence.session.lock().await;
        let mut tries = Tries::default();
        loop {
            begin(&mut session).await?;
            let noted = self.note_in(fence.epoch, held, notes, &mut session);
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
                outcome => {
                    fence.shown.send_replace(Instant::now());
                    return outcome;
                }
            }
        }
    }

    async fn note_in(
        &self,
        epoch: i64,
        held: &RawDocumentBuf,
        notes: &[Noted],
        session: &mut ClientSession,
    ) -> Result<()> {
        let commands = &self.commands;
        let held = commands.write_in(Write::FenceNote, held.clone(), session);
        fenced_unless(number(&held.await?, "n") == 1, epoch)?;
        for (write, command) in notes {
            commands.write_in(*write, command.clone(), session).await?;
        }
        Ok(())
    }
}
