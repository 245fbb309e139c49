//! Unique indexes are enforced on the target while mirrored, and never in the way.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Document, doc};
use common::{assert_equal, caught_up, config, fresh_seed, mirroring, wait_for};
use mongodb::{Client, Collection, Database};
use mongomirror::runner::MirrorHandle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testbed::{ReplicaSet, Version};

/// Documents, and one more key than that: there is always one to go to.
const DOCUMENTS: i32 = 60;

async fn unique(db: &Database, collection: &str, field: &str) {
    let index = doc! {"key": {field: 1}, "name": format!("{field}_1"), "unique": true};
    let command = doc! {"createIndexes": collection, "indexes": [index]};
    db.run_command(command).await.unwrap();
}

/// Whether the server refuses a second document with this key.
async fn refuses_duplicates(seats: &Collection<Document>, field: &str) -> bool {
    let some = seats
        .find_one(doc! {field: {"$exists": true}})
        .await
        .unwrap()
        .expect("a document");
    let second = doc! {"_id": "second", field: some.get(field).cloned()};
    match seats.insert_one(second).await {
        Ok(_) => false,
        Err(error) => error.to_string().contains("11000"),
    }
}

/// Lets keys wander between documents, in every way there is.
struct Seats {
    client: Client,
    seats: Collection<Document>,
    random: StdRng,
}

impl Seats {
    fn new(client: &Client, seed: u64) -> Self {
        Self {
            client: client.clone(),
            seats: client.database("shop").collection("seats"),
            random: StdRng::seed_from_u64(seed),
        }
    }

    async fn fill(client: &Client, seed: u64) -> Self {
        let seats: Collection<Document> = client.database("shop").collection("seats");
        let documents = (0..DOCUMENTS).map(|n| {
            // Large enough that updates are logged as deltas.
            doc! {"_id": n, "seat": n, "code": format!("c{n}"), "pad": "p".repeat(300)}
        });
        seats.insert_many(documents).await.unwrap();
        unique(&client.database("shop"), "seats", "seat").await;
        unique(&client.database("shop"), "seats", "code").await;
        Self::new(client, seed)
    }

    async fn run(mut self, stop: Arc<AtomicBool>) -> u64 {
        let mut swaps = 0;
        while !stop.load(Ordering::Relaxed) {
            let (a, b) = (self.id(), self.id());
            if a != b && self.swap(a, b).await.is_ok() {
                swaps += 1;
            }
        }
        swaps
    }

    fn id(&mut self) -> i32 {
        self.random.random_range(0..DOCUMENTS)
    }

    /// Two documents exchange their keys.
    async fn swap(&mut self, a: i32, b: i32) -> mongodb::error::Result<()> {
        let (Some(one), Some(two)) = (
            self.seats.find_one(doc! {"_id": a}).await?,
            self.seats.find_one(doc! {"_id": b}).await?,
        ) else {
            return Ok(());
        };
        let key = |document: &Document| {
            doc! {"seat": document.get_i32("seat").unwrap(), "code": document.get_str("code").unwrap()}
        };
        let nowhere: i32 = self.random.random_range(-1_000_000_000..-1);
        let away = doc! {"seat": nowhere, "code": format!("away{nowhere}")};
        let (one, two) = (key(&one), key(&two));
        match self.random.random_range(0..4) {
            0 => {
                for (id, keys) in [(a, &away), (b, &one), (a, &two)] {
                    let update = doc! {"$set": keys.clone()};
                    self.seats.update_one(doc! {"_id": id}, update).await?;
                }
            }
            1 => {
                let mut session = self.client.start_session().await?;
                session.start_transaction().await?;
                for (id, keys) in [(a, &away), (b, &one), (a, &two)] {
                    let update = vec![doc! {"$set": keys.clone()}];
                    self.seats
                        .update_one(doc! {"_id": id}, update)
                        .session(&mut session)
                        .await?;
                }
                session.commit_transaction().await?;
            }
            2 => {
                // One is deleted, the other takes its key, the first comes back.
                self.seats.delete_one(doc! {"_id": a}).await?;
                self.seats
                    .update_one(doc! {"_id": b}, doc! {"$set": one})
                    .await?;
                let mut back = doc! {"_id": a, "pad": "q".repeat(200)};
                back.extend(two);
                self.seats.insert_one(back).await?;
            }
            _ => {
                self.seats.delete_one(doc! {"_id": a}).await?;
                let mut back = doc! {"_id": a, "new": true};
                back.extend(one);
                self.seats.insert_one(back).await?;
            }
        }
        Ok(())
    }
}

