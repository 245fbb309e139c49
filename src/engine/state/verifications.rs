//! One document per target database: what the last comparison of both sides came to.

use std::time::{Duration, UNIX_EPOCH};

use bson::{DateTime, Document, Timestamp, doc};

use super::StateStore;
use crate::engine::command::number;
use crate::engine::error::Result;
use crate::engine::progress::VerificationResult;
use crate::engine::writes::Write;

const VERIFICATIONS: &str = "verifications";

impl StateStore {
    /// There is no last one any more.
    pub(super) async fn forget_verification(&self) -> Result<()> {
        let own = doc! {"q": {"_id": &self.target}, "limit": 1};
        let delete = doc! {"delete": VERIFICATIONS, "deletes": [own]};
        self.commands.write(Write::PutVerification, delete).await?;
        Ok(())
    }

    /// Remembers the last comparison.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn put_verification(&self, result: &VerificationResult) -> Result<()> {
        let long = |value| i64::try_from(value).unwrap_or(i64::MAX);
        let millis = i64::try_from(result.duration.as_millis()).unwrap_or(i64::MAX);
        let document = doc! {
            "time": DateTime::from_system_time(result.time),
            "consistentAt": Timestamp::from(result.consistent_at),
            "collections": long(result.collections),
            "documents": long(result.documents),
            "bytes": long(result.bytes),
            "differences": long(result.differences),
            "repaired": long(result.repaired),
            "durationMs": millis,
            "definitions": &result.definitions,
        };
        self.commands
            .write(
                Write::PutVerification,
                doc! {
                    "update": VERIFICATIONS,
                    "updates": [{"q": {"_id": &self.target}, "u": {"$set": document}, "upsert": true}],
                    "writeConcern": {"w": "majority"},
                },
            )
            .await?;
        Ok(())
    }

    /// The last comparison, if there was one.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn load_verification(&self) -> Result<Option<VerificationResult>> {
        let found = self.find_one(VERIFICATIONS).await?;
        Ok(found.as_ref().and_then(parse))
    }
}

fn parse(document: &Document) -> Option<VerificationResult> {
    let count = |name| u64::try_from(number(document, name)).unwrap_or(0);
    Some(VerificationResult {
        time: document
            .get_datetime("time")
            .ok()?
            .to_system_time()
            .max(UNIX_EPOCH),
        consistent_at: document.get_timestamp("consistentAt").ok()?.into(),
        collections: count("collections"),
        documents: count("documents"),
        bytes: count("bytes"),
        differences: count("differences"),
        repaired: count("repaired"),
        duration: Duration::from_millis(count("durationMs")),
        definitions: document
            .get_array("definitions")
            .map(|all| {
                all.iter()
                    .filter_map(|one| one.as_str().map(str::to_owned))
                    .collect()
            })
            .unwrap_or_default(),
    })
}
