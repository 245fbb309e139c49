//! The replica sets: one source, and a target of its own for each side that is measured, so that
//! neither finds the other's pages in its cache.

use std::time::Duration;

use bson::{Document, Timestamp, doc};
use mongodb::{Client, Database};
use mongomirror::engine::bson::encode::Encoder;
use testbed::{ReplicaSet, Version};

use crate::bare::{Orders, run};
use crate::orders::{ORDERS, order};
use crate::worker::DATABASE;
use crate::{Result, say};

/// WiredTiger's cache of each server: all orders fit.
const CACHE_GB: f64 = 1.5;

/// The oplog of each server: no backlog leaves it, and its truncation is part of no measurement.
const OPLOG_MB: u32 = 4096;

/// Documents in one command while the source is filled.
const FILL: u32 = 1000;

/// After a checkpoint was forced, before the next measurement.
const REST: Duration = Duration::from_millis(500);

/// One replica set of one member.
pub struct Server {
    set: ReplicaSet,
    client: Client,
}

/// All of them.
pub struct Servers {
    /// Whose orders are mirrored.
    pub source: Server,
    /// The mirror's.
    pub mirrored: Option<Server>,
    /// The bare copier's and the bare bulk writer's.
    pub bare: Option<Server>,
}

impl Server {
    /// Starts one, empty.
    pub async fn start() -> Result<Self> {
        let set = ReplicaSet::builder()
            .version(Version::V6_0_27)
            .cache_gb(CACHE_GB)
            .oplog_mb(OPLOG_MB)
            .start()
            .await?;
        let client = set.client().await?;
        Ok(Self { set, client })
    }

    /// How to reach it.
    pub fn uri(&self) -> String {
        self.set.uri()
    }

    /// The database that is mirrored, or is the mirror.
    pub fn database(&self) -> Database {
        self.client.database(DATABASE)
    }

    /// The cluster time of the last write.
    pub async fn time(&self) -> Result<(u32, u32)> {
        let reply = self
            .client
            .database("admin")
            .run_command(doc! {"ping": 1})
            .await?;
        let Timestamp { time, increment } = reply.get_timestamp("operationTime")?;
        Ok((time, increment))
    }

    /// Writes everything to the disk, so that the next measurement does not.
    async fn settle(&self) -> Result<()> {
        self.client
            .database("admin")
            .run_command(doc! {"fsync": 1})
            .await?;
        Ok(())
    }

    async fn hash(&self) -> Result<String> {
        let command = doc! {"dbHash": 1, "collections": [ORDERS]};
        let reply = self.database().run_command(command).await?;
        Ok(reply
            .get_document("collections")?
            .get_str(ORDERS)?
            .to_owned())
    }
}

impl Servers {
    /// Starts the source.
    pub async fn start() -> Result<Self> {
        Ok(Self {
            source: Server::start().await?,
            mirrored: None,
            bare: None,
        })
    }

    /// The servers' version.
    pub fn version(&self) -> &str {
        self.source.set.version()
    }

    /// The mirror's target.
    pub fn mirrored(&self) -> Result<&Server> {
        Ok(self
            .mirrored
            .as_ref()
            .ok_or("the mirror has no target yet")?)
    }

    /// The bare copier's target.
    pub fn bare(&self) -> Result<&Server> {
        Ok(self
            .bare
            .as_ref()
            .ok_or("the bare copier has no target yet")?)
    }

    /// Fills the source.
    pub async fn fill(&self, documents: u32) -> Result<Orders> {
        let source = self.source.database();
        let mut from = 0;
        while from < documents {
            let to = documents.min(from + FILL);
            let mut encoder = Encoder::with_capacity(FILL as usize * 1100);
            let root = encoder.begin();
            encoder.string("insert", ORDERS);
            let array = encoder.begin_array("documents");
            for (index, n) in (from..to).enumerate() {
                encoder.raw_element(index, &order(i32::try_from(n)?).to_vec()?);
            }
            encoder.end(array);
            encoder.bool("ordered", false);
            encoder.end(root);
            run(&source, encoder.finish(), "n").await?;
            if to / 200_000 != from / 200_000 {
                say(&format!("  filling the source: {to} of {documents}"));
            }
            from = to;
        }
        let stats: Document = source.run_command(doc! {"collStats": ORDERS}).await?;
        let bytes = match stats.get("size") {
            Some(bson::Bson::Int32(size)) => u64::try_from(*size)?,
            Some(bson::Bson::Int64(size)) => u64::try_from(*size)?,
            _ => return Err("collStats tells no size".into()),
        };
        Ok(Orders { documents, bytes })
    }

    /// Lets all servers come to rest.
    pub async fn settle(&self) -> Result<()> {
        let targets = [self.mirrored.as_ref(), self.bare.as_ref()];
        for server in targets.into_iter().flatten().chain([&self.source]) {
            server.settle().await?;
        }
        tokio::time::sleep(REST).await;
        Ok(())
    }

    /// A mirror that was quick because it was wrong has no figures.
    pub async fn prove_equal(&self) -> Result<()> {
        let source = self.source.hash().await?;
        if self.mirrored()?.hash().await? == source {
            Ok(())
        } else {
            Err("the mirror's target is not equal to the source".into())
        }
    }
}
