//! What the engine's black-box tests share: mirrors between real servers, and the oracle.

#![allow(dead_code, reason = "every test file uses its own part")]

pub mod canary;
pub mod cluster;
pub mod corpus;
pub mod ddl;
pub mod faults;
pub mod gate;
pub mod history;
pub mod oplog;
pub mod process;
pub mod raw;
pub mod recorder;
pub mod refused;
pub mod servers;
pub mod victims;
pub mod workload;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, doc};
use futures::TryStreamExt;
use mongodb::{Client, Database};
use mongomirror::engine::config::{Endpoint, Limits, MirrorConfig, OnHistoryLost};
use mongomirror::engine::connection::uri::ConnectionUri;
use mongomirror::engine::progress::{Phase, Progress, VerificationResult};
use mongomirror::engine::request::{Refusal, Request};
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};
use tokio::sync::oneshot;

/// Longest wait for anything in a test; reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Shows the product's log lines of a test that fails; one with a password in it ends all.
pub fn show_logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "mongomirror=debug".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(canary::Watched::default)
        .try_init();
}

/// Random by default; set `MONGOMIRROR_TEST_SEED` to see the same writes again.
pub fn fresh_seed() -> u64 {
    std::env::var("MONGOMIRROR_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from(rand::random::<u32>()))
}

/// A mirror of `database` into `<database>_backup`.
pub fn config(source: &str, target: &str, database: &str) -> MirrorConfig {
    show_logs();
    let endpoint = |uri: &str, database: String| Endpoint {
        tls: None,
        uri: ConnectionUri::parse(uri).expect("the test bed's own string"),
        database,
    };
    MirrorConfig {
        name: format!("tests/{database}"),
        source: endpoint(source, database.to_owned()),
        target: endpoint(target, format!("{database}_backup")),
        state_database: "mongomirror".to_owned(),
        selection: Selection::default(),
        holder: None,
        read_from: Default::default(),
        on_existing_data: Default::default(),
        on_deselected: Default::default(),
        on_history_lost: OnHistoryLost::default(),
        apply_mode: Default::default(),
        verify_every: None,
        limits: Limits::default(),
    }
}

/// Waits until the progress is as wanted; panics with the last one otherwise.
pub async fn wait_for(
    mirror: &MirrorHandle,
    what: &str,
    wanted: impl Fn(&Progress) -> bool,
) -> Progress {
    let mut progress = mirror.progress();
    let found = tokio::time::timeout(PATIENCE, progress.wait_for(|now| wanted(now))).await;
    match found {
        Ok(Ok(found)) => found.clone(),
        Ok(Err(_)) => panic!("the mirror ended while waiting for: {what}"),
        Err(_) => panic!(
            "still not: {what}; {:#?}",
            mirror.progress().borrow().clone()
        ),
    }
}

/// Says that this machine is not one on which something can be tried. Not by `eprintln!`: of a test
/// that passes, nobody would see that.
pub fn not_tried(why: &str) {
    let _ = writeln!(std::io::stderr(), "not tried: {why}");
}

/// Waits until there is something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, found).await;
    in_time.unwrap_or_else(|_| panic!("still not: {what}"))
}

/// A server of its own.
pub async fn start(version: Version) -> (ReplicaSet, Client) {
    let set = ReplicaSet::builder().version(version).start().await;
    let set = set.expect("a server");
    let client = set.client().await.expect("a client");
    (set, client)
}

/// Runs a command that has to be taken.
pub async fn run(db: &Database, command: Document) {
    let ran = db.run_command(command.clone()).await;
    ran.unwrap_or_else(|error| panic!("{command}: {error}"));
}

/// Waits until the mirror is live.
pub async fn mirroring(mirror: &MirrorHandle) -> Progress {
    wait_for(mirror, "mirroring", |progress| {
        progress.phase == Phase::Mirroring
    })
    .await
}

