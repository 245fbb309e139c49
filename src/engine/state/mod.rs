//! The mirror's memory: on the target's deployment, in the database `mongomirror` or another one.
//!
//! `checkpoints` has one small document per target database, the only one that every batch
//! rewrites, inside the batch's own transaction. `catalog` and `ranges` are written when they
//! change. A checkpoint kept anywhere else could run ahead of the data (`facts` mongodb 9).

mod catalog;
mod checkpoint;
mod codec;
mod fence;
mod quarantine;
mod ranges;
mod sound;
mod verifications;

use std::sync::Arc;

use bson::{Document, RawDocumentBuf, doc};
use mongodb::Client;

use super::command::{COMMAND_LIMIT, Commands, within};
use super::error::{Result, Side};
use super::stream::event::Uuid;
use super::writes::Write;

use fence::Fence;
pub use fence::MOST_LANES;

pub use catalog::{BUCKETS, CatalogEntry, Index, Stage, Way};
pub use checkpoint::{
    Checkpoint, CopyFigures, Origin, Outside, encode_figures, encode_origin, encode_outside,
    encode_position,
};
pub use codec::{binary, documents_of, uuid_of};
pub use ranges::{RangeEntry, RangeState, is_compared};
pub use sound::{ranges_by_collection, refuse_gaps, refuse_unknown};

/// The state database's name, unless another one is asked for.
pub const DATABASE: &str = "mongomirror";

/// The collection with a document for each target.
pub const CHECKPOINTS: &str = "checkpoints";
const CATALOG: &str = "catalog";
const FENCES: &str = "fences";
const RANGES: &str = "ranges";
const QUARANTINE: &str = "quarantine";

/// Where it is looked up whose target a database is. In which database its mirror would keep its
/// notes is not known: most use the usual one, and some, as the mirror that asks may, another.
pub fn looked_up_in(own: &str) -> Vec<&str> {
    let mut databases = vec![own, DATABASE];
    databases.dedup();
    databases
}

/// The state of one target database.
#[derive(Clone, Debug)]
pub struct StateStore {
    client: Client,
    commands: Commands,
    target: String,
    /// Once the mirror was taken over.
    fence: Option<Arc<Fence>>,
}

impl StateStore {
    /// The state of `target`, kept in `database` of the same deployment.
    pub fn new(client: &Client, database: &str, target: &str) -> Self {
        Self {
            client: client.clone(),
            commands: Commands {
                side: Side::Target,
                db: client.database(database),
            },
            target: target.to_owned(),
            fence: None,
        }
    }

    /// Commands on the state database.
    pub fn commands(&self) -> &Commands {
        &self.commands
    }

    /// The client of the target.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Forgets all but the checkpoint, before a plan is made anew.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn clear(&self) -> Result<()> {
        let all = [
            (Write::ClearCatalog, CATALOG),
            (Write::ClearRanges, RANGES),
            (Write::Release, QUARANTINE),
        ];
        let filter = doc! {"_id.t": &self.target};
        let all = all.map(|(write, collection)| Ok((write, delete(collection, &filter)?)));
        self.note(&all.into_iter().collect::<Result<Vec<_>>>()?)
            .await
    }

    /// This target's own document of a collection that has one for each.
    async fn find_one(&self, collection: &str) -> Result<Option<Document>> {
        let collection = self.commands.db.collection::<Document>(collection);
        let find = collection
            .find_one(doc! {"_id": &self.target})
            .read_concern(mongodb::options::ReadConcern::majority());
        within(Side::Target, "read the state", COMMAND_LIMIT, find).await
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
        within(Side::Target, doing, COMMAND_LIMIT, exchange).await
    }

    fn collection_id(&self, uuid: Uuid) -> Document {
        doc! {"t": &self.target, "u": binary(uuid)}
    }

    fn range_id(&self, uuid: Uuid, range: u32) -> Document {
        doc! {"t": &self.target, "u": binary(uuid), "n": i64::from(range)}
    }
}

/// The command that deletes all of a collection's documents that the filter finds.
fn delete(collection: &str, filter: &Document) -> Result<RawDocumentBuf> {
    codec::raw(&doc! {"delete": collection, "deletes": [{"q": filter, "limit": 0}]})
}
