//! The mirror's memory: database `mongomirror` on the target.
//!
//! `checkpoints` has one small document per target database, the only one that every batch
//! rewrites, inside the batch's own transaction. `catalog` and `ranges` are written when they
//! change. A checkpoint kept anywhere else could run ahead of the data (`facts` mongodb 9).

use std::time::Duration;

use bson::{Bson, DateTime, Document, RawDocumentBuf, Timestamp, doc};
use mongodb::Client;
use mongodb::options::ReturnDocument;

use super::bson::order::Value;
use super::command::{Commands, number};
use super::error::{Error, Result, Side};
use super::position::{ClusterTime, Position, ResumeToken, StartPoint};
use super::stream::event::Uuid;

/// The state database's name.
pub const DATABASE: &str = "mongomirror";

/// Version of the documents below; a newer one is not touched.
const FORMAT: i32 = 1;

/// How long a take-over may wait on the server: one that outlives its process would fence the
/// next one.
const CLAIM_LIMIT: Duration = Duration::from_secs(5);

const CHECKPOINTS: &str = "checkpoints";
const CATALOG: &str = "catalog";
const RANGES: &str = "ranges";

/// What a target database's checkpoint says.
#[derive(Clone, PartialEq, Debug)]
pub struct Checkpoint {
    /// Whose target this is: the mirror's name.
    pub mirror: String,
    /// The source deployment's identity.
    pub source: String,
    /// The source database.
    pub database: String,
    /// The selection's fingerprint.
    pub selection: String,
    /// Counts the processes that took the mirror over; only the newest may write.
    pub epoch: i64,
    /// How far the stream is applied; `None` until the copy is planned.
    pub position: Option<Position>,
    /// Documents that are ahead of the position.
    pub ahead: Vec<Ahead>,
    /// The copy's figures.
    pub copy: CopyFigures,
    /// Ids of the sessions that the last process wrote with.
    pub sessions: Vec<Bson>,
    /// Collections that a plan without a position may have created on the target.
    pub planned: Vec<String>,
    /// When it was last written, by the clock of whoever wrote it.
    pub updated_at: Option<DateTime>,
}

/// A document that was read later than the position: events up to `until` are already in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Ahead {
    /// Its collection.
    pub uuid: Uuid,
    /// Its id.
    pub id: Value,
    /// The cluster time it was read at.
    pub until: ClusterTime,
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

/// A collection as remembered.
#[derive(Clone, PartialEq, Debug)]
pub struct CatalogEntry {
    /// Its identity on the source.
    pub uuid: Uuid,
    /// What it is called at the position.
    pub name: String,
    /// Whether it has a default collation other than simple.
    pub collated: bool,
    /// Whether data and indexes are there as of the position.
    pub copied: bool,
    /// Indexes that are built once its data is copied, as specified on the source.
    pub pending_indexes: Vec<Document>,
    /// Indexes that are not on the target, or not the same, with the reasons.
    pub index_problems: Vec<(String, String)>,
    /// Why it is not mirrored at all, if so.
    pub left_out: Option<String>,
}

/// How far a range of the copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeState {
    /// Nothing of it is on the target.
    Pending,
    /// Some of it may be on the target.
    Copying,
    /// All of it is, as of this time and the position.
    Done(ClusterTime),
}

/// A range as remembered: `low <= _id < high`.
#[derive(Clone, PartialEq, Debug)]
pub struct RangeEntry {
    /// Its collection.
    pub uuid: Uuid,
    /// Its number within the collection.
    pub number: u32,
    /// Where it begins; `None` is below everything.
    pub low: Option<Value>,
    /// Where it ends; `None` is above everything.
    pub high: Option<Value>,
    /// How far it is.
    pub state: RangeState,
    /// Documents copied, once done.
    pub documents: u64,
    /// Bytes copied, once done.
    pub bytes: u64,
}

/// The state of one target database.
#[derive(Clone, Debug)]
pub struct StateStore {
    client: Client,
    commands: Commands,
    target: String,
}

impl StateStore {
    /// The state of `target`, kept on the same deployment.
    pub fn new(client: &Client, target: &str) -> Self {
        Self {
            client: client.clone(),
            commands: Commands {
                side: Side::Target,
                db: client.database(DATABASE),
            },
            target: target.to_owned(),
        }
    }

