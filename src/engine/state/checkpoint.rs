//! One document per target database: whose it is, who may write, how far the stream is applied.

use std::time::Duration;

use bson::{Bson, DateTime, Document, RawDocumentBuf, Timestamp, doc};

use super::codec::{Fields, binary, fenced_unless, integer, raw, uuid_of};
use super::{CHECKPOINTS, StateStore};
use crate::engine::command::number;
use crate::engine::error::{Error, Result, Side};
use crate::engine::position::{Ahead, ClusterTime, Position, ResumeToken, StartPoint};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

/// Version of the state's documents; a newer one is not touched.
const FORMAT: i32 = 1;

/// How long a take-over may wait on the server: one that outlives its process would fence the
/// next one.
const CLAIM_LIMIT: Duration = Duration::from_secs(5);

/// What a target database's checkpoint says.
#[derive(Clone, PartialEq, Debug)]
pub struct Checkpoint {
    /// Whose target this is: the mirror's name.
    pub mirror: String,
    /// Which of several mirrors of this name has it now, if it tells.
    pub holder: Option<String>,
    /// The source deployment's identity.
    pub source: String,
    /// The source database.
    pub database: String,
    /// It has let the target go, and writes nothing any more.
    pub released: bool,
    /// It was ended for good, and no mirror has gone on since.
    pub ended: bool,
    /// Where the source's content comes from, the source itself first.
    pub origins: Vec<Origin>,
    /// The selection's fingerprint.
    pub selection: String,
    /// Counts the processes that took the mirror over; only the newest may write.
    pub epoch: i64,
    /// How far the stream is applied; `None` until the copy is planned.
    pub position: Option<Position>,
    /// Until when documents are ahead of the position.
    pub ahead_until: Option<ClusterTime>,
    /// The copy's figures.
    pub copy: CopyFigures,
    /// Ids of the sessions that the last process wrote with.
    pub sessions: Vec<Bson>,
    /// Collections that a plan without a position may have created on the target.
    pub planned: Vec<String>,
    /// A collection command was begun: until it is done, the target's collections may be those
    /// before it or behind it.
    pub in_command: bool,
    /// A copy over what the target holds was begun, and is not planned yet.
    pub resync: bool,
    /// The mirror was ended for good: the target expires and evicts by itself since then.
    pub armed: bool,
    /// What was written outside of transactions since the position.
    pub outside: Outside,
    /// When it was last written, by the clock of whoever wrote it.
    pub updated_at: Option<DateTime>,
}

/// A database that content comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The deployment's identity.
    pub server: String,
    /// The database's name.
    pub database: String,
}

/// Writes outside of transactions cannot carry the checkpoint, so they are announced before, and
/// the announcement goes with the checkpoint that they belong to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Outside {
    /// The collections that were written to.
    pub collections: Vec<Uuid>,
    /// Until the position is there, they may be ahead of it.
    pub until: Option<ClusterTime>,
}

/// Totals of the copy that survive a restart.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct CopyFigures {
    /// Documents as estimated.
    pub documents_total: u64,
    /// Bytes as estimated.
    pub bytes_total: u64,
    /// Documents copied in ranges that are history.
    pub documents_copied: u64,
    /// Their bytes.
    pub bytes_copied: u64,
    /// When it was planned.
    pub started_at: Option<DateTime>,
    /// When it was completed.
    pub completed_at: Option<DateTime>,
}

impl StateStore {
    /// Reads the checkpoint.
    ///
    /// # Errors
    /// [`Error::Format`] for one that a newer version wrote; what the exchange met.
    pub async fn load(&self) -> Result<Option<Checkpoint>> {
        let found = self.find_one(CHECKPOINTS).await?;
        found
            .map(|document| parse_checkpoint(&document))
            .transpose()
    }

