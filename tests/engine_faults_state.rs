//! What a mirror remembers is removed or damaged by hand: it is refused, never guessed, and
//! nothing changes on the target.

mod common;

use bson::{Bson, Document, doc};
use common::process::{Manifest, until};
use common::{PATIENCE, assert_equal, caught_up, config, fill, mirroring, wait_for};
use futures::TryStreamExt;
use mongodb::{Client, Database};
use mongomirror::engine::config::MirrorConfig;
use mongomirror::engine::progress::Problem;
use mongomirror::runner::MirrorHandle;
use testbed::ReplicaSet;

const STATE: [&str; 4] = ["checkpoints", "catalog", "ranges", "quarantine"];

async fn all_of(state: &Database, name: &str) -> Vec<Document> {
    let collection = state.collection::<Document>(name);
    let find = collection.find(doc! {});
    find.await.unwrap().try_collect().await.unwrap()
}

/// Everything that is remembered.
async fn saved(state: &Database) -> Vec<(&'static str, Vec<Document>)> {
    let mut all = Vec::new();
    for name in STATE {
        all.push((name, all_of(state, name).await));
    }
    all
}

async fn put_back(state: &Database, saved: &[(&'static str, Vec<Document>)]) {
    for (name, documents) in saved {
        let collection = state.collection::<Document>(name);
        collection.delete_many(doc! {}).await.unwrap();
        if !documents.is_empty() {
            collection.insert_many(documents).await.unwrap();
        }
    }
}

async fn problem_of(config: &MirrorConfig) -> Problem {
    let mirror = MirrorHandle::start(config.clone());
    let progress = wait_for(&mirror, "a problem", |progress| progress.problem.is_some()).await;
    mirror.stop().await;
    progress.problem.unwrap()
}

async fn hash(db: &Database) -> String {
    let reply = db.run_command(doc! {"dbHash": 1}).await.unwrap();
    reply.get_str("md5").unwrap().to_owned()
}

/// A change to one collection of the state, by an update or by a removal.
enum Damage {
    Set(&'static str, Document),
    Unset(&'static str, &'static str),
    Remove(&'static str, Document),
    Insert(&'static str, Document),
}

impl Damage {
    async fn do_it(&self, state: &Database) {
        let changed = match self {
            Self::Set(name, fields) => {
                let update = doc! {"$set": fields.clone()};
                let collection = state.collection::<Document>(name);
                collection
                    .update_one(doc! {}, update)
                    .await
                    .unwrap()
                    .modified_count
            }
            Self::Unset(name, field) => {
                let update = doc! {"$unset": {*field: ""}};
                let collection = state.collection::<Document>(name);
                collection
                    .update_one(doc! {}, update)
                    .await
                    .unwrap()
                    .modified_count
            }
            Self::Remove(name, filter) => {
                let collection = state.collection::<Document>(name);
                collection
                    .delete_many(filter.clone())
                    .await
                    .unwrap()
                    .deleted_count
            }
            Self::Insert(name, document) => {
                let collection = state.collection::<Document>(name);
                collection.insert_one(document.clone()).await.unwrap();
                1
            }
        };
        assert!(changed > 0, "the damage was done");
    }
}

/// Does each damage to a mirror that does not run, and shows that it refuses to.
async fn refuses(client: &Client, config: &MirrorConfig, table: Vec<(&str, Damage, &str)>) {
    let state = client.database("mongomirror");
    let target = client.database(&config.target.database);
    let (sound, before) = (saved(&state).await, hash(&target).await);
    for (what, damage, reason) in table {
        damage.do_it(&state).await;
        let problem = problem_of(config).await;
        assert_eq!(problem.reason, reason, "{what}: {}", problem.message);
        assert!(problem.needs_human, "{what}: {}", problem.message);
        eprintln!("{what}: {}", problem.message);
        assert_eq!(
            hash(&target).await,
            before,
            "{what}: the target was touched"
        );
        put_back(&state, &sound).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_checkpoint_or_catalog_is_refused() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    for name in ["orders", "items"] {
        fill(&source, name, 0, 100).await;
    }
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    fill(&source, "orders", 100, 100).await;
    caught_up(&mirror, &client).await;
    mirror.stop().await;
    // Written while it is away: a guess would lose or double this.
    fill(&source, "orders", 200, 100).await;

    let damaged = "CheckpointDamaged";
    let long = "8200000007000000022B0229296E04".to_owned();
    let token = |data: &str| doc! {"position.after": {"_data": data}};
    let checkpoint = |fields| Damage::Set("checkpoints", fields);
    let of_items = || doc! {"name": "items"};
    let table = vec![
        (
            "the checkpoint removed",
            Damage::Remove("checkpoints", doc! {}),
            "TargetNotEmpty",
        ),
        (
            "a newer format",
            checkpoint(doc! {"format": 99}),
            "CheckpointFormat",
        ),
        (
            "a format of another type",
            checkpoint(doc! {"format": "1"}),
            damaged,
        ),
        ("no format", Damage::Unset("checkpoints", "format"), damaged),
        ("no epoch", Damage::Unset("checkpoints", "epoch"), damaged),
        (
            "an epoch of another type",
            checkpoint(doc! {"epoch": "3"}),
            damaged,
        ),
        ("no name", Damage::Unset("checkpoints", "mirror"), damaged),
        (
            "no position",
            Damage::Unset("checkpoints", "position"),
            damaged,
        ),
        (
            "a position of another type",
            checkpoint(doc! {"position": 5}),
            damaged,
        ),
        (
            "no time",
            Damage::Unset("checkpoints", "position.time"),
            damaged,
        ),
        (
            "no token",
            Damage::Unset("checkpoints", "position.after"),
            damaged,
        ),
        (
            "a token that is none",
            checkpoint(token("nonsense")),
            damaged,
        ),
        (
            "a token of another time",
            checkpoint(token(&format!("82F{}", &long[3..]))),
            damaged,
        ),
        (
            "a token with garbage behind its time",
            checkpoint(token(&format!("{}zz", &long[..18]))),
            damaged,
        ),
        (
            "a token that is not hexadecimal",
            checkpoint(token(&format!("{}FFFFFFFF", &long[..18]))),
            damaged,
        ),
        (
            "ahead of another type",
            checkpoint(doc! {"ahead": [{"u": 1}]}),
            damaged,
        ),
        (
            "another mirror's",
            checkpoint(doc! {"mirror": "somebody/else"}),
            "TargetBusy",
        ),
        (
            "the catalog removed",
            Damage::Remove("catalog", doc! {}),
            damaged,
        ),
        (
            "a collection of the catalog removed",
            Damage::Remove("catalog", of_items()),
            damaged,
        ),
        (
            "a name of another type",
            Damage::Set("catalog", doc! {"name": Bson::Null}),
            damaged,
        ),
        (
            "a name that is not on the target",
            Damage::Set("catalog", doc! {"name": "others"}),
            damaged,
        ),
        (
            "a flag removed",
            Damage::Unset("catalog", "copied"),
            damaged,
        ),
        (
            "a flag that says too little",
            Damage::Set("catalog", doc! {"copied": false}),
            damaged,
        ),
    ];
    let known = all_of(&client.database("mongomirror"), "catalog").await;
    let uuid = known[0].get_document("_id").unwrap().get("u").unwrap();
    let id = bson::Binary {
        subtype: bson::spec::BinarySubtype::Generic,
        bytes: vec![0x10, 7, 0, 0, 0],
    };
    let refused = doc! {
        "_id": {"t": "shop_backup", "u": uuid, "id": id},
        "collection": "orders", "document": "7", "reason": "it is so", "attempts": 1_i64,
        "first": bson::DateTime::now(), "last": bson::DateTime::now(),
    };
    let mut table = table;
    table.push((
        "a refused document without a time",
        Damage::Insert("quarantine", refused),
        damaged,
    ));
    refuses(&client, &config, table).await;

    // What was put back is as good as before.
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(mirror.stop().await.totals.repaired, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_ranges_are_refused() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 300).await;
    // A process that dies in the middle of its copy.
    let manifest = Manifest::new(&set.uri(), &set.uri(), &["shop"]);
    let process = manifest.run(&[
        ("MONGOMIRROR_CRASH", "CommitCopy:after:4"),
        ("MONGOMIRROR_RANGE_BYTES", "20000"),
    ]);
    tokio::time::timeout(PATIENCE, process.wait())
        .await
        .unwrap()
        .unwrap();
    // Its open transactions hold ranges.
    set.admin(doc! {"killAllSessions": []}).await.unwrap();

    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.name = "default/shop".into();
    let ranges = || {
        client
            .database("mongomirror")
            .collection::<Document>("ranges")
    };
    assert!(ranges().count_documents(doc! {}).await.unwrap() > 4);
    let damaged = "CheckpointDamaged";
    let table = vec![
        (
            "all ranges removed",
            Damage::Remove("ranges", doc! {}),
            damaged,
        ),
        (
            "the first range removed",
            Damage::Remove("ranges", doc! {"_id.n": 0}),
            damaged,
        ),
        (
            "a range removed",
            Damage::Remove("ranges", doc! {"_id.n": 2}),
            damaged,
        ),
        (
            "a state of another type",
            Damage::Set("ranges", doc! {"state": 1}),
            damaged,
        ),
        (
            "a state that is none",
            Damage::Set("ranges", doc! {"state": "perhaps"}),
            damaged,
        ),
        (
            "done without a time",
            Damage::Set("ranges", doc! {"state": "done", "at": Bson::Null}),
            damaged,
        ),
        (
            "a bound of another type",
            Damage::Set("ranges", doc! {"high": 5}),
            damaged,
        ),
        (
            "the collection's document removed",
            Damage::Remove("catalog", doc! {}),
            damaged,
        ),
    ];
    refuses(&client, &config, table).await;

    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_removed_under_a_running_mirror_stops_it() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 100).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    let before = hash(&target).await;
    let checkpoints = client
        .database("mongomirror")
        .collection::<Document>("checkpoints");
    checkpoints.delete_many(doc! {}).await.unwrap();
    fill(&source, "orders", 100, 100).await;
    wait_for(&mirror, "the target is refused", |progress| {
        progress
            .problem
            .as_ref()
            .is_some_and(|problem| problem.reason == "TargetNotEmpty")
    })
    .await;
    assert_eq!(hash(&target).await, before);
    let nobody = until(async || checkpoints.count_documents(doc! {}).await.unwrap() == 0);
    tokio::time::timeout(PATIENCE, nobody).await.unwrap();
    mirror.stop().await;
}
