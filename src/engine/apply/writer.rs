//! Writes a batch in one transaction, the checkpoint inside.

use std::collections::HashMap;
use std::time::Duration;

use bson::Document;
use mongodb::error::{TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::{ClientSession, Database};

use super::commands::{Command, by_collection, encode, put, remove};
use super::gather::{Batch, CollectionIndex, Entity, Outcome};
use crate::engine::command::{COMMAND_LIMIT, Commands, number, within};
use crate::engine::connection::probe::TargetAbilities;
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::position::Position;
use crate::engine::repair::fetch;
use crate::engine::state::{Ahead, StateStore};
use crate::engine::stream::event::Uuid;
use crate::engine::transaction::{abort, begin};

/// Tries of one batch before the mirror starts over from its checkpoint.
const TRIES: u32 = 8;

/// First pause between tries; doubled each time.
const PAUSE: Duration = Duration::from_millis(10);

/// How long an unknown commit is asked about before the mirror starts over. The checkpoint
/// settles it then: taking the mirror over waits for whatever still holds that document.
const COMMIT_LIMIT: Duration = Duration::from_secs(30);

/// Names and identities of the collections in a batch.
pub type Names = HashMap<CollectionIndex, (String, Uuid)>;

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
    /// The collections it touches.
    pub names: Names,
    /// Documents that are ahead, if that list changes with this batch.
    pub ahead: Option<Vec<Ahead>>,
}

/// What a batch did.
#[derive(Debug, Default, Clone)]
pub struct Written {
    /// Statements sent.
    pub operations: u64,
    /// Documents that were not as the stream said and were repaired.
    pub repaired: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// Documents that were read later than the position.
    pub ahead: Vec<Ahead>,
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
}