    /// Takes the mirror over: writes who we are and raises the epoch. Whoever held the old epoch
    /// can no longer commit.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn claim(
        &self,
        identity: Document,
        before: Option<&Checkpoint>,
    ) -> Result<Checkpoint> {
        // Exactly what was looked at: of two that come at once, one gets a duplicate key or no
        // match, and looks again.
        let epoch = match before {
            Some(before) => doc! {
                "epoch": before.epoch,
                "position": {"$exists": before.position.is_some()},
            },
            None => doc! {"epoch": {"$exists": false}},
        };
        let mut filter = doc! {"_id": &self.target};
        filter.extend(epoch);
        // Where a checkpoint was deleted, a process of its time may still wake up.
        let more = match before {
            Some(_) => 1,
            None => 1 + self.last_epoch().await?,
        };
        let mut set = identity;
        set.insert("format", FORMAT);
        set.insert("claimedAt", DateTime::now());
        let command = doc! {
            "findAndModify": CHECKPOINTS,
            "query": filter,
            "update": {"$set": set, "$inc": {"epoch": more}},
            "upsert": before.is_none(),
            "new": true,
            "maxTimeMS": i64::try_from(CLAIM_LIMIT.as_millis()).unwrap_or(i64::MAX),
            "writeConcern": {"w": "majority"},
        };
        let reply = self.commands.write(Write::Claim, command).await?;
        let document = reply.get_document("value").map_err(|_| Error::Reply {
            side: Side::Target,
            doing: Write::Claim.doing(),
            what: "another process was faster".into(),
        })?;
        parse_checkpoint(document)
    }

    /// Ends what an earlier process left open on the target: without this, its unfinished
    /// transactions would hold their documents for a minute. Best effort; returns whether it is done.
    pub async fn end_sessions(&self, sessions: &[Bson]) -> bool {
        if sessions.is_empty() {
            return true;
        }
        let ids: Vec<Document> = sessions.iter().map(|id| doc! {"id": id}).collect();
        let command = doc! {"killSessions": ids};
        let ended = self.commands.write(Write::EndSessions, command).await;
        if let Err(error) = &ended {
            tracing::debug!(%error, "sessions end by themselves");
        }
        ended.is_ok()
    }

    /// Changes the checkpoint outside a batch.
    ///
    /// # Errors
    /// [`Error::Fenced`] if the epoch is no longer ours; what the exchange met.
    pub async fn update(&self, write: Write, epoch: i64, set: Document) -> Result<()> {
        let reply = self
            .commands
            .write(
                write,
                doc! {
                    "update": CHECKPOINTS,
                    "updates": [{"q": {"_id": &self.target, "epoch": epoch}, "u": {"$set": set}}],
                    "writeConcern": {"w": "majority"},
                },
            )
            .await?;
        fenced_unless(number(&reply, "n") == 1, epoch)
    }

    /// The target belongs to nobody any more.
    ///
    /// # Errors
    /// [`Error::Fenced`] if the epoch is no longer ours; what the exchange met.
    pub async fn forget(&self, epoch: i64) -> Result<()> {
        let own = doc! {"q": {"_id": &self.target, "epoch": epoch}, "limit": 1};
        let delete = doc! {
            "delete": CHECKPOINTS,
            "deletes": [own],
            "writeConcern": {"w": "majority"},
        };
        let reply = self.commands.write(Write::ClearCatalog, delete).await?;
        fenced_unless(number(&reply, "n") == 1, epoch)?;
        self.forget_verification().await
    }

    /// The command that moves the position, for a batch's transaction; must match one document.
    /// `in_command` as long as a command that an earlier process began is not met again.
    ///
    /// # Errors
    /// If the document cannot be encoded, which no position can cause.
    pub fn checkpoint_command(
        &self,
        epoch: i64,
        position: &Position,
        ahead: Ahead,
        settles_outside: bool,
        in_command: bool,
    ) -> Result<RawDocumentBuf> {
        let mut set = doc! {"position": encode_position(position), "updatedAt": DateTime::now()};
        // A time that the position has passed says nothing any more, and may stay.
        if let Some(until) = ahead.at(position.time).until() {
            set.insert("aheadUntil", Timestamp::from(until));
        }
        let mut unset = Document::new();
        if !in_command {
            // What is behind a command knows that it is done.
            unset.insert("inCommand", true);
        }
        if settles_outside {
            unset.insert("outside", true);
        }
        let mut update = doc! {"$set": set};
        if !unset.is_empty() {
            update.insert("$unset", unset);
        }
        raw(&doc! {
            "update": CHECKPOINTS,
            "updates": [{"q": {"_id": &self.target, "epoch": epoch}, "u": update}],
        })
    }
}

/// What is announced to be written outside of transactions, as stored.
pub fn encode_outside(outside: &Outside) -> Document {
    doc! {
        "collections": outside.collections.iter().copied().map(binary).collect::<Vec<_>>(),
        "until": outside.until.map(Timestamp::from),
    }
}

