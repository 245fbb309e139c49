//! The databases, and who writes to them.

use std::time::Duration;

use bson::{Document, doc};
use futures::future::try_join_all;
use mongodb::{Client, Database};

use crate::Result;

/// Documents of each database.
const DOCUMENTS: i32 = 100;

const ORDERS: &str = "orders";

/// How long what was written may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// On the source.
pub struct Databases {
    source: Client,
    idle: usize,
    busy: usize,
}

impl Databases {
    /// Makes them.
    pub async fn fill(source: Client, idle: usize, busy: usize) -> Result<Self> {
        let databases = Self { source, idle, busy };
        for name in databases.names() {
            let documents =
                (0..DOCUMENTS).map(|id| doc! {"_id": id, "n": 0, "text": "x".repeat(200)});
            let orders = databases
                .source
                .database(&name)
                .collection::<Document>(ORDERS);
            orders.insert_many(documents).await?;
        }
        Ok(databases)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = String> + use<> {
        let idle = (0..self.idle).map(|number| format!("idle{number}"));
        idle.chain(self.busy_names())
    }

    fn busy_names(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.busy).map(|number| format!("busy{number}"))
    }

    /// Writes so many updates a second to each busy one, for some time.
    pub async fn write(&self, rate: u32, time: Duration) -> Result<()> {
        let writers = self
            .busy_names()
            .map(|name| update(self.source.database(&name), rate, time));
        try_join_all(writers).await?;
        Ok(())
    }

    /// Waits until all that was written is on the target.
    pub async fn arrived(&self, target: &Client) -> Result<()> {
        let all = async {
            for name in self.busy_names() {
                let from = sum(&self.source.database(&name)).await?;
                while sum(&target.database(&format!("{name}_backup"))).await? != from {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, all)
            .await
            .map_err(|_| "what was written does not arrive")?
    }
}

async fn update(database: Database, rate: u32, time: Duration) -> Result<()> {
    let orders = database.collection::<Document>(ORDERS);
    let mut every = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    let writes = async {
        for id in (0..DOCUMENTS).cycle() {
            every.tick().await;
            orders
                .update_one(doc! {"_id": id}, doc! {"$inc": {"n": 1}})
                .await?;
        }
        Ok(())
    };
    tokio::time::timeout(time, writes).await.unwrap_or(Ok(()))
}

async fn sum(database: &Database) -> Result<i64> {
    let all = doc! {"$group": {"_id": null, "n": {"$sum": "$n"}}};
    let mut cursor = database
        .collection::<Document>(ORDERS)
        .aggregate([all])
        .await?;
    if !cursor.advance().await? {
        return Err("a database is empty".into());
    }
    Ok(cursor.deserialize_current()?.get_i32("n")?.into())
}

/// Connections that the server has now.
pub async fn connections(server: &Client) -> Result<u32> {
    let status = server
        .database("admin")
        .run_command(doc! {"serverStatus": 1})
        .await?;
    Ok(u32::try_from(
        status.get_document("connections")?.get_i32("current")?,
    )?)
}
