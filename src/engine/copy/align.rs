//! Makes one range of the target what the source holds, by comparing: what is equal already is
//! only read.

use mongodb::ClientSession;

use super::lane::{Job, Lane, Reached, Try};
use super::writing::Work;
use crate::engine::apply::commands::{Command, encode};
use crate::engine::apply::entity::{Entity, Outcome};
use crate::engine::command::number;
use crate::engine::compare::{Broken, Comparison, Pair, Step};
use crate::engine::connection::probe::operation_time;
use crate::engine::error::{Error, Result, Side};
use crate::engine::position::ClusterTime;
use crate::engine::snapshot::ReadEnd;
use crate::engine::writes::Write;

impl Lane {
    /// Compares the range and writes what differs, in transactions that are fenced like those of
    /// a copy. Nobody else writes to the range meanwhile: its events wait.
    pub(super) async fn align(
        &self,
        job: &Job,
        source_name: &str,
        reached: &mut Option<Reached>,
        session: &mut ClientSession,
    ) -> Result<Try, Try> {
        let at = operation_time(self.source.client(), Side::Source).await?;
        let mut range = reached.take().unwrap_or_else(|| Reached::nothing(at));
        range.at.to = at;
        let pair = Pair {
            source: self.source.clone(),
            source_name: source_name.to_owned(),
            uuid: job.uuid,
            at,
            target: self.target.db.clone(),
            target_name: job.name.clone(),
            target_at: None,
            collection: job.collection,
            batch_size: job.batch_size,
        };
        let end = self.align_piece(job, pair, &mut range, session).await;
        // What was compared to its end is equal, however the rest went.
        if end.is_err() && range.last.is_some() {
            *reached = Some(range);
        }
        end
    }

    async fn align_piece(
        &self,
        job: &Job,
        pair: Pair,
        range: &mut Reached,
        session: &mut ClientSession,
    ) -> Result<Try, Try> {
        let low = range.last.clone().or_else(|| job.low.clone());
        let mut comparison = Comparison::open(pair, low, job.high.clone()).await?;
        while let Some(step) = comparison.next().await? {
            match step {
                Step::Differences(different) => {
                    self.put_right(job, session, different, range.at.to).await?;
                }
                Step::Passed(stretch) => {
                    range.last = comparison.low().cloned();
                    range.documents += stretch.documents;
                    range.bytes += stretch.bytes;
                    self.tell(job, range);
                    self.keep_pace(stretch.bytes).await;
                }
            }
            if self.stop.is_cancelled() {
                return Ok(Try::Stopped);
            }
        }
        Ok(Try::Done {
            at: range.at,
            documents: range.documents,
            bytes: range.bytes,
            unfenced: None,
        })
    }

    async fn put_right(
        &self,
        job: &Job,
        session: &mut ClientSession,
        different: Vec<Entity>,
        at: ClusterTime,
    ) -> Result<()> {
        let commands = encode(&job.name, different.iter(), self.abilities);
        let work = Work::Align(commands, Vec::new());
        let error = match self.transaction(job, session, &work).await {
            Err(error) if error.is_refused_document() => error,
            outcome => return outcome,
        };
        let documents: Vec<&[u8]> = different.iter().filter_map(Entity::document).collect();
        let refused = self.refused(job, &documents, at, session).await?;
        if refused.is_empty() {
            return Err(error);
        }
        // What the target still has of such a document is not what the source has.
        let kept = different.iter().map(|entity| {
            let is_refused = refused.iter().any(|one| one.key.1 == entity.id);
            match (is_refused, &entity.outcome) {
                (false, _) => entity.clone(),
                (true, Outcome::Insert { .. }) => entity.becomes(Outcome::Nothing),
                (true, _) => entity.becomes(Outcome::Delete),
            }
        });
        let kept: Vec<Entity> = kept.collect();
        let commands = encode(&job.name, kept.iter(), self.abilities);
        let work = Work::Align(commands, refused.clone());
        self.transaction(job, session, &work).await?;
        self.tell_refused(refused).await;
        Ok(())
    }

    pub(super) async fn run_aligning(
        &self,
        commands: &[Command],
        session: &mut ClientSession,
    ) -> Result<()> {
        for command in commands {
            let reply = self
                .target
                .write_in(Write::AlignRange, command.body.clone(), session)
                .await?;
            if number(&reply, "n") != command.expected {
                return Err(Error::Reply {
                    side: Side::Target,
                    doing: Write::AlignRange.doing(),
                    what: "its documents changed while they were compared".into(),
                });
            }
        }
        Ok(())
    }
}

impl From<Broken> for Try {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Source(end) => end.into(),
            Broken::Target(ReadEnd::Failed(error)) => Self::Failed(error),
            // The target is read as it is now: it is looked at again.
            Broken::Target(_) => Self::Again(None),
        }
    }
}