/// Why a try did not succeed.
enum Failure {
    /// A document was not there, or was there although it should not.
    Diverged,
    Error(Error),
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
    /// checkpoint tells which.
    pub async fn write(&mut self, prepared: &Prepared) -> Result<Written> {
        let mut written = Written::default();
        if prepared.part != Part::Whole {
            return match self.write_part(prepared, &mut written).await {
                Ok(()) => Ok(written),
                Err(Failure::Diverged) => Err(unsettled()),
                Err(Failure::Error(error)) => Err(error),
            };
        }
        let mut pause = PAUSE;
        let mut one_by_one = false;
        loop {
            match self.attempt(prepared, one_by_one, &mut written).await {
                Ok(()) => return Ok(written),
                Err(Failure::Diverged) if !one_by_one => one_by_one = true,
                Err(Failure::Diverged) => return Err(unsettled()),
                Err(Failure::Error(error)) => {
                    written.retries += 1;
                    if !is_worth_retrying(&error) || written.retries > u64::from(TRIES) {
                        return Err(error);
                    }
                    tracing::debug!(%error, "writing a batch again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
    }

    async fn attempt(
        &mut self,
        prepared: &Prepared,
        one_by_one: bool,
        written: &mut Written,
    ) -> Result<(), Failure> {
        written.operations = 0;
        written.repaired = 0;
        written.ahead.clear();
        let mut session = match self.session.take() {
            Some(session) => session,
            None => start_session(&self.state).await?,
        };
        let outcome = self
            .transact(prepared, one_by_one, &mut session, written)
            .await;
        self.session = Some(session);
        outcome
    }

    async fn transact(
        &self,
        prepared: &Prepared,
        one_by_one: bool,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        begin(session).await?;
        let outcome = self.fill(prepared, one_by_one, session, written).await;
        match outcome {
            Ok(()) => Ok(self.commit(session).await?),
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
            None => match self.session.take() {
                Some(session) => (session, true),
                None => (start_session(&self.state).await?, true),
            },
        };
        if is_first {
            begin(&mut session).await?;
        }
        let mut filled = self
            .fill_documents(prepared, false, &mut session, written)
            .await;
        if matches!(filled, Err(Failure::Diverged)) {
            // Deltas say what a field becomes, so laying one over itself changes nothing.
            filled = self
                .fill_documents(prepared, true, &mut session, written)
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
        self.commit(&mut session).await?;
        self.session = Some(session);
        Ok(())
    }

    /// Everything inside the transaction.
    async fn fill(
        &self,
        prepared: &Prepared,
        one_by_one: bool,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        self.fill_documents(prepared, one_by_one, session, written)
            .await?;
        self.fill_state(prepared, session, written).await
    }

    async fn fill_documents(
        &self,
        prepared: &Prepared,
        one_by_one: bool,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        for (index, entities) in by_collection(prepared.batch.entities()) {
            let Some((name, uuid)) = prepared.names.get(&index) else {
                continue;
            };
            let again = if one_by_one {
                self.write_one_by_one(name, &entities, session, written)
                    .await?
            } else {
                let commands = encode(name, entities.iter().copied(), self.abilities);
                for command in commands {
                    self.run(command, session, written).await?;
                }
                entities
                    .into_iter()
                    .filter(|entity| entity.outcome == Outcome::Refetch)
                    .collect()
            };
            if !again.is_empty() {
                self.rewrite(name, *uuid, &again, &prepared.position, session, written)
                    .await?;
            }
        }
        Ok(())
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
            let Some((_, uuid)) = prepared.names.get(&range.collection) else {
                continue;
            };
            let update = range.update.clone();
            let command = self
                .state
                .range_command(self.epoch, *uuid, range.number, update)?;
            let reply = state.run_in("complete a range", command, session).await?;
            self.fenced_unless_one(&reply)?;
        }
        let all_ahead = (prepared.ahead.is_some() || !written.ahead.is_empty()).then(|| {
            let before = prepared.ahead.as_deref().unwrap_or_default();
            [before, &written.ahead].concat()
        });
        let command =
            self.state
                .checkpoint_command(self.epoch, &prepared.position, all_ahead.as_deref())?;
        let reply = state
            .run_in("write the checkpoint", command, session)
            .await?;
        self.fenced_unless_one(&reply)?;
        Ok(())
    }

    /// Runs one command; what it should have found and did not is divergence.
    async fn run(
        &self,
        command: Command,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        written.operations += u64::try_from(command.expected).unwrap_or(0);
        let reply = self
            .target
            .run_in("write a batch", command.body, session)
            .await;
        match reply {
            Ok(reply) if number(&reply, "n") == command.expected => Ok(()),
            Ok(_) => Err(Failure::Diverged),
            Err(error) if error.code() == Some(code::DUPLICATE_KEY) => Err(Failure::Diverged),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes every document by itself, so that the target's own state no longer matters; returns
    /// those that must be read from the source.
    async fn write_one_by_one<'a>(
        &self,
        name: &str,
        entities: &[&'a Entity],
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<Vec<&'a Entity>, Failure> {
        let mut again = Vec::new();
        for entity in entities {
            let commands = match &entity.outcome {
                Outcome::Delete | Outcome::Nothing => remove(name, &entity.id, self.abilities),
                Outcome::Insert { document, deltas } | Outcome::Replace { document, deltas }
                    if deltas.is_empty() =>
                {
                    put(name, &entity.id, document, self.abilities)
                }
                Outcome::Update(_) => encode(name, std::iter::once(*entity), self.abilities),
                _ => {
                    again.push(*entity);
                    continue;
                }
            };
            for command in commands {
                written.operations += 1;
                let expected = command.expected;
                let doing = "write a document";
                let reply = self.target.run_in(doing, command.body, session).await?;
                let is_update = matches!(entity.outcome, Outcome::Update(_));
                if is_update && number(&reply, "n") != expected {
                    again.push(entity);
                    break;
                }
            }
        }
        Ok(again)
    }

    /// Makes documents what the source says they are at the position.
    async fn rewrite(
        &self,
        name: &str,
        uuid: Uuid,
        entities: &[&Entity],
        position: &Position,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        let keys: Vec<_> = entities.iter().map(|entity| &entity.id).collect();
        let fetched = fetch(&self.source, name, uuid, &keys, position.time).await?;
        for (entity, document) in entities.iter().zip(fetched.documents) {
            let commands = match document {
                Some(document) => put(name, &entity.id, &document, self.abilities),
                None => remove(name, &entity.id, self.abilities),
            };
            for command in commands {
                written.operations += 1;
                self.target
                    .run_in("repair a document", command.body, session)
                    .await?;
            }
            if entity.outcome != Outcome::Refetch {
                written.repaired += 1;
            }
            if fetched.as_of > position.time {
                written.ahead.push(Ahead {
                    uuid,
                    id: entity.id.clone(),
                    until: fetched.as_of,
                });
            }
        }
        Ok(())
    }

    /// Commits, and asks again as long as the outcome is unknown.
    async fn commit(&self, session: &mut ClientSession) -> Result<()> {
        let doing = "commit a batch";
        let since = tokio::time::Instant::now();
        loop {
            let commit = session.commit_transaction();
            let outcome = within(Side::Target, doing, COMMAND_LIMIT, commit).await;
            let Err(error) = outcome else {
                return Ok(());
            };
            let unknown = error.has_label(UNKNOWN_TRANSACTION_COMMIT_RESULT);
            if !unknown || since.elapsed() > COMMIT_LIMIT {
                return Err(error);
            }
            tokio::time::sleep(PAUSE * 10).await;
        }
    }

    fn fenced_unless_one(&self, reply: &Document) -> Result<()> {
        if number(reply, "n") == 1 {
            Ok(())
        } else {
            Err(Error::Fenced { epoch: self.epoch })
        }
    }
}

fn unsettled() -> Error {
    Error::Reply {
        side: Side::Target,
        doing: "write a batch",
        what: "its documents changed while they were repaired".into(),
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

/// Whether the server promises that nothing was written and that another try can succeed.
fn is_worth_retrying(error: &Error) -> bool {
    error.has_label(TRANSIENT_TRANSACTION_ERROR)
}
