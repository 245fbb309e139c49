//! Writes a batch in one transaction, the checkpoint inside.

use std::collections::{HashMap, HashSet};

use bson::{DateTime, Document, doc};
use mongodb::{ClientSession, Database};

use super::commands::{by_collection, encode};
use super::entity::{CollectionIndex, Entity, Outcome};
use super::gather::Batch;
use super::lanes::Lanes;
use super::refused::healed;
use crate::engine::command::{COMMAND_LIMIT, Commands, number, within};
use crate::engine::connection::probe::TargetAbilities;
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::position::{Ahead, ClusterTime, Position};
use crate::engine::quarantine::{Key, Refused, Room};
use crate::engine::state::{Outside, StateStore, Way};
use crate::engine::stream::event::Uuid;
use crate::engine::transaction::{Tries, abort, begin, commit};
use crate::engine::writes::Write;

/// The collections in a batch.
pub type Names = HashMap<CollectionIndex, Named>;

/// A collection as a batch needs it.
#[derive(Clone, PartialEq, Debug)]
pub struct Named {
    /// What it is called on the target.
    pub name: String,
    /// Its identity on the source.
    pub uuid: Uuid,
    /// How it may be written.
    pub way: Way,
    /// Its identity on the target, where that is needed.
    pub guard: Option<Uuid>,
    /// Its documents depend on each other.
    pub is_connected: bool,
}

/// How a batch relates to the target's transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// It is one transaction.
    Whole,
    /// More of the same transaction follows: a source transaction that is larger than what may be
    /// in memory is passed on piece by piece, and still becomes visible as a whole.
    More,
    /// The last piece.
    Last,
}

/// A batch that is ready to be written.
pub struct Prepared {
    /// Whether it is a transaction by itself.
    pub part: Part,
    /// What to write.
    pub batch: Batch,
    /// Where the mirror stands after it.
    pub position: Position,
    /// Until when everything was there before it.
    pub before: ClusterTime,
    /// The collections it touches.
    pub names: Names,
    /// What was ahead of the position before it.
    pub ahead: Ahead,
    /// A command that an earlier process began is still to come.
    pub in_command: bool,
    /// The documents in it that the target refused before, and as of when: all but those of capped
    /// collections.
    pub quarantined: Vec<(Key, ClusterTime)>,
    /// Those of capped collections.
    pub missing: HashSet<Key>,
    /// How many more of them there may be.
    pub room: Room,
}

/// What a batch did.
#[derive(Debug, Default, Clone)]
pub struct Written {
    /// Statements sent.
    pub operations: u64,
    /// Documents that were not as the stream said and were repaired.
    pub repaired: u64,
    /// What became of those that were compared on request.
    pub reconciled: Reconciled,
    /// Tries beyond the first.
    pub retries: u64,
    /// Collections whose unique indexes had to go.
    pub relaxed: Vec<CollectionIndex>,
    /// The latest time that documents were read at, if that is later than the position.
    pub ahead_until: Option<ClusterTime>,
    /// Documents that the target does not take.
    pub refused: Vec<Refused>,
    /// Documents that it takes now.
    pub healed: Vec<Key>,
    /// The target's cluster time behind it: nothing of the next batch is there yet.
    pub target_time: Option<ClusterTime>,
}

/// What became of documents that were compared with the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reconciled {
    /// Put, because they were missing or different.
    pub written: u64,
    /// Removed, because the source does not have them.
    pub deleted: u64,
    /// As they should be.
    pub unchanged: u64,
    /// Not taken by the target.
    pub refused: u64,
}

/// Writes batches, one after the other.
pub struct Writer {
    /// The target database.
    pub target: Commands,
    /// The mirror's memory.
    pub state: StateStore,
    /// The source database, for documents that must be read again.
    pub source: Database,
    /// Our fencing epoch.
    pub epoch: i64,
    /// What the target accepts.
    pub abilities: TargetAbilities,
    /// The session whose transactions are the batches; its id is in the checkpoint, so that what
    /// it leaves open after a crash can be ended at once.
    pub session: Option<ClientSession>,
    /// The same, in the middle of a transaction of several pieces.
    pub unfinished: Option<ClientSession>,
    /// What is announced to be written outside of transactions.
    pub outside: Outside,
    /// Documents of capped collections that are refused no longer, of the pieces of a transaction
    /// that is not committed.
    pub returned: Vec<Key>,
    /// Which lane of another writer this is. Its transactions hold that, and no position.
    pub lane: Option<usize>,
    /// What documents are written in instead, where there are many.
    pub lanes: Lanes,
}

