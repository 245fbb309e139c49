//! Random writes of every kind, from a seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bson::{Bson, Document, doc};
use mongodb::{Client, ClientSession, Collection, Database, IndexModel};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;

/// Collections that are written to.
pub const COLLECTIONS: [&str; 3] = ["orders", "items", "odd"];

/// Ids are taken from so many, so that writes meet each other.
const IDS: i32 = 600;

/// Writers at work until stopped.
pub struct Workload {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Workload {
    /// Starts `writers` tasks; with `ddl`, one of them also changes collections and indexes.
    pub fn start(client: &Client, database: &str, seed: u64, writers: u64, ddl: bool) -> Self {
        eprintln!("workload seed {seed}");
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::new(AtomicU64::new(0));
        let writers = (0..writers)
            .map(|n| {
                let writer = Writer {
                    client: client.clone(),
                    db: client.database(database),
                    random: StdRng::seed_from_u64(seed * 1000 + n),
                    ddl: ddl && n == 0,
                };
                tokio::spawn(writer.run(Arc::clone(&stop), Arc::clone(&writes)))
            })
            .collect();
        Self {
            stop,
            writes,
            writers,
        }
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Waits until this much was written.
    pub async fn wait_for(&self, writes: u64) {
        while self.writes() < writes {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops all writers; returns how much they wrote.
    pub async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.expect("a writer panicked");
        }
        self.writes.load(Ordering::Relaxed)
    }
}

struct Writer {
    client: Client,
    db: Database,
    random: StdRng,
    ddl: bool,
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>, writes: Arc<AtomicU64>) {
        let mut session = self.client.start_session().await.expect("a session");
        while !stop.load(Ordering::Relaxed) {
            let outcome = match self.random.random_range(0..100) {
                0..6 => self.transaction(&mut session).await,
                6..8 if self.ddl => self.ddl().await,
                _ => self.write(None).await,
            };
            // Conflicts with other writers, elections, and collections that were just dropped are
            // part of life; what counts is what the source ends up with.
            if outcome.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            writes.fetch_add(1, Ordering::Relaxed);
            if self.random.random_ratio(1, 8) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn collection(&mut self) -> Collection<Document> {
        let name = COLLECTIONS[self.random.random_range(0..COLLECTIONS.len())];
        self.db.collection(name)
    }

    fn id(&mut self) -> Bson {
        let n = self.random.random_range(0..IDS);
        match n % 7 {
            0 => Bson::String(format!("id-{n}")),
            1 => Bson::Double(f64::from(n) + 0.5),
            2 => Bson::Document(doc! {"n": n}),
            _ => Bson::Int32(n),
        }
    }

    fn value(&mut self, depth: u32) -> Bson {
        match self.random.random_range(0..10) {
            0 => Bson::Int64(self.random.random_range(-5..5)),
            1 => Bson::Double(self.random.random_range(-2..2).into()),
            2 => Bson::Null,
            3 => Bson::Boolean(self.random.random()),
            4 => Bson::String("s".repeat(self.random.random_range(0..40))),
            5 | 6 if depth < 3 => Bson::Document(self.fields(depth + 1)),
            7 if depth < 3 => {
                let length = self.random.random_range(0..5);
                Bson::Array((0..length).map(|_| self.value(depth + 1)).collect())
            }
            _ => Bson::Int32(self.random.random_range(0..9)),
        }
    }

    fn fields(&mut self, depth: u32) -> Document {
        let mut fields = Document::new();
        for _ in 0..self.random.random_range(1..6) {
            let name = self.name();
            fields.insert(name, self.value(depth));
        }
        fields
    }

    fn name(&mut self) -> String {
        const NAMES: [&str; 9] = ["a", "b", "c", "d", "arr", "doc", "0", "n", "zz"];
        NAMES[self.random.random_range(0..NAMES.len())].to_owned()
    }

    fn document(&mut self) -> Document {
        let mut document = doc! {"_id": self.id()};
        document.extend(self.fields(0));
        document.insert("arr", Bson::Array(vec![1.into(), 2.into(), 3.into()]));
        document.insert("doc", doc! {"x": 1, "y": {"z": 2}});
        // Large enough that updates are logged as deltas and not as replacements.
        document.insert("pad", "p".repeat(self.random.random_range(0..600)));
        document
    }

    fn update(&mut self) -> Document {
        let value = self.value(1);
        match self.random.random_range(0..16) {
            0 => doc! {"$set": {self.name(): value}},
            1 => doc! {"$set": {"doc.x": value, "doc.new": 1}},
            2 => doc! {"$set": {format!("doc.{}", self.name()): value}},
            3 => doc! {"$unset": {self.name(): ""}},
            4 => doc! {"$inc": {"count": 1}},
            5 => doc! {"$push": {"arr": value}},
            6 => doc! {"$push": {"arr": {"$each": [value, 7], "$position": 0, "$slice": 6}}},
            7 => doc! {"$pull": {"arr": 2}},
            8 => doc! {"$pop": {"arr": if self.random.random() { 1 } else { -1 }}},
            9 => doc! {"$addToSet": {"arr": value}},
            10 => doc! {"$rename": {"a": "renamed", "renamed": "b"}},
            11 => doc! {"$set": {format!("arr.{}", self.random.random_range(0..5)): value}},
            12 => doc! {"$min": {"n": 3}, "$max": {"zz": 4}, "$currentDate": {"when": true}},
            13 => doc! {"$mul": {"count": 2}, "$set": {"doc.y.z": value}},
            14 => doc! {"$unset": {"doc.x": "", "pad": ""}},
            _ => doc! {"$set": {"a": value, "b": 1, "doc.y": {"q": 1}}},
        }
    }

    fn pipeline(&mut self) -> Vec<Document> {
        match self.random.random_range(0..4) {
            0 => vec![
                doc! {"$set": {"sum": {"$size": {"$cond": [{"$isArray": "$arr"}, "$arr", []]}}}},
            ],
            1 => vec![doc! {"$unset": ["a", "doc.y"]}],
            2 => vec![
                doc! {"$set": {"arr": {"$slice": [{"$cond": [{"$isArray": "$arr"}, "$arr", [1, 2]]}, 2]}}},
                doc! {"$set": {"p": 1, "b": "$a"}},
            ],
            _ => vec![
                doc! {"$replaceWith": {"$mergeObjects": [{"_id": "$_id", "z": 1}, "$$ROOT", {"a": 5}]}},
            ],
        }
    }

    async fn write(&mut self, session: Option<&mut ClientSession>) -> mongodb::error::Result<()> {
        macro_rules! run {
            ($action:expr) => {
                match session {
                    Some(session) => $action.session(session).await.map(drop),
                    None => $action.await.map(drop),
                }
            };
        }
        let collection = self.collection();
        let filter = doc! {"_id": self.id()};
        match self.random.random_range(0..20) {
            0..4 => run!(collection.insert_one(self.document())),
            4 => {
                let documents: Vec<_> = (0..5).map(|_| self.document()).collect();
                run!(collection.insert_many(documents).ordered(false))
            }
            5..12 => run!(collection.update_one(filter, self.update())),
            12 => run!(collection.update_one(filter, self.update()).upsert(true)),
            13 | 14 => run!(collection.update_one(filter, self.pipeline())),
            15 => {
                let mut document = self.document();
                document.remove("_id");
                run!(collection.replace_one(filter, document).upsert(true))
            }
            16 => run!(collection.delete_one(filter)),
            17 => {
                let from = self.random.random_range(0..IDS);
                let few = doc! {"_id": {"$gte": from, "$lt": from + 12}};
                run!(collection.update_many(few, self.update()))
            }
            18 => run!(collection.find_one_and_update(filter, self.update())),
            _ => {
                let from = self.random.random_range(0..IDS);
                run!(collection.delete_many(doc! {"_id": {"$gte": from, "$lt": from + 4}}))
            }
        }
    }

    async fn transaction(&mut self, session: &mut ClientSession) -> mongodb::error::Result<()> {
        session.start_transaction().await?;
        for _ in 0..self.random.random_range(1..8) {
            if let Err(error) = self.write(Some(session)).await {
                let _ = session.abort_transaction().await;
                return Err(error);
            }
        }
        if self.random.random_ratio(1, 6) {
            return session.abort_transaction().await;
        }
        session.commit_transaction().await
    }

    async fn ddl(&mut self) -> mongodb::error::Result<()> {
        let collection = self.collection();
        let extra: Collection<Document> = self.db.collection("extra");
        let name = collection.name().to_owned();
        match self.random.random_range(0..7) {
            0 => {
                let keys = doc! {self.name(): 1, "count": -1};
                let index = IndexModel::builder().keys(keys).build();
                collection.create_index(index).await.map(drop)
            }
            1 => {
                let names = collection.list_index_names().await?;
                match names.iter().find(|name| *name != "_id_") {
                    Some(name) => collection.drop_index(name).await,
                    None => Ok(()),
                }
            }
            2 => extra.insert_one(self.document()).await.map(drop),
            3 => extra.drop().await,
            4 => {
                // Two names change places.
                self.rename("extra", "swap").await?;
                self.rename(&name, "extra").await?;
                self.rename("swap", &name).await
            }
            5 => {
                let validator =
                    doc! {"$or": [{"a": {"$exists": true}}, {"_id": {"$exists": true}}]};
                let change = doc! {"collMod": name, "validator": validator};
                self.db.run_command(change).await.map(drop)
            }
            _ => self.db.create_collection("empty").await,
        }
    }

    async fn rename(&self, from: &str, to: &str) -> mongodb::error::Result<()> {
        let database = self.db.name();
        let command = doc! {
            "renameCollection": format!("{database}.{from}"),
            "to": format!("{database}.{to}"),
        };
        let admin = self.client.database("admin");
        admin.run_command(command).await.map(drop)
    }
}

/// Fills the collections, so that there is something to copy.
pub async fn fill(client: &Client, database: &str, seed: u64, documents: u64) {
    let mut writer = Writer {
        client: client.clone(),
        db: client.database(database),
        random: StdRng::seed_from_u64(seed),
        ddl: false,
    };
    for name in COLLECTIONS {
        let collection = writer.db.collection::<Document>(name);
        for n in 0..documents {
            let mut document = writer.document();
            if n % 2 == 0 {
                document.insert("_id", i32::try_from(n).expect("few documents") + IDS);
            }
            // The same id may be drawn twice.
            let _ = collection.insert_one(document).await;
        }
    }
}