    /// Commands on the state database.
    pub fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Reads the checkpoint.
    ///
    /// # Errors
    /// [`Error::Format`] for one that a newer version wrote; what the exchange met.
    pub async fn load(&self) -> Result<Option<Checkpoint>> {
        let doing = "read the checkpoint";
        let collection = self.commands.db.collection::<Document>(CHECKPOINTS);
        let find = collection
            .find_one(doc! {"_id": &self.target})
            .read_concern(mongodb::options::ReadConcern::majority());
        let found =
            super::command::within(Side::Target, doing, super::command::COMMAND_LIMIT, find)
                .await?;
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
        let doing = "take the mirror over";
        // Exactly what was looked at: of two that come at once, one gets a duplicate key or no
        // match, and looks again.
        let epoch = match before {
            Some(before) => doc! {"epoch": before.epoch},
            None => doc! {"epoch": {"$exists": false}},
        };
        let mut filter = doc! {"_id": &self.target};
        filter.extend(epoch);
        let mut set = identity;
        set.insert("format", FORMAT);
        set.insert("claimedAt", DateTime::now());
        let collection = self.commands.db.collection::<Document>(CHECKPOINTS);
        let claim = collection
            .find_one_and_update(filter, doc! {"$set": set, "$inc": {"epoch": 1_i64}})
            .upsert(before.is_none())
            .max_time(CLAIM_LIMIT)
            .return_document(ReturnDocument::After)
            .write_concern(majority());
        let limit = super::command::COMMAND_LIMIT;
        let document = super::command::within(Side::Target, doing, limit, claim)
            .await?
            .ok_or_else(|| Error::Reply {
                side: Side::Target,
                doing,
                what: "another process was faster".into(),
            })?;
        parse_checkpoint(&document)
    }

    /// Ends what an earlier process left open on the target: without this, its unfinished
    /// transactions would hold their documents for a minute. Best effort.
    pub async fn end_sessions(&self, sessions: &[Bson]) {
        if sessions.is_empty() {
            return;
        }
        let ids: Vec<Document> = sessions.iter().map(|id| doc! {"id": id}).collect();
        let command = doc! {"killSessions": ids};
        if let Err(error) = self.commands.run("end old sessions", command).await {
            tracing::debug!(%error, "old sessions end by themselves");
        }
    }

    /// Changes the checkpoint outside a batch.
    ///
    /// # Errors
    /// [`Error::Fenced`] if the epoch is no longer ours; what the exchange met.
    pub async fn update(&self, epoch: i64, set: Document) -> Result<()> {
        let reply = self
            .commands
            .run(
                "write the checkpoint",
                doc! {
                    "update": CHECKPOINTS,
                    "updates": [{"q": {"_id": &self.target, "epoch": epoch}, "u": {"$set": set}}],
                    "writeConcern": {"w": "majority"},
                },
            )
            .await?;
        fenced_unless(number(&reply, "n") == 1, epoch)
    }

    /// The command that moves the position, for a batch's transaction; must match one document.
    ///
    /// # Errors
    /// If the document cannot be encoded, which no position can cause.
    pub fn checkpoint_command(
        &self,
        epoch: i64,
        position: &Position,
        ahead: Option<&[Ahead]>,
    ) -> Result<RawDocumentBuf> {
        let mut set = doc! {"position": encode_position(position), "updatedAt": DateTime::now()};
        if let Some(ahead) = ahead {
            set.insert("ahead", ahead.iter().map(encode_ahead).collect::<Vec<_>>());
        }
        raw(&doc! {
            "update": CHECKPOINTS,
            "updates": [{"q": {"_id": &self.target, "epoch": epoch}, "u": {"$set": set}}],
        })
    }

    /// The command that changes a range, fenced like the checkpoint; must match one document.
    ///
    /// # Errors
    /// As [`Self::checkpoint_command`].
    pub fn range_command(
        &self,
        epoch: i64,
        uuid: Uuid,
        range: u32,
        update: Document,
    ) -> Result<RawDocumentBuf> {
        raw(&doc! {
            "update": RANGES,
            "updates": [{"q": {"_id": self.range_id(uuid, range), "epoch": epoch}, "u": update}],
        })
    }