/// Why a try did not succeed.
pub(super) enum Failure {
    /// A document was not there, or was there although it should not.
    Diverged,
    /// Two documents of this collection would have the same unique key.
    Conflict(CollectionIndex),
    /// A document of this collection holds one name twice, and servers take no pipeline for it
    /// (`facts` mongodb 3.4).
    NameTwice(CollectionIndex, Error),
    /// The target does not take a document of this collection.
    Refused(CollectionIndex, Error),
    Error(Error),
}

impl Failure {
    /// Of a command that writes documents of this collection.
    fn of(error: Error, collection: CollectionIndex) -> Self {
        // A duplicate key's error repeats the key, which the driver may not be able to read.
        if error.is_duplicate_key() || error.is_unreadable() {
            Self::Conflict(collection)
        } else if error.code() == Some(code::NAME_TWICE) {
            Self::NameTwice(collection, error)
        } else if error.is_refused_document() {
            Self::Refused(collection, error)
        } else {
            Self::Error(error)
        }
    }

    fn in_collection(self, collection: CollectionIndex) -> Self {
        match self {
            Self::Error(error) => Self::of(error, collection),
            other => other,
        }
    }
}

/// How a batch is tried: each failure leads to a way that depends less on what is on the target.
#[derive(Default)]
struct Ladder {
    /// Document by document, with repairs.
    one_by_one: bool,
    /// Collections whose documents are removed first and then put.
    anew: HashSet<CollectionIndex>,
    /// Collections that no longer enforce unique keys.
    relaxed: Vec<CollectionIndex>,
    /// Collections whose documents are read from the source.
    from_source: HashSet<CollectionIndex>,
    /// Documents that the target does not take even so; they are left out.
    refused: Vec<Refused>,
    /// Documents of capped collections that were refused before, and are not any more.
    returned: Vec<Key>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Writer {
    /// Writes a batch; on return it is committed by a majority.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another process took over; anything that several tries did not
    /// overcome. The target then holds either all of the batch or nothing of it, and the
    /// checkpoint tells which; in lanes perhaps some of it, which the checkpoint has announced.
    pub async fn write(&mut self, mut prepared: Prepared) -> Result<Written> {
        let mut before = Written::default();
        self.write_outside(&prepared, &mut before).await?;
        self.write_in_lanes(&mut prepared, &mut before).await?;
        let mut written = self.write_inside(&prepared, &before).await?;
        written.follow(before);
        // Of the commit; in the middle of a transaction the session is put aside.
        let session = self.session.as_ref();
        let time = session.and_then(ClientSession::operation_time);
        written.target_time = time.map(Into::into);
        if prepared.part != Part::More {
            self.outside_is_settled(&prepared);
            written.healed.append(&mut self.returned);
        }
        Ok(written)
    }

    /// Writes the transaction, which also notes what was refused before it.
    pub(super) async fn write_inside(
        &mut self,
        prepared: &Prepared,
        before: &Written,
    ) -> Result<Written> {
        let mut written = Written {
            ahead_until: before.ahead_until,
            refused: before.refused.clone(),
            ..Written::default()
        };
        if prepared.part != Part::Whole {
            return match self.write_part(prepared, &mut written).await {
                Ok(()) => Ok(written),
                Err(Failure::Diverged) => Err(Error::Unsettled),
                Err(Failure::Conflict(collection)) => {
                    // What is in the middle of a source transaction cannot be read from the source.
                    self.relax_named(prepared, collection).await?;
                    Err(Error::Unsettled)
                }
                Err(Failure::Refused(collection, error)) => {
                    self.note_refused(prepared, collection, error).await?;
                    Err(Error::Unsettled)
                }
                // The next run reads such documents again (`Before::learn`).
                Err(Failure::NameTwice(_, error) | Failure::Error(error)) => Err(error),
            };
        }
        let mut tries = Tries::default();
        let mut ladder = Ladder {
            refused: before.refused.clone(),
            returned: before.healed.clone(),
            ..Ladder::default()
        };
        loop {
            written.ahead_until = before.ahead_until;
            match self.attempt(prepared, &ladder, &mut written).await {
                Ok(()) => {
                    written.relaxed = ladder.relaxed;
                    written.healed = healed(prepared, &ladder.refused);
                    written.healed.append(&mut ladder.returned);
                    written.reconciled.refused = ladder.refused.len() as u64;
                    written.refused = ladder.refused;
                    return Ok(written);
                }
                Err(Failure::Diverged) if !ladder.one_by_one => ladder.one_by_one = true,
                Err(Failure::Diverged) => return Err(Error::Unsettled),
                Err(Failure::Conflict(collection)) => {
                    if ladder.anew.insert(collection) {
                        continue;
                    }
                    if ladder.relaxed.contains(&collection) {
                        return Err(Error::Unsettled);
                    }
                    self.relax_named(prepared, collection).await?;
                    ladder.relaxed.push(collection);
                }
                Err(Failure::Refused(collection, error)) => {
                    if !ladder.from_source.insert(collection) {
                        return Err(error);
                    }
                    let refused = self.find_refused(prepared, collection).await?;
                    ladder.refused.extend(refused);
                    prepared.room.check(&ladder.refused)?;
                }
                Err(Failure::NameTwice(collection, error)) => {
                    if !ladder.anew.insert(collection) {
                        return Err(error);
                    }
                }
                Err(Failure::Error(error)) => {
                    written.retries += 1;
                    if !tries.again(&error).await {
                        return Err(error);
                    }
                    tracing::debug!(%error, "writing a batch again");
                }
            }
        }
    }

    async fn relax_named(&self, prepared: &Prepared, collection: CollectionIndex) -> Result<()> {
        let Some(named) = prepared.names.get(&collection) else {
            return Ok(());
        };
        tracing::warn!(
            collection = named.name,
            "a unique index of the target is in the way of what the source holds; built anew"
        );
        // Fenced: a process that was replaced may be wrong about what is on the target.
        let set = doc! {"updatedAt": DateTime::now()};
        let hold = self.state.update(Write::HoldCheckpoint, self.epoch, set);
        hold.await?;
        self.relax(&named.name).await
    }

    /// The session that is kept for the next transaction, or a new one.
    pub(super) async fn take_session(&mut self) -> Result<ClientSession> {
        match self.session.take() {
            Some(session) => Ok(session),
            None => start_session(&self.state).await,
        }
    }

    async fn attempt(
        &mut self,
        prepared: &Prepared,
        ladder: &Ladder,
        written: &mut Written,
    ) -> Result<(), Failure> {
        written.operations = 0;
        written.repaired = 0;
        written.reconciled = Reconciled::default();
        let mut session = self.take_session().await?;
        let outcome = self.transact(prepared, ladder, &mut session, written).await;
        self.session = Some(session);
        outcome
    }

    async fn transact(
        &self,
        prepared: &Prepared,
        ladder: &Ladder,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        begin(session).await?;
        let outcome = self.fill(prepared, ladder, session, written).await;
        match outcome {
            Ok(()) => {
                let write = match self.lane {
                    Some(_) => Write::CommitLane,
                    None => Write::CommitBatch,
                };
                Ok(commit(write, session).await?)
            }
            Err(failure) => {
                abort(session).await;
                Err(failure)
            }
        }
    }

    /// Writes a piece of a transaction. Its earlier pieces are gone from memory, so a failure
    /// ends the run, and the next one starts over from the checkpoint.
    async fn write_part(
        &mut self,
        prepared: &Prepared,
        written: &mut Written,
    ) -> Result<(), Failure> {
        let (mut session, is_first) = match self.unfinished.take() {
            Some(session) => (session, false),
            None => (self.take_session().await?, true),
        };
        if is_first {
            begin(&mut session).await?;
        }
        let mut ladder = Ladder::default();
        let mut filled = self
            .fill_documents(prepared, &ladder, &mut session, written)
            .await;
        if matches!(filled, Err(Failure::Diverged)) {
            // Deltas say what a field becomes, so laying one over itself changes nothing.
            ladder.one_by_one = true;
            filled = self
                .fill_documents(prepared, &ladder, &mut session, written)
                .await;
        }
        if let Err(failure) = filled {
            abort(&mut session).await;
            return Err(failure);
        }
        if prepared.part == Part::More {
            self.unfinished = Some(session);
            return Ok(());
        }
        self.fill_state(prepared, &mut session, written).await?;
        commit(Write::CommitBatch, &mut session).await?;
        self.session = Some(session);
        Ok(())
    }

    /// Everything inside the transaction.
    async fn fill(
        &self,
        prepared: &Prepared,
        ladder: &Ladder,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        self.fill_documents(prepared, ladder, session, written)
            .await?;
        if let Some(lane) = self.lane {
            return Ok(self.hold_lane(lane, session).await?);
        }
        let returned = &ladder.returned;
        self.fill_quarantine(prepared, &ladder.refused, returned, session)
            .await?;
        self.fill_state(prepared, session, written).await
    }

    async fn fill_documents(
        &self,
        prepared: &Prepared,
        ladder: &Ladder,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        for (index, mut entities) in by_collection(prepared.batch.entities()) {
            let Some(named) = prepared.names.get(&index) else {
                continue;
            };
            let is_left_out = |entity: &Entity| {
                let is = |key: &Key| key.0 == named.uuid && key.1 == entity.id;
                ladder.refused.iter().any(|refused| is(&refused.key))
                    || (prepared.part != Part::Whole
                        && prepared.quarantined.iter().any(|(key, _)| is(key)))
            };
            entities.retain(|entity| !is_left_out(entity));
            self.fill_collection(prepared, ladder, (index, named), entities, session, written)
                .await
                .map_err(|failure| failure.in_collection(index))?;
        }
        Ok(())
    }

    async fn fill_collection(
        &self,
        prepared: &Prepared,
        ladder: &Ladder,
        (index, named): (CollectionIndex, &Named),
        entities: Vec<&Entity>,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        if ladder.anew.contains(&index) {
            return self
                .write_anew(named, &entities, prepared, session, written)
                .await;
        }
        if ladder.from_source.contains(&index) {
            let of_source = |entity: &&Entity| match entity.outcome {
                Outcome::Reconcile => (*entity).clone(),
                _ => entity.becomes(Outcome::Refetch),
            };
            let entities: Vec<Entity> = entities.iter().map(of_source).collect();
            let all: Vec<&Entity> = entities.iter().collect();
            let at = (&prepared.position, ladder.refused.as_slice());
            return self.rewrite(named, &all, at, session, written).await;
        }
        let again = if ladder.one_by_one {
            self.write_one_by_one(&named.name, &entities, session, written)
                .await?
        } else {
            for command in encode(&named.name, entities.iter().copied(), self.abilities) {
                self.run(command, session, written).await?;
            }
            entities
                .into_iter()
                .filter(|entity| entity.outcome.is_asked())
                .collect()
        };
        if again.is_empty() {
            return Ok(());
        }
        let at = (&prepared.position, ladder.refused.as_slice());
        self.rewrite(named, &again, at, session, written).await
    }

    /// What the mirror remembers of the batch.
    async fn fill_state(
        &self,
        prepared: &Prepared,
        session: &mut ClientSession,
        written: &Written,
    ) -> Result<(), Failure> {
        let state = self.state.commands();
        for range in &prepared.batch.ranges_done {
            let Some(named) = prepared.names.get(&range.collection) else {
                continue;
            };
            let update = range.update.clone();
            let command = self
                .state
                .range_command(self.epoch, named.uuid, range.number, update)?;
            let reply = state
                .write_in(Write::CompleteRange, command, session)
                .await?;
            self.fenced_unless_one(&reply)?;
        }
        let ahead = prepared.ahead.and(written.ahead_until);
        let settles = self.settles_outside(prepared);
        let command = self.state.checkpoint_command(
            self.epoch,
            &prepared.position,
            ahead,
            settles,
            prepared.in_command,
        )?;
        let reply = state
            .write_in(Write::MovePosition, command, session)
            .await?;
        self.fenced_unless_one(&reply)?;
        Ok(())
    }

    pub(super) fn fenced_unless_one(&self, reply: &Document) -> Result<()> {
        if number(reply, "n") == 1 {
            Ok(())
        } else {
            Err(Error::Fenced { epoch: self.epoch })
        }
    }
}

impl Written {
    /// Of several that were written at the same time, all together.
    pub(super) fn absorb(&mut self, other: Self) {
        self.operations += other.operations;
        self.repaired += other.repaired;
        self.reconciled.add(other.reconciled);
        self.retries += other.retries;
        self.relaxed.extend(other.relaxed);
        self.ahead_until = self.ahead_until.max(other.ahead_until);
        self.refused.extend(other.refused);
        self.healed.extend(other.healed);
    }

    /// Adds what was written before it; what that was refused is in it already.
    fn follow(&mut self, before: Self) {
        self.absorb(Self {
            refused: Vec::new(),
            healed: Vec::new(),
            reconciled: Reconciled {
                refused: 0,
                ..before.reconciled
            },
            ..before
        });
    }
}

impl Reconciled {
    pub(super) fn note(&mut self, is_equal: bool, is_on_source: bool) {
        match (is_equal, is_on_source) {
            (true, _) => self.unchanged += 1,
            (false, true) => self.written += 1,
            (false, false) => self.deleted += 1,
        }
    }

    /// Counts more of them.
    pub fn add(&mut self, more: Self) {
        self.written += more.written;
        self.deleted += more.deleted;
        self.unchanged += more.unchanged;
        self.refused += more.refused;
    }
}

/// A session on the target.
///
/// # Errors
/// What the driver says.
pub async fn start_session(state: &StateStore) -> Result<ClientSession> {
    let start = state.client().start_session();
    within(Side::Target, "start a session", COMMAND_LIMIT, start).await
}