fn parse_outside(fields: Fields<'_>) -> Result<Outside> {
    Ok(Outside {
        collections: fields.list("collections", uuid_of)?,
        until: fields
            .optional("until", Bson::as_timestamp)?
            .map(Into::into),
    })
}

/// The copy's totals as stored.
pub fn encode_figures(figures: &CopyFigures) -> Document {
    let long = |value| i64::try_from(value).unwrap_or(i64::MAX);
    doc! {
        "documentsTotal": long(figures.documents_total),
        "bytesTotal": long(figures.bytes_total),
        "documentsCopied": long(figures.documents_copied),
        "bytesCopied": long(figures.bytes_copied),
        "startedAt": figures.started_at,
        "completedAt": figures.completed_at,
    }
}

/// An origin as stored.
pub fn encode_origin(origin: &Origin) -> Document {
    doc! {"source": &origin.server, "database": &origin.database}
}

fn parse_origin(origin: &Bson) -> Option<Origin> {
    let origin = origin.as_document()?;
    Some(Origin {
        server: origin.get_str("source").ok()?.to_owned(),
        database: origin.get_str("database").ok()?.to_owned(),
    })
}

/// A position as stored.
pub fn encode_position(position: &Position) -> Document {
    let mut document = doc! {"time": Timestamp::from(position.time)};
    match &position.start {
        StartPoint::At(time) => document.insert("at", Timestamp::from(*time)),
        StartPoint::After(token) => document.insert(
            "after",
            Document::try_from(token.as_raw()).unwrap_or_default(),
        ),
    };
    document
}

fn parse_position(fields: Fields<'_>) -> Result<Position> {
    let time: ClusterTime = fields.required("time", Bson::as_timestamp)?.into();
    let at = fields.optional("at", Bson::as_timestamp)?;
    let after = fields.optional("after", Bson::as_document)?;
    let start = match (at, after) {
        (Some(at), None) => StartPoint::At(at.into()),
        (None, Some(token)) => {
            let token = ResumeToken::from_raw(&raw(token)?);
            // Behind a later token than its time says, changes would be missed.
            if token.cluster_time().is_none_or(|token| token > time) {
                return Err(fields.damaged("after", "is not the token of this time"));
            }
            StartPoint::After(token)
        }
        _ => return Err(fields.damaged("after", "or at must be there, and one of them alone")),
    };
    Ok(Position { time, start })
}

/// The latest of what is remembered. Early versions kept a list of documents, `ahead`.
fn parse_ahead(fields: Fields<'_>) -> Result<Option<ClusterTime>> {
    let until = |one: &Bson| one.as_document()?.get_timestamp("until").ok();
    let listed = fields.list("ahead", until)?;
    let until = fields.optional("aheadUntil", Bson::as_timestamp)?;
    Ok(listed.into_iter().chain(until).map(Into::into).max())
}

fn parse_figures(fields: Fields<'_>) -> Result<CopyFigures> {
    let date = |date: &Bson| date.as_datetime().copied();
    Ok(CopyFigures {
        documents_total: fields.count("documentsTotal")?,
        bytes_total: fields.count("bytesTotal")?,
        documents_copied: fields.count("documentsCopied")?,
        bytes_copied: fields.count("bytesCopied")?,
        started_at: fields.optional("startedAt", date)?,
        completed_at: fields.optional("completedAt", date)?,
    })
}

