//! The source database, a shop's orders: filled, changed, compared with its mirror.

use std::time::{Duration, Instant};

use bson::{DateTime, Document, doc};
use mongodb::{Client, Collection, Database, IndexModel};
use tokio::{task::JoinSet, time::sleep};

use crate::{Result, tell};

/// The database that is mirrored.
pub const SOURCE: &str = "ordersDB";
/// Its mirror.
pub const TARGET: &str = "ordersDB_backup";

/// Longest wait for a change to arrive.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the target.
const LOOK: Duration = Duration::from_millis(2);
/// Documents in one insert.
const BATCH: u32 = 1000;
/// Inserts at the same time.
const WRITERS: u32 = 4;

/// Both databases, as an administrator sees them.
pub struct Shop {
    client: Client,
    source: Database,
    target: Database,
}

impl Shop {
    pub fn open(client: Client) -> Self {
        Self {
            source: client.database(SOURCE),
            target: client.database(TARGET),
            client,
        }
    }

    fn orders(&self) -> Collection<Document> {
        self.source.collection("orders")
    }

    fn mirrored_orders(&self) -> Collection<Document> {
        self.target.collection("orders")
    }

    /// Orders, customers, and an index.
    pub async fn fill(&self, orders: u32) -> Result<()> {
        let begun = Instant::now();
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let collection = self.orders();
            writers.spawn(async move {
                for batch in (writer..orders / BATCH).step_by(WRITERS as usize) {
                    let first = batch * BATCH;
                    let documents = (first..first + BATCH).map(order);
                    collection.insert_many(documents).await?;
                }
                mongodb::error::Result::Ok(())
            });
        }
        while let Some(written) = writers.join_next().await {
            written??;
        }
        let customers = (0..1000).map(|n| doc! {"_id": n, "name": format!("Customer {n}")});
        let collection = self.source.collection::<Document>("customers");
        collection.insert_many(customers).await?;
        let index = IndexModel::builder().keys(doc! {"customer": 1, "placedAt": -1});
        self.orders().create_index(index.build()).await?;
        tell::note(&format!(
            "{SOURCE} holds {} orders and 1000 customers (written in {:.1} s).",
            self.orders().estimated_document_count().await?,
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// One change after the other; each is looked for on the target.
    pub async fn change_one_by_one(&self) -> Result<()> {
        let orders = self.orders();
        let new = 1_000_000;
        self.arrives("insertOne", new, orders.insert_one(order(new)))
            .await?;
        let paid = doc! {"$set": {"status": "paid", "address.city": "Ghent"}};
        self.arrives(
            "updateOne, $set",
            17,
            orders.update_one(doc! {"_id": 17}, paid),
        )
        .await?;
        let more = doc! {
            "$push": {"items": {"sku": "gift", "quantity": 1, "price": 0.0}},
            "$inc": {"total": 24},
            "$unset": {"note": ""},
        };
        self.arrives(
            "updateOne, $push $inc $unset",
            18,
            orders.update_one(doc! {"_id": 18}, more),
        )
        .await?;
        let other = doc! {"z": 1, "customer": 5, "a": [1, "two", 3.0], "status": "replaced"};
        self.arrives(
            "replaceOne",
            19,
            orders.replace_one(doc! {"_id": 19}, other),
        )
        .await?;
        self.arrives("deleteOne", 20, orders.delete_one(doc! {"_id": 20}))
            .await?;
        self.arrives(
            "a transaction over two collections",
            21,
            self.transaction(21),
        )
        .await?;
        Ok(())
    }

    /// Makes a change, and waits until the document is the same on both sides.
    async fn arrives<T>(
        &self,
        what: &str,
        id: u32,
        change: impl IntoFuture<Output = mongodb::error::Result<T>>,
    ) -> Result<()> {
        let before = self.orders().find_one(doc! {"_id": id}).await?;
        change.await?;
        let written = Instant::now();
        let after = self.orders().find_one(doc! {"_id": id}).await?;
        if before == after {
            return Err(format!("{what} changed nothing").into());
        }
        self.wait_until(what, async || {
            Ok(self.mirrored_orders().find_one(doc! {"_id": id}).await? == after)
        })
        .await?;
        let waited = written.elapsed().as_millis();
        tell::output(&format!("{what:<36} on the target after {waited:>4} ms"));
        Ok(())
    }

    async fn transaction(&self, order: u32) -> mongodb::error::Result<()> {
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        let customers = self.source.collection::<Document>("customers");
        customers
            .update_one(doc! {"_id": 21}, doc! {"$set": {"orders": 1}})
            .session(&mut session)
            .await?;
        self.orders()
            .update_one(doc! {"_id": order}, doc! {"$set": {"status": "shipped"}})
            .session(&mut session)
            .await?;
        session.commit_transaction().await
    }

    /// Thousands of changes at once.
    pub async fn change_many(&self) -> Result<()> {
        let orders = self.orders();
        let begun = Instant::now();
        for first in [200_000, 201_000] {
            orders
                .insert_many((first..first + BATCH).map(order))
                .await?;
        }
        let some = doc! {"customer": {"$lt": 30}};
        let checked = doc! {"$set": {"checked": true}, "$inc": {"total": 1}};
        let updated = orders.update_many(some, checked).await?.modified_count;
        let others = doc! {"customer": {"$gte": 990}};
        let deleted = orders.delete_many(others).await?.deleted_count;
        let written = begun.elapsed();
        self.wait_until_counts_agree().await?;
        let checked = async |orders: Collection<Document>| {
            orders.count_documents(doc! {"checked": true}).await
        };
        let expected = checked(self.orders()).await?;
        self.wait_until("the updates arrive", async || {
            Ok(checked(self.mirrored_orders()).await? == expected)
        })
        .await?;
        tell::output(&format!(
            "2000 inserts, {updated} updates, {deleted} deletes: written in {:.1} s, all on the \
             target after {:.1} s",
            written.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// Changes that nobody mirrors for now.
    pub async fn change_while_paused(&self) -> Result<()> {
        let before = self.mirrored_orders().count_documents(doc! {}).await?;
        let first = 300_000;
        self.orders()
            .insert_many((first..first + BATCH / 2).map(order))
            .await?;
        sleep(Duration::from_secs(1)).await;
        let (here, there) = self.counts().await?;
        if there != before {
            return Err("the target changed although the mirror is paused".into());
        }
        tell::output(&format!(
            "500 more orders: {SOURCE} holds {here}, {TARGET} stays at {there}"
        ));
        Ok(())
    }

    /// Waits until both sides hold the same number of orders.
    pub async fn wait_until_counts_agree(&self) -> Result<()> {
        self.wait_until("the numbers of orders agree", async || {
            let (here, there) = self.counts().await?;
            Ok(here == there)
        })
        .await?;
        let (here, there) = self.counts().await?;
        tell::output(&format!(
            "{SOURCE} holds {here} orders, {TARGET} holds {there}"
        ));
        Ok(())
    }

    async fn counts(&self) -> mongodb::error::Result<(u64, u64)> {
        let (source, target) = (self.orders(), self.mirrored_orders());
        tokio::try_join!(async { source.count_documents(doc! {}).await }, async {
            target.count_documents(doc! {}).await
        },)
    }

    /// Compares what the servers' own hash says of every collection.
    pub async fn prove_equal(&self) -> Result<()> {
        let (source, target) = (hashes(&self.source).await?, hashes(&self.target).await?);
        tell::output(&format!("{:<12} {SOURCE:<34} {TARGET:<34}", "dbHash"));
        for (collection, hash) in &source {
            let there = target.get_str(collection).unwrap_or("missing");
            let hash = hash.as_str().unwrap_or_default();
            tell::output(&format!("{collection:<12} {hash:<34} {there:<34}"));
        }
        if source != target {
            return Err(format!("{SOURCE} and {TARGET} differ").into());
        }
        tell::note("Equal, to the last byte.");
        Ok(())
    }

    async fn wait_until(
        &self,
        what: &str,
        done: impl AsyncFn() -> mongodb::error::Result<bool>,
    ) -> Result<()> {
        let begun = Instant::now();
        while !done().await? {
            if begun.elapsed() > PATIENCE {
                let seconds = PATIENCE.as_secs();
                return Err(format!("waited {seconds} s in vain: {what}").into());
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// The hash of every collection, by name.
async fn hashes(database: &Database) -> Result<Document> {
    let reply = database.run_command(doc! {"dbHash": 1}).await?;
    Ok(reply.get_document("collections")?.clone())
}

fn order(n: u32) -> Document {
    let number = i64::from(n);
    doc! {
        "_id": number,
        "customer": number % 1000,
        "status": "new",
        "placedAt": DateTime::from_millis(1_700_000_000_000 + number * 1000),
        "items": [
            {"sku": format!("sku-{}", n % 977), "quantity": number % 5 + 1, "price": 9.5},
            {"sku": format!("sku-{}", n % 463), "quantity": 1_i64, "price": 24.0},
        ],
        "total": f64::from(n % 200) + 33.5,
        "address": {"street": format!("Street {n}"), "city": "Antwerp", "country": "BE"},
        "note": "Please ring twice; the dog is friendly, the doorbell is not. ".repeat(6),
    }
}