    /// Forgets catalog and ranges, before a plan is made anew.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn clear(&self) -> Result<()> {
        for collection in [CATALOG, RANGES] {
            self.commands
                .run(
                    "clear the old plan",
                    doc! {
                        "delete": collection,
                        "deletes": [{"q": {"_id.t": &self.target}, "limit": 0}],
                        "writeConcern": {"w": "majority"},
                    },
                )
                .await?;
        }
        Ok(())
    }

    /// Remembers a collection.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn put_collection(&self, entry: &CatalogEntry) -> Result<()> {
        let update = doc! {
            "name": &entry.name,
            "collated": entry.collated,
            "copied": entry.copied,
            "indexes": &entry.pending_indexes,
            "problems": entry
                .index_problems
                .iter()
                .map(|(index, reason)| doc! {"index": index, "reason": reason})
                .collect::<Vec<_>>(),
            "leftOut": &entry.left_out,
        };
        self.commands
            .run(
                "write the catalog",
                doc! {
                    "update": CATALOG,
                    "updates": [{"q": {"_id": self.collection_id(entry.uuid)}, "u": {"$set": update}, "upsert": true}],
                    "writeConcern": {"w": "majority"},
                },
            )
            .await?;
        Ok(())
    }

    /// Forgets a collection and its ranges.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn remove_collection(&self, uuid: Uuid) -> Result<()> {
        let doing = "write the catalog";
        self.remove_ranges(uuid).await?;
        self.commands
            .run(
                doing,
                doc! {
                    "delete": CATALOG,
                    "deletes": [{"q": {"_id": self.collection_id(uuid)}, "limit": 1}],
                    "writeConcern": {"w": "majority"},
                },
            )
            .await?;
        Ok(())
    }

    /// Forgets a collection's ranges.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn remove_ranges(&self, uuid: Uuid) -> Result<()> {
        self.commands
            .run(
                "write the ranges",
                doc! {
                    "delete": RANGES,
                    "deletes": [{"q": {"_id.t": &self.target, "_id.u": binary(uuid)}, "limit": 0}],
                    "writeConcern": {"w": "majority"},
                },
            )
            .await?;
        Ok(())
    }

    /// Remembers new ranges.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn insert_ranges(&self, epoch: i64, ranges: &[RangeEntry]) -> Result<()> {
        for chunk in ranges.chunks(1000) {
            let documents: Vec<Document> = chunk
                .iter()
                .map(|range| {
                    let mut document = doc! {
                        "_id": self.range_id(range.uuid, range.number),
                        "epoch": epoch,
                        "state": "pending",
                    };
                    for (name, bound) in [("low", &range.low), ("high", &range.high)] {
                        if let Some(bound) = bound {
                            document.insert(name, to_bson(bound));
                        }
                    }
                    document
                })
                .collect();
            self.commands
                .run(
                    "write the ranges",
                    doc! {"insert": RANGES, "documents": documents, "writeConcern": {"w": "majority"}},
                )
                .await?;
        }
        Ok(())
    }

    /// Makes the ranges ours: whoever held them with an older epoch can no longer copy.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn claim_ranges(&self, epoch: i64) -> Result<()> {
        self.commands
            .run(
                "take the ranges over",
                doc! {
                    "update": RANGES,
                    "updates": [{"q": {"_id.t": &self.target}, "u": {"$set": {"epoch": epoch}}, "multi": true}],
                    "writeConcern": {"w": "majority"},
                },
            )
            .await?;
        Ok(())
    }

    /// Notes that a range is about to be copied.
    ///
    /// # Errors
    /// [`Error::Fenced`]; what the exchange met.
    pub async fn begin_range(&self, epoch: i64, uuid: Uuid, range: u32) -> Result<()> {
        let update = doc! {"$set": {"state": "copying"}};
        let reply = self
            .commands
            .run(
                "write the range",
                doc! {
                    "update": RANGES,
                    "updates": [{"q": {"_id": self.range_id(uuid, range), "epoch": epoch}, "u": update}],
                    "writeConcern": {"w": "majority"},
                },
            )
            .await?;
        fenced_unless(number(&reply, "n") == 1, epoch)
    }

    /// All collections.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn load_catalog(&self) -> Result<Vec<CatalogEntry>> {
        let mut entries = Vec::new();
        for document in self.find(CATALOG).await? {
            let Some(uuid) = id_uuid(&document) else {
                continue;
            };
            let indexes = documents_of(&document, "indexes");
            let problems = documents_of(&document, "problems");
            let text =
                |problem: &Document, name| problem.get_str(name).unwrap_or_default().to_owned();
            entries.push(CatalogEntry {
                uuid,
                name: document.get_str("name").unwrap_or_default().to_owned(),
                collated: document.get_bool("collated").unwrap_or(false),
                copied: document.get_bool("copied").unwrap_or(false),
                pending_indexes: indexes.cloned().collect(),
                index_problems: problems
                    .map(|problem| (text(problem, "index"), text(problem, "reason")))
                    .collect(),
                left_out: document.get_str("leftOut").ok().map(str::to_owned),
            });
        }
        Ok(entries)
    }

    /// All ranges, in no order.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn load_ranges(&self) -> Result<Vec<RangeEntry>> {
        let mut entries = Vec::new();
        for document in self.find(RANGES).await? {
            let Some(uuid) = id_uuid(&document) else {
                continue;
            };
            let id = document.get_document("_id").cloned().unwrap_or_default();
            let count = |name| u64::try_from(number(&document, name)).unwrap_or(0);
            entries.push(RangeEntry {
                uuid,
                number: u32::try_from(number(&id, "n")).unwrap_or(0),
                low: document.get("low").map(from_bson),
                high: document.get("high").map(from_bson),
                state: match document.get_str("state") {
                    Ok("done") => RangeState::Done(
                        document
                            .get_timestamp("at")
                            .map_or(ClusterTime::ZERO, Into::into),
                    ),
                    Ok("copying") => RangeState::Copying,
                    _ => RangeState::Pending,
                },
                documents: count("documents"),
                bytes: count("bytes"),
            });
        }
        Ok(entries)
    }

    /// The update that completes a range.
    pub fn range_done(at: ClusterTime, documents: u64, bytes: u64) -> Document {
        let long = |value| i64::try_from(value).unwrap_or(i64::MAX);
        doc! {"$set": {
            "state": "done",
            "at": Timestamp::from(at),
            "documents": long(documents),
            "bytes": long(bytes),
        }}
    }

    async fn find(&self, collection: &str) -> Result<Vec<Document>> {
        use futures::TryStreamExt;
        let doing = "read the plan";
        let collection = self.commands.db.collection::<Document>(collection);
        let exchange = async {
            collection
                .find(doc! {"_id.t": &self.target})
                .read_concern(mongodb::options::ReadConcern::majority())
                .await?
                .try_collect::<Vec<Document>>()
                .await
        };
        super::command::within(Side::Target, doing, super::command::COMMAND_LIMIT, exchange).await
    }

    fn collection_id(&self, uuid: Uuid) -> Document {
        doc! {"t": &self.target, "u": binary(uuid)}
    }

    fn range_id(&self, uuid: Uuid, range: u32) -> Document {
        doc! {"t": &self.target, "u": binary(uuid), "n": i64::from(range)}
    }

    /// The client of the target.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// The documents of an array.