async fn keys_wander(version: Version) {
    let seed = fresh_seed();
    eprintln!("seed {seed}");
    let set = ReplicaSet::builder()
        .version(version)
        .start()
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [
        Seats::fill(&client, seed).await,
        Seats::new(&client, seed + 1),
        Seats::new(&client, seed + 2),
    ]
    .into_iter()
    .map(|seats| tokio::spawn(seats.run(Arc::clone(&stop))))
    .collect();
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    wait_for(&mirror, "two thousand events", |progress| {
        progress.totals.events_applied > 2000
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        eprintln!("{} swaps", writer.await.unwrap());
    }
    let progress = caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert!(
        progress.unsupported.is_empty(),
        "{:?}",
        progress.unsupported
    );
    for field in ["seat", "code"] {
        assert!(refuses_duplicates(&target.collection("seats"), field).await);
    }
    assert_eq!(progress.totals.repaired, 0);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_wander_between_documents_arrive_on_6_0_27() {
    keys_wander(Version::V6_0_27).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_wander_between_documents_arrive_on_6_0_5() {
    keys_wander(Version::V6_0_5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_swaps_is_settled_although_the_index_is_enforced() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let seats = Seats::fill(&client, 1).await;
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
    // All of it is one batch then: every key has changed its place in it.
    for n in 0..DOCUMENTS {
        let away = doc! {"$set": {"seat": -1 - n}};
        seats.seats.update_one(doc! {"_id": n}, away).await.unwrap();
    }
    for n in 0..DOCUMENTS {
        let to = doc! {"$set": {"seat": (n + 1) % DOCUMENTS}};
        seats.seats.update_one(doc! {"_id": n}, to).await.unwrap();
    }
    let mirror = MirrorHandle::start(config);
    let progress = caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(progress.totals.repaired, 0);
    assert!(refuses_duplicates(&target.collection("seats"), "seat").await);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_follow_the_sources_while_they_change() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let seats: Collection<Document> = source.collection("seats");
    seats
        .insert_many([doc! {"_id": 1, "k": 1}, doc! {"_id": 2, "k": 1}])
        .await
        .unwrap();
    let modify = async |index: Document| {
        let change = doc! {"collMod": "seats", "index": index};
        source.run_command(change).await.unwrap();
    };
    // Lets no new duplicates in, but has one.
    let index = doc! {"key": {"k": 1}, "name": "k_1", "prepareUnique": true};
    let command = doc! {"createIndexes": "seats", "indexes": [index]};
    source.run_command(command).await.unwrap();
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    assert_equal(&source, &target).await;
    seats
        .update_one(doc! {"_id": 1}, doc! {"$set": {"z": 1}})
        .await
        .unwrap();
    seats
        .replace_one(doc! {"_id": 2}, doc! {"k": 1, "y": 1})
        .await
        .unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    modify(doc! {"name": "k_1", "prepareUnique": false}).await;
    seats.insert_one(doc! {"_id": 3, "k": 1}).await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    seats.delete_many(doc! {"_id": {"$ne": 1}}).await.unwrap();
    modify(doc! {"name": "k_1", "prepareUnique": true}).await;
    modify(doc! {"name": "k_1", "unique": true}).await;
    // Two indexes on the same keys, one of them unique.
    unique(&source, "seats", "s").await;
    let index = doc! {"key": {"s": 1}, "name": "ordinary"};
    let command = doc! {"createIndexes": "seats", "indexes": [index]};
    source.run_command(command).await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert!(refuses_duplicates(&target.collection("seats"), "k").await);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_document_is_told_and_does_not_stop_the_mirror() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let seats = Seats::fill(&client, 1).await.seats;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    // The verification after the copy would find the stranger's document, too.
    wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
    assert_equal(&source, &target).await;
    let copies: Collection<Document> = target.collection("seats");
    copies
        .insert_one(doc! {"_id": "stranger", "seat": 777, "code": "x"})
        .await
        .unwrap();
    seats
        .insert_one(doc! {"_id": 1000, "seat": 777, "code": "y"})
        .await
        .unwrap();
    caught_up(&mirror, &client).await;
    let progress = wait_for(&mirror, "the index is named", |progress| {
        progress
            .unsupported
            .iter()
            .any(|left| left.name == "seats (index seat_1)")
    })
    .await;
    assert_eq!(progress.totals.repaired, 0);
    assert_eq!(copies.count_documents(doc! {"seat": 777}).await.unwrap(), 2);
    // Once the stranger is gone, the index comes back by itself.
    copies.delete_one(doc! {"_id": "stranger"}).await.unwrap();
    wait_for(&mirror, "nothing is left out", |progress| {
        progress.unsupported.is_empty()
    })
    .await;
    assert_equal(&source, &target).await;
    assert!(refuses_duplicates(&copies, "seat").await);
    mirror.stop().await;
}