fn parse_checkpoint(document: &Document) -> Result<Checkpoint> {
    let fields = Fields::new("the checkpoint", document);
    match fields.required("format", integer)? {
        format if format > i64::from(FORMAT) => return Err(Error::Format(format)),
        format if format < 1 => return Err(fields.damaged("format", "is not a format")),
        _ => {}
    }
    let position = fields.inner("the checkpoint's position", "position")?;
    let position = position.map(parse_position).transpose()?;
    let copy = fields.inner("the checkpoint's copy", "copy")?;
    if position.is_none() && copy.is_some() {
        // Both are written at once, when the plan is complete.
        return Err(fields.damaged("position", "is missing"));
    }
    let armed = fields.optional("armed", Bson::as_bool)?.unwrap_or(false);
    Ok(Checkpoint {
        mirror: fields.text("mirror")?,
        holder: fields.optional("holder", |holder| holder.as_str().map(str::to_owned))?,
        source: fields.text("source")?,
        database: fields.text("database")?,
        released: fields.optional("released", Bson::as_bool)?.unwrap_or(false),
        origins: fields.list("origins", parse_origin)?,
        selection: fields.text("selection")?,
        epoch: fields.required("epoch", integer)?,
        position,
        ahead_until: parse_ahead(fields)?,
        armed,
        // Early versions did not tell.
        ended: fields.optional("ended", Bson::as_bool)?.unwrap_or(armed),
        outside: fields
            .inner("the checkpoint's outside", "outside")?
            .map_or_else(|| Ok(Outside::default()), parse_outside)?,
        resync: fields.optional("resync", Bson::as_bool)?.unwrap_or(false),
        in_command: fields
            .optional("inCommand", Bson::as_bool)?
            .unwrap_or(false),
        planned: fields.list("planned", |name| name.as_str().map(str::to_owned))?,
        updated_at: fields.optional("updatedAt", |date| date.as_datetime().copied())?,
        sessions: fields.list("sessions", |session| Some(session.clone()))?,
        copy: copy.map(parse_figures).transpose()?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn positions_survive_being_stored() {
        let time = ClusterTime {
            seconds: 7,
            increment: 2,
        };
        let token = ResumeToken::from_raw(&rawdoc! {"_data": "8200000007000000022B"});
        for start in [StartPoint::At(time), StartPoint::After(token)] {
            let position = Position { time, start };
            let stored = encode_position(&position);
            assert_eq!(
                parse_position(Fields::new("it", &stored)).unwrap(),
                position
            );
        }
    }

    #[test]
    fn what_is_ahead_is_one_time_and_an_old_list_is_still_understood() {
        let at = |time| Timestamp { time, increment: 1 };
        let until = |document| parse_ahead(Fields::new("it", &document)).unwrap();
        assert_eq!(until(doc! {}), None);
        assert_eq!(until(doc! {"aheadUntil": at(7)}), Some(at(7).into()));
        let list = doc! {"ahead": [{"id": 1, "until": at(5)}, {"id": 2, "until": at(9)}]};
        assert_eq!(until(list.clone()), Some(at(9).into()));
        let mut both = list;
        both.insert("aheadUntil", at(11));
        assert_eq!(until(both), Some(at(11).into()));
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let newer = parse_checkpoint(&doc! {"format": 99});
        assert!(matches!(newer, Err(Error::Format(99))));
    }

    #[test]
    fn a_damaged_checkpoint_is_not_guessed() {
        let time = Timestamp {
            time: 7,
            increment: 2,
        };
        let sound = doc! {
            "_id": "shop_backup", "format": 1, "mirror": "a/b", "source": "rs0",
            "database": "shop", "selection": "*", "epoch": 3_i64, "ahead": [],
            "position": {"time": time, "after": {"_data": "8200000007000000022B"}},
            "copy": {"documentsTotal": 1_i64}, "sessions": [], "planned": ["a"],
        };
        assert!(parse_checkpoint(&sound).is_ok());
        for missing in [
            "format",
            "mirror",
            "source",
            "database",
            "selection",
            "epoch",
            "position",
        ] {
            let mut damaged = sound.clone();
            damaged.remove(missing);
            let refused = parse_checkpoint(&damaged);
            assert!(
                matches!(refused, Err(Error::CheckpointDamaged(_))),
                "{missing}"
            );
        }
        for name in sound.keys().filter(|name| *name != "_id") {
            let mut damaged = sound.clone();
            damaged.insert(
                name,
                bson::Regex {
                    pattern: String::new().try_into().unwrap(),
                    options: String::new().try_into().unwrap(),
                },
            );
            if name == "sessions" {
                continue;
            }
            let refused = parse_checkpoint(&damaged);
            assert!(
                matches!(refused, Err(Error::CheckpointDamaged(_))),
                "{name}"
            );
        }
        for position in [
            doc! {},
            doc! {"time": time},
            doc! {"time": time, "at": 5},
            doc! {"time": time, "at": time, "after": {"_data": "8200000007000000022B"}},
            doc! {"time": time, "after": {"_data": "8200"}},
            doc! {"time": time, "after": {"_data": "8200000007000000032B"}},
        ] {
            let mut damaged = sound.clone();
            damaged.insert("position", position.clone());
            let refused = parse_checkpoint(&damaged);
            assert!(
                matches!(refused, Err(Error::CheckpointDamaged(_))),
                "{position}"
            );
        }
    }
}