pub fn documents_of<'a>(document: &'a Document, name: &str) -> impl Iterator<Item = &'a Document> {
    let array = document.get_array(name).map_or(&[][..], Vec::as_slice);
    array.iter().filter_map(Bson::as_document)
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

fn parse_position(document: &Document) -> Option<Position> {
    let time = document.get_timestamp("time").ok()?.into();
    let start = match document.get_document("after") {
        Ok(token) => {
            let token = RawDocumentBuf::try_from(token).ok()?;
            StartPoint::After(ResumeToken::from_raw(&token))
        }
        Err(_) => StartPoint::At(document.get_timestamp("at").ok()?.into()),
    };
    Some(Position { time, start })
}

fn encode_ahead(ahead: &Ahead) -> Document {
    doc! {
        "u": binary(ahead.uuid),
        "id": to_bson(&ahead.id),
        "until": Timestamp::from(ahead.until),
    }
}

fn parse_ahead(ahead: &Bson) -> Option<Ahead> {
    let document = ahead.as_document()?;
    Some(Ahead {
        uuid: uuid_of(document.get("u")?)?,
        id: from_bson(document.get("id")?),
        until: document.get_timestamp("until").ok()?.into(),
    })
}

fn parse_checkpoint(document: &Document) -> Result<Checkpoint> {
    let format = document.get_i32("format").unwrap_or(FORMAT);
    if format > FORMAT {
        return Err(Error::Format(format));
    }
    let text = |name: &str| document.get_str(name).unwrap_or_default().to_owned();
    let copy = document.get_document("copy").cloned().unwrap_or_default();
    let count = |name| u64::try_from(number(&copy, name)).unwrap_or(0);
    Ok(Checkpoint {
        mirror: text("mirror"),
        source: text("source"),
        database: text("database"),
        selection: text("selection"),
        epoch: number(document, "epoch"),
        position: document
            .get_document("position")
            .ok()
            .and_then(parse_position),
        ahead: document
            .get_array("ahead")
            .map(|ahead| ahead.iter().filter_map(parse_ahead).collect())
            .unwrap_or_default(),
        planned: document
            .get_array("planned")
            .map(|names| {
                names
                    .iter()
                    .filter_map(Bson::as_str)
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default(),
        updated_at: document.get_datetime("updatedAt").ok().copied(),
        sessions: document.get_array("sessions").cloned().unwrap_or_default(),
        copy: CopyFigures {
            documents_total: count("documentsTotal"),
            bytes_total: count("bytesTotal"),
            documents_copied: count("documentsCopied"),
            bytes_copied: count("bytesCopied"),
            started_at: copy.get_datetime("startedAt").ok().copied(),
            completed_at: copy.get_datetime("completedAt").ok().copied(),
        },
    })
}

/// A value as it is stored: wrapped raw, so that any id survives the trip.
fn to_bson(value: &Value) -> Bson {
    let mut bytes = vec![value.kind];
    bytes.extend_from_slice(&value.bytes);
    Bson::Binary(bson::Binary {
        subtype: bson::spec::BinarySubtype::Generic,
        bytes,
    })
}

fn from_bson(stored: &Bson) -> Value {
    match stored {
        Bson::Binary(binary) if !binary.bytes.is_empty() => Value {
            kind: binary.bytes[0],
            bytes: binary.bytes[1..].to_vec(),
        },
        _ => Value {
            kind: 0x0A,
            bytes: Vec::new(),
        },
    }
}

/// A UUID as BSON.
pub fn binary(uuid: Uuid) -> Bson {
    bson::Uuid::from_bytes(uuid).into()
}

/// A UUID from BSON.
pub fn uuid_of(stored: &Bson) -> Option<Uuid> {
    match stored {
        Bson::Binary(binary) => binary.bytes.as_slice().try_into().ok(),
        _ => None,
    }
}

fn id_uuid(document: &Document) -> Option<Uuid> {
    uuid_of(document.get_document("_id").ok()?.get("u")?)
}

fn majority() -> mongodb::options::WriteConcern {
    mongodb::options::WriteConcern::majority()
}

fn raw(document: &Document) -> Result<RawDocumentBuf> {
    RawDocumentBuf::try_from(document).map_err(|error| Error::Reply {
        side: Side::Target,
        doing: "encode a state document",
        what: error.to_string(),
    })
}

fn fenced_unless(matched: bool, epoch: i64) -> Result<()> {
    if matched {
        Ok(())
    } else {
        Err(Error::Fenced { epoch })
    }
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
            assert_eq!(parse_position(&encode_position(&position)), Some(position));
        }
    }

    #[test]
    fn any_id_survives_being_stored() {
        for value in [
            Value {
                kind: 0x0A,
                bytes: vec![],
            },
            Value {
                kind: 0x02,
                bytes: vec![2, 0, 0, 0, 0xFF, 0],
            },
        ] {
            assert_eq!(from_bson(&to_bson(&value)), value);
        }
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let newer = parse_checkpoint(&doc! {"format": 99});
        assert!(matches!(newer, Err(Error::Format(99))));
    }
}
