//! Commands on collections, as tables: what was there before, and what is done then.

use std::time::Duration;

use bson::{Document, doc};
use futures::TryStreamExt;
use mongodb::error::TRANSIENT_TRANSACTION_ERROR;
use mongodb::{Client, Database};
use mongomirror::engine::config::MirrorConfig;
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testbed::Version;

use super::gate::start_held;
use super::process::{Manifest, is_copied, until};
use super::servers::shared;
use super::{PATIENCE, assert_equal_within, caught_up, config, mirroring};

/// One thing that is done at the source.
#[derive(Clone, Debug)]
pub enum Step {
    /// A command on the database.
    Run(Document),
    /// A command that the source refuses.
    Refused(Document),
    /// A collection gets another name, over another collection if that is `true`. A name that
    /// begins with `/` is one of another database.
    Rename(&'static str, &'static str, bool),
    /// Documents are inserted: from this number on, so many.
    Fill(&'static str, i32, i32),
    /// The same, in the other database.
    FillElsewhere(&'static str, i32, i32),
    /// Commands in one transaction; `false` if it is given up.
    Transaction(Vec<Document>, bool),
    /// The whole database is dropped.
    DropDatabase,
}

/// What is there before the mirror starts, and what is done then.
pub struct Case {
    /// What happens, in words.
    pub name: &'static str,
    /// Before the mirror starts.
    pub before: Vec<Step>,
    /// While it copies, or after.
    pub then: Vec<Step>,
}

/// A case.
pub fn case(
    name: &'static str,
    before: impl IntoIterator<Item = Step>,
    then: impl IntoIterator<Item = Step>,
) -> Case {
    Case {
        name,
        before: before.into_iter().collect(),
        then: then.into_iter().collect(),
    }
}

/// The source of a test.
struct Source {
    client: Client,
    db: Database,
}

impl Source {
    fn elsewhere(&self) -> String {
        format!("{}_elsewhere", self.db.name())
    }

    fn full_name(&self, name: &str) -> String {
        match name.strip_prefix('/') {
            Some(name) => format!("{}.{name}", self.elsewhere()),
            None => format!("{}.{name}", self.db.name()),
        }
    }

    async fn assert_mirrored(&self, target: &Database) {
        assert_equal_within(&self.db, target, |name| !name.starts_with(OUTSIDE)).await;
    }

    async fn carry_out(&self, case: &str, steps: &[Step]) {
        for step in steps {
            if let Err(error) = self.step(step).await {
                panic!("{case}: {step:?}: {error}");
            }
        }
    }

    async fn step(&self, step: &Step) -> mongodb::error::Result<()> {
        match step {
            Step::Run(command) => self.db.run_command(command.clone()).await.map(drop),
            Step::Refused(command) => {
                let refused = self.db.run_command(command.clone()).await;
                assert!(refused.is_err(), "{command} was not refused");
                Ok(())
            }
            Step::Rename(from, to, over) => {
                let command = doc! {
                    "renameCollection": self.full_name(from),
                    "to": self.full_name(to),
                    "dropTarget": over,
                };
                let admin = self.client.database("admin");
                admin.run_command(command).await.map(drop)
            }
            Step::Fill(name, from, count) => fill(&self.db, name, *from, *count).await,
            Step::FillElsewhere(name, from, count) => {
                let elsewhere = self.client.database(&self.elsewhere());
                fill(&elsewhere, name, *from, *count).await
            }
            Step::Transaction(commands, committed) => loop {
                match self.transaction(commands, *committed).await {
                    Err(error) if error.contains_label(TRANSIENT_TRANSACTION_ERROR) => {}
                    outcome => return outcome,
                }
            },
            Step::DropDatabase => self.db.drop().await,
        }
    }

    async fn transaction(
        &self,
        commands: &[Document],
        committed: bool,
    ) -> mongodb::error::Result<()> {
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        for command in commands {
            let run = self.db.run_command(command.clone());
            run.session(&mut session).await?;
        }
        if committed {
            session.commit_transaction().await
        } else {
            session.abort_transaction().await
        }
    }
}

/// Collections that take no part.
const OUTSIDE: &str = "outside ";

/// Documents that every index of the tests can hold.
async fn fill(db: &Database, name: &str, from: i32, count: i32) -> mongodb::error::Result<()> {
    let documents = (from..from + count).map(|n| {
        doc! {
            "_id": n, "n": n, "k": n % 7, "text": format!("Word {n}"),
            "place": [f64::from(n % 90), f64::from(n % 45)],
            "when": bson::DateTime::from_millis(4_000_000_000_000),
            "pad": "p".repeat(100),
        }
    });
    let collection = db.collection::<Document>(name);
    collection.insert_many(documents).await.map(drop)
}

async fn source(version: Version, name: &str) -> (MirrorConfig, Source, Database) {
    let set = shared(version).await;
    let client = set.client().await.expect("a client");
    let mut config = config(&set.uri(), &set.uri(), name);
    config.selection = Selection::new(Vec::new(), vec![format!("{OUTSIDE}*")]).expect("a pattern");
    let target = client.database(&config.target.database);
    let db = client.database(name);
    (config, Source { client, db }, target)
}

/// The cases one after the other while the mirror is live; equal after each. Then the mirror is
/// sent back to where it was before all of them, twice, and meets every event again.
pub async fn after_the_copy(version: Version, name: &str, cases: &[Case]) {
    let (config, source, target) = source(version, name).await;
    for case in cases {
        source.carry_out(case.name, &case.before).await;
    }
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    let before = position(&source.client, &config).await;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    for case in cases {
        eprintln!("{}", case.name);
        source.carry_out(case.name, &case.then).await;
        caught_up(&mirror, &source.client).await;
        source.assert_mirrored(&target).await;
    }
    mirror.stop().await;
    for time in 1..=2 {
        eprintln!("all of it again, time {time}");
        set_position(&source.client, &config, &before).await;
        let mirror = MirrorHandle::start(config.clone());
        mirroring(&mirror).await;
        caught_up(&mirror, &source.client).await;
        source.assert_mirrored(&target).await;
        mirror.stop().await;
    }
    clean_up(&source, &target).await;
}

/// All cases while the copy is held in the middle.
pub async fn during_the_copy(version: Version, name: &str, cases: &[Case]) {
    let (mut config, source, target) = source(version, name).await;
    config.limits.range_bytes = 1500;
    config.limits.copy_lanes = 1;
    for case in cases {
        source.carry_out(case.name, &case.before).await;
    }
    let (mirror, gate) = start_held(&config, &source.client).await;
    for case in cases {
        source.carry_out(case.name, &case.then).await;
    }
    gate.open().await;
    mirroring(&mirror).await;
    caught_up(&mirror, &source.client).await;
    source.assert_mirrored(&target).await;
    mirror.stop().await;
    clean_up(&source, &target).await;
}

/// What a mirror writes where collections change.
const WRITTEN: [&str; 15] = [
    "BeginRange",
    "BuildIndex",
    "CommitBatch",
    "CommitCopy",
    "CommitNote",
    "CreateCollection",
    "DropCollection",
    "DropIndex",
    "HoldCheckpoint",
    "InsertRanges",
    "ModifyCollection",
    "PutCollection",
    "RemoveCollection",
    "RemoveRanges",
    "RenameCollection",
];

/// As often does a process die over one table.
const DEATHS: usize = 10;

/// All cases at once, met by processes that die before or after something that they write about
/// them; which, and the how manieth time, is by chance. Returns how many died.
pub async fn cut_off(version: Version, name: &str, cases: &[Case], seed: u64) -> usize {
    let (config, source, target) = source(version, name).await;
    let uri = shared(version).await.uri();
    let manifest = Manifest::new(&uri, &uri, &[]);
    let selection = format!("  collections: {{exclude: [\"{OUTSIDE}*\"]}}\n");
    manifest.hold(&[name], &selection);
    for case in cases {
        source.carry_out(case.name, &case.before).await;
    }
    let client = &source.client;
    let mut process = manifest.run(&[]);
    let copied = until(async || is_copied(client, name).await);
    tokio::time::timeout(PATIENCE, copied)
        .await
        .expect("it is not copied");
    process.kill().await.expect("it is killed");
    for case in cases {
        source.carry_out(case.name, &case.then).await;
    }
    let last = doc! {"_id": "last"};
    let markers = source.db.collection::<Document>("markers");
    markers.insert_one(&last).await.expect("a marker");
    let mut random = StdRng::seed_from_u64(seed);
    // Not every table meets all of them, and it ends at the first that is met.
    let mut next = || {
        let points = (0..5).map(|_| {
            let written = WRITTEN[random.random_range(0..WRITTEN.len())];
            let moment = ["before", "after"][random.random_range(0..2)];
            format!("{written}:{moment}:{}", random.random_range(1..6))
        });
        points.collect::<Vec<_>>().join(",")
    };
    let mut deaths = 0;
    process = manifest.run(&[("MONGOMIRROR_CRASH", &next())]);
    let copies = target.collection::<Document>("markers");
    let arrived = async {
        while copies.find_one(last.clone()).await.ok().flatten().is_none()
            || !is_copied(client, name).await
        {
            if process.ended().expect("it can be looked at").is_some() {
                deaths += 1;
                let points = if deaths < DEATHS {
                    next()
                } else {
                    String::new()
                };
                process = manifest.run(&[("MONGOMIRROR_CRASH", &points)]);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(2 * PATIENCE, arrived).await;
    assert!(
        in_time.is_ok(),
        "{name}, seed {seed}: it never arrives after {deaths} deaths; {}",
        manifest.log()
    );
    let log = manifest.log();
    let died = log.lines().filter(|line| line.starts_with("crash point "));
    println!("{name}, seed {seed}: {:?}", died.collect::<Vec<_>>());
    process.kill().await.expect("it is killed");
    // What is left to do for indexes is done by one that lives.
    let mirror = MirrorHandle::start(MirrorConfig {
        name: format!("default/{}", name.replace('_', "-")),
        ..config
    });
    mirroring(&mirror).await;
    caught_up(&mirror, client).await;
    source.assert_mirrored(&target).await;
    mirror.stop().await;
    assert!(!log.contains("panicked"), "the mirror panicked");
    clean_up(&source, &target).await;
    deaths
}

async fn clean_up(source: &Source, target: &Database) {
    let elsewhere = source.client.database(&source.elsewhere());
    for db in [&source.db, target, &elsewhere] {
        db.drop().await.expect("the database is gone");
    }
}

/// The stored position of a stopped mirror.
pub async fn position(target: &Client, config: &MirrorConfig) -> Document {
    let checkpoints = target
        .database("mongomirror")
        .collection::<Document>("checkpoints");
    let checkpoint = checkpoints
        .find_one(doc! {"_id": &config.target.database})
        .await
        .expect("the checkpoint can be read")
        .expect("there is a checkpoint");
    checkpoint
        .get_document("position")
        .expect("a position")
        .clone()
}

/// Sends a stopped mirror to another position.
pub async fn set_position(target: &Client, config: &MirrorConfig, position: &Document) {
    let checkpoints = target
        .database("mongomirror")
        .collection::<Document>("checkpoints");
    let set = checkpoints
        .update_one(
            doc! {"_id": &config.target.database},
            doc! {"$set": {"position": position.clone()}},
        )
        .await
        .expect("the checkpoint can be written");
    assert_eq!(set.matched_count, 1);
}

/// Names of the collections of a database.
pub async fn names(db: &Database) -> Vec<String> {
    let cursor = db
        .run_cursor_command(doc! {"listCollections": 1, "nameOnly": true})
        .await
        .expect("listCollections");
    let listed: Vec<Document> = cursor.try_collect().await.expect("listCollections");
    let mut names: Vec<String> = listed
        .iter()
        .map(|listed| listed.get_str("name").expect("a name").to_owned())
        .collect();
    names.sort();
    names
}