/// Waits until the target holds everything the source holds now.
pub async fn caught_up(mirror: &MirrorHandle, source: &Client) -> Progress {
    let reply = source
        .database("admin")
        .run_command(doc! {"ping": 1})
        .await
        .expect("the source answers");
    let now = reply.get_timestamp("operationTime").expect("a replica set");
    wait_for(mirror, "caught up", |progress| {
        progress.consistent_at.is_some_and(|at| at >= now.into())
    })
    .await
}

/// Per collection the hash of all documents, without what is not data.
pub async fn hashes(db: &Database) -> Document {
    let reply = db.run_command(doc! {"dbHash": 1}).await.expect("dbHash");
    let mut hashes = reply.get_document("collections").expect("hashes").clone();
    hashes.remove("system.views");
    hashes
}

/// Options and indexes of every collection, as far as they shall be equal; in words, because
/// documents are also equal where the order of their fields is not, and that of an index's keys
/// counts.
pub async fn definitions(db: &Database) -> BTreeMap<String, String> {
    let sorted = |document: Document| -> Document {
        let fields: BTreeMap<String, Bson> = document.into_iter().collect();
        fields.into_iter().collect()
    };
    let mut all = BTreeMap::new();
    let cursor = db
        .run_cursor_command(doc! {"listCollections": 1})
        .await
        .expect("listCollections");
    let mut listed: Vec<Document> = cursor.try_collect().await.expect("listCollections");
    listed.sort_by_key(|document| document.get_str("name").unwrap_or_default().to_owned());
    for document in listed {
        let name = document.get_str("name").expect("a name").to_owned();
        if name.starts_with("system.") {
            continue;
        }
        let mut options = document
            .get_document("options")
            .cloned()
            .unwrap_or_default();
        // What is so anyway: a collMod that changes nothing makes the source list it, and is told in
        // an event that says nothing.
        for (name, default) in [
            ("validator", Bson::Document(doc! {})),
            ("validationLevel", "strict".into()),
            ("validationAction", "error".into()),
        ] {
            if options.get(name) == Some(&default) {
                options.remove(name);
            }
        }
        // What servers that are careful note of time series.
        let noted = options.get_document("storageEngine").is_ok_and(|it| {
            let engine = it.to_string();
            engine.contains("timeseriesBucketsMayHaveMixedSchemaData")
        });
        if noted {
            options.remove("storageEngine");
        }
        // Documented differences while mirroring: nothing expires, nothing is evicted.
        options.remove("expireAfterSeconds");
        if options.get_bool("capped").unwrap_or(false) {
            options.remove("size");
            options.remove("max");
        }
        let mut definition =
            doc! {"type": document.get("type").cloned(), "options": sorted(options)};
        if document.get_str("type").is_ok_and(|kind| kind != "view") {
            let cursor = db
                .run_cursor_command(doc! {"listIndexes": &name})
                .await
                .expect("listIndexes");
            let mut indexes: Vec<Document> = cursor.try_collect().await.expect("listIndexes");
            indexes.sort_by_key(|index| index.get_str("name").unwrap_or_default().to_owned());
            for index in &mut indexes {
                if index.get_bool("clustered").unwrap_or(false) {
                    index.remove("expireAfterSeconds");
                }
                if index.contains_key("expireAfterSeconds") {
                    index.insert("expireAfterSeconds", i32::MAX);
                }
            }
            let indexes: Vec<Document> = indexes.into_iter().map(sorted).collect();
            definition.insert("indexes", indexes);
        }
        all.insert(name, format!("{definition:?}"));
    }
    all
}

/// Proves both databases equal: hashes, options, indexes. Names the first different document.
pub async fn assert_equal(source: &Database, target: &Database) {
    assert_equal_within(source, target, |_| true).await;
}

/// As [`assert_equal`], where not all collections of the source take part.
pub async fn assert_equal_within(
    source: &Database,
    target: &Database,
    takes_part: impl Fn(&str) -> bool,
) {
    assert_equal_beside(source, target, takes_part, |_| false).await;
}

