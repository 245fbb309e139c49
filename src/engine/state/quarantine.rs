//! One document per document that the target refuses.

use std::time::{SystemTime, UNIX_EPOCH};

use bson::{Bson, DateTime, Document, RawDocumentBuf, Timestamp, doc};
use mongodb::ClientSession;

use super::codec::{Fields, binary, from_bson, raw, to_bson};
use super::fence::Noted;
use super::{QUARANTINE, StateStore, delete};
use crate::engine::error::Result;
use crate::engine::quarantine::{Key, Quarantined, Refused, shown};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

impl StateStore {
    /// Notes refusals by themselves.
    ///
    /// # Errors
    /// [`crate::engine::error::Error::Fenced`]; what the exchange met.
    pub async fn quarantine(&self, refused: &[Refused]) -> Result<()> {
        self.renew_quarantine(refused, &[]).await
    }

    /// As [`Self::quarantine`], where others are refused no longer.
    ///
    /// # Errors
    /// As [`Self::quarantine`].
    pub async fn renew_quarantine(&self, refused: &[Refused], healed: &[Key]) -> Result<()> {
        let mut notes = Vec::new();
        if !refused.is_empty() {
            notes.push((Write::Quarantine, self.quarantine_command(refused)?));
        }
        if !healed.is_empty() {
            notes.push((Write::Release, self.release_command(healed)?));
        }
        if notes.is_empty() {
            return Ok(());
        }
        self.note(&notes).await
    }

    fn quarantine_command(&self, refused: &[Refused]) -> Result<RawDocumentBuf> {
        let now = DateTime::now();
        let updates: Vec<Document> = refused
            .iter()
            .map(|refused| {
                let update = doc! {
                    "$set": {
                        "collection": &refused.collection,
                        "document": shown(&refused.key.1),
                        "reason": &refused.reason,
                        "at": Timestamp::from(refused.at),
                        "last": now,
                    },
                    "$setOnInsert": {"first": now},
                    "$inc": {"attempts": 1_i64},
                };
                doc! {"q": {"_id": self.quarantine_id(&refused.key)}, "u": update, "upsert": true}
            })
            .collect();
        raw(&doc! {"update": QUARANTINE, "updates": updates})
    }

    /// Notes refusals, if there are any, in a transaction.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn quarantine_in(
        &self,
        refused: &[Refused],
        session: &mut ClientSession,
    ) -> Result<()> {
        if !refused.is_empty() {
            let command = self.quarantine_command(refused)?;
            self.commands
                .write_in(Write::Quarantine, command, session)
                .await?;
        }
        Ok(())
    }

    /// The command that forgets documents that the target has taken.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn release_command(&self, healed: &[Key]) -> Result<RawDocumentBuf> {
        let deletes: Vec<Document> = healed
            .iter()
            .map(|key| doc! {"q": {"_id": self.quarantine_id(key)}, "limit": 1})
            .collect();
        raw(&doc! {"delete": QUARANTINE, "deletes": deletes})
    }

    /// The documents of a collection are forgotten.
    pub(super) fn release(&self, uuid: Uuid) -> Result<Noted> {
        let filter = doc! {"_id.t": &self.target, "_id.u": binary(uuid)};
        Ok((Write::Release, delete(QUARANTINE, &filter)?))
    }

    /// The documents of a collection are forgotten, by themselves.
    ///
    /// # Errors
    /// [`crate::engine::error::Error::Fenced`]; what the exchange met.
    pub async fn release_collection(&self, uuid: Uuid) -> Result<()> {
        self.note(&[self.release(uuid)?]).await
    }

    /// All documents that the target refuses.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn load_quarantine(&self) -> Result<Vec<Quarantined>> {
        let found = self.find(QUARANTINE).await?;
        found.iter().map(parse).collect()
    }

    fn quarantine_id(&self, (uuid, id): &Key) -> Document {
        doc! {"t": &self.target, "u": binary(*uuid), "id": to_bson(id)}
    }
}

fn parse(document: &Document) -> Result<Quarantined> {
    let fields = Fields::new("a document in quarantine", document);
    let (key, uuid) = fields.id()?;
    let id = key.required("id", from_bson)?;
    let time = |name| -> Result<SystemTime> {
        let date = fields.required(name, |date: &Bson| date.as_datetime().copied())?;
        Ok(date.to_system_time().max(UNIX_EPOCH))
    };
    Ok(Quarantined {
        uuid,
        shown_id: shown(&id),
        id,
        at: fields.required("at", Bson::as_timestamp)?.into(),
        collection: fields.text("collection")?,
        reason: fields.text("reason")?,
        attempts: fields.count("attempts")?,
        first: time("first")?,
        last: time("last")?,
    })
}