/// As [`assert_equal_within`], where the target holds others that are not looked at.
pub async fn assert_equal_beside(
    source: &Database,
    target: &Database,
    takes_part: impl Fn(&str) -> bool,
    is_other: impl Fn(&str) -> bool,
) {
    let part = |all: Document, is_in: &dyn Fn(&str) -> bool| -> Document {
        all.into_iter().filter(|(name, _)| is_in(name)).collect()
    };
    let left = part(hashes(source).await, &takes_part);
    let right = part(hashes(target).await, &|name| !is_other(name));
    if left != right {
        for name in left.keys() {
            if left.get(name) != right.get(name) {
                explain(source, target, name).await;
            }
        }
        panic!("databases differ:\nsource {left}\ntarget {right}");
    }
    // Unique indexes are enforced within moments after the mirror has caught up.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut left = definitions(source).await;
        left.retain(|name, _| takes_part(name));
        let mut right = definitions(target).await;
        right.retain(|name, _| !is_other(name));
        if left == right {
            break;
        }
        if tokio::time::Instant::now() > deadline {
            for name in left.keys().chain(right.keys()) {
                assert_eq!(left.get(name), right.get(name), "definition of {name}");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for name in raw::capped(source).await {
        if takes_part(&name) {
            // Their order is part of what they hold, and no hash shows it.
            let left = raw::read_as_they_lie(source, &name).await;
            let right = raw::read_as_they_lie(target, &name).await;
            assert!(left == right, "order of the documents of {name}");
        }
    }
}

/// Prints the first documents that differ.
async fn explain(source: &Database, target: &Database, name: &str) {
    let read = async |db: &Database| -> Vec<RawDocumentBuf> {
        db.collection::<RawDocumentBuf>(name)
            .find(doc! {})
            .sort(doc! {"_id": 1})
            .await
            .expect("find")
            .try_collect()
            .await
            .expect("find")
    };
    let (left, right) = (read(source).await, read(target).await);
    eprintln!("{name}: {} documents against {}", left.len(), right.len());
    for document in left
        .iter()
        .filter(|document| !right.contains(document))
        .take(3)
    {
        eprintln!("  source {document:?}");
    }
    for document in right
        .iter()
        .filter(|document| !left.contains(document))
        .take(3)
    {
        eprintln!("  target {document:?}");
    }
}

/// Inserts `count` orders of about a kilobyte.
pub async fn fill(db: &Database, collection: &str, from: i32, count: i32) {
    let orders = db.collection::<Document>(collection);
    for chunk in (from..from + count).collect::<Vec<_>>().chunks(1000) {
        let documents = chunk.iter().map(|n| order(*n));
        orders.insert_many(documents).await.expect("insert");
    }
}

/// One order.
pub fn order(n: i32) -> Document {
    doc! {
        "_id": n,
        "customer": format!("customer-{}", n % 977),
        "status": "new",
        "total": f64::from(n) * 1.25,
        "quantity": n % 17,
        "tags": ["a", "b", format!("t{}", n % 13)],
        "address": {"street": format!("street {n}"), "city": "city", "geo": {"x": n, "y": -n}},
        "note": "x".repeat(700),
        "nothing": Bson::Null,
    }
}

/// Renames a collection, over another one if there is one; both with their databases.
pub async fn rename(client: &Client, from: &str, to: &str) {
    let command = doc! {"renameCollection": from, "to": to, "dropTarget": true};
    run(&client.database("admin"), command).await;
}

/// Asks for a verification.
pub async fn ask_to_verify(
    mirror: &MirrorHandle,
) -> oneshot::Receiver<Result<VerificationResult, Refusal>> {
    let (done, result) = oneshot::channel();
    let request = Request::Verify { done };
    mirror.requests().send(request).await.unwrap();
    result
}

/// Has both sides compared.
pub async fn verify(mirror: &MirrorHandle) -> VerificationResult {
    let result = ask_to_verify(mirror).await;
    let result = tokio::time::timeout(PATIENCE, result).await;
    result
        .expect("in time")
        .expect("an answer")
        .expect("success")
}
