//! What cannot be mirrored is refused with a reason, before anything is written.

mod common;

use bson::doc;
use common::{config, mirroring, wait_for};
use mongodb::Client;
use mongomirror::engine::config::MirrorConfig;
use mongomirror::engine::connection::uri::ConnectionUri;
use mongomirror::engine::progress::Problem;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Standalone};

async fn problem_of(config: MirrorConfig) -> Problem {
    let mirror = MirrorHandle::start(config);
    let progress = wait_for(&mirror, "a problem", |progress| progress.problem.is_some()).await;
    mirror.stop().await;
    progress.problem.unwrap()
}

async fn databases(client: &Client) -> Vec<String> {
    let mut names = client.list_database_names().await.unwrap();
    names.retain(|name| !["admin", "config", "local"].contains(&name.as_str()));
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_targets_are_refused_and_nothing_is_written() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let insert = async |database: &str| {
        let collection = client.database(database).collection("c");
        collection.insert_one(doc! {"_id": 1}).await.unwrap();
    };
    insert("shop").await;
    insert("full").await;
    for (database, reason) in [
        ("admin", "TargetForbidden"),
        ("local", "TargetForbidden"),
        ("config", "TargetForbidden"),
        ("mongomirror", "TargetForbidden"),
        ("shop", "SameDatabase"),
        ("full", "TargetNotEmpty"),
    ] {
        let mut config = config(&set.uri(), &set.uri(), "shop");
        config.target.database = database.into();
        let problem = problem_of(config).await;
        assert_eq!(problem.reason, reason, "{}", problem.message);
        assert!(problem.needs_human);
        assert_eq!(databases(&client).await, ["full", "shop"], "{database}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_belongs_to_another_mirror_is_refused() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let first = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&first).await;
    let mut other = config(&set.uri(), &set.uri(), "other");
    other.target.database = "shop_backup".into();
    let problem = problem_of(other).await;
    assert_eq!(problem.reason, "TargetBusy");
    assert!(
        problem.message.contains("tests/shop"),
        "{}",
        problem.message
    );
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_server_is_refused_with_what_to_do() {
    let standalone = Standalone::builder().start().await.unwrap();
    let problem = problem_of(config(&standalone.uri(), &standalone.uri(), "shop")).await;
    assert_eq!(problem.reason, "NotReplicaSet");
    assert!(problem.message.contains("--replSet"), "{}", problem.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_and_missing_hosts_are_told_apart_without_credentials() {
    let set = ReplicaSet::builder().auth(true).start().await.unwrap();
    let wrong = set.uri_as("root", "canary-s3cret");
    let problem = problem_of(config(&wrong, &wrong, "shop")).await;
    assert_eq!(
        problem.reason, "AuthenticationFailed",
        "{}",
        problem.message
    );
    assert!(!problem.message.contains("canary"), "{}", problem.message);

    let nowhere =
        "mongodb://user:canary-s3cret@no-such-host.invalid:27017/?serverSelectionTimeoutMS=500";
    let mut missing = config(&set.uri(), &set.uri(), "shop");
    missing.source.uri = ConnectionUri::parse(nowhere).unwrap();
    let problem = problem_of(missing).await;
    assert_eq!(problem.reason, "SourceUnreachable", "{}", problem.message);
    assert!(!problem.message.contains("canary"), "{}", problem.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_roles_are_enough() {
    let set = ReplicaSet::builder().auth(true).start().await.unwrap();
    let root = set.client().await.unwrap();
    let shop = root.database("shop").collection("orders");
    shop.insert_one(doc! {"_id": 1}).await.unwrap();
    for kind in [
        doc! {"create": "paid", "viewOn": "orders", "pipeline": []},
        doc! {"create": "readings", "timeseries": {"timeField": "t"}},
    ] {
        root.database("shop").run_command(kind).await.unwrap();
    }
    let role = |role: &str, db: &str| doc! {"role": role, "db": db}.into();
    set.create_user("reader", "canary-r", [role("read", "shop")])
        .await
        .unwrap();
    let target_roles = [
        role("readWrite", "shop_backup"),
        role("dbAdmin", "shop_backup"),
        role("readWrite", "mongomirror"),
    ];
    set.create_user("writer", "canary-w", target_roles)
        .await
        .unwrap();
    let mirror = MirrorHandle::start(config(
        &set.uri_as("reader", "canary-r"),
        &set.uri_as("writer", "canary-w"),
        "shop",
    ));
    mirroring(&mirror).await;
    shop.insert_one(doc! {"_id": 2}).await.unwrap();
    common::caught_up(&mirror, &root).await;
    let copied = root
        .database("shop_backup")
        .collection::<bson::Document>("orders");
    assert_eq!(copied.count_documents(doc! {}).await.unwrap(), 2);
    let last = mirror.stop().await;
    let left_out: Vec<_> = last
        .unsupported
        .iter()
        .map(|left| left.name.as_str())
        .collect();
    assert_eq!(left_out, ["readings"]);
}

/// What the shell reads, as JSON: quotes around the names, and no comma behind the last one.
fn as_json(shell: &str) -> String {
    let mut json = String::new();
    let mut name = String::new();
    let mut in_text = false;
    for character in shell.chars() {
        in_text ^= character == '"';
        if character.is_ascii_alphabetic() && !in_text {
            name.push(character);
            continue;
        }
        if !name.is_empty() {
            json.push_str(&format!("\"{name}\""));
            name.clear();
        }
        if matches!(character, ']' | '}') {
            json.truncate(json.trim_end().trim_end_matches(',').len());
        }
        json.push(character);
    }
    json
}

/// What docs/limits.md has people grant for the system collections of one time series and scripts.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_roles_for_system_collections_are_enough() {
    let set = ReplicaSet::builder().auth(true).start().await.unwrap();
    let root = set.client().await.unwrap();
    let (source, target) = (root.database("ordersDB"), root.database("ordersDB_backup"));
    let recipe = std::fs::read_to_string("docs/limits.md").unwrap();
    for command in recipe.split("createRole(").skip(1).take(2) {
        let (role, _) = command.split_once(")\n").expect("the end of the command");
        let role: serde_json::Value = serde_json::from_str(&as_json(role)).expect(role);
        let privileges = bson::serialize_to_bson(&role["privileges"]).unwrap();
        let name = role["role"].as_str().unwrap();
        set.admin(doc! {"createRole": name, "roles": [], "privileges": privileges})
            .await
            .unwrap();
    }
    let role = |role: &str, db: &str| doc! {"role": role, "db": db}.into();
    let reads = [role("read", "ordersDB"), role("mongomirrorSource", "admin")];
    set.create_user("reader", "canary-r", reads).await.unwrap();
    let writes = [
        role("readWrite", "ordersDB_backup"),
        role("dbAdmin", "ordersDB_backup"),
        role("readWrite", "mongomirror"),
        role("mongomirrorTarget", "admin"),
    ];
    set.create_user("writer", "canary-w", writes).await.unwrap();
    let series = doc! {"timeField": "at", "metaField": "m"};
    let steps = |m: i32| {
        [
            doc! {"insert": "readings", "documents": [{"at": bson::DateTime::now(), "m": m}]},
            doc! {"insert": "system.js", "documents": [{"_id": m, "value": 1}]},
        ]
    };
    source
        .run_command(doc! {"create": "readings", "timeseries": series})
        .await
        .unwrap();
    for step in steps(1) {
        source.run_command(step).await.unwrap();
    }
    let (from, to) = (
        set.uri_as("reader", "canary-r"),
        set.uri_as("writer", "canary-w"),
    );
    let mirror = MirrorHandle::start(config(&from, &to, "ordersDB"));
    mirroring(&mirror).await;
    let more = [
        doc! {"createIndexes": "readings", "indexes": [{"key": {"m": 1}, "name": "m"}]},
        doc! {"collMod": "readings", "timeseries": {"granularity": "minutes"}},
        doc! {"dropIndexes": "readings", "index": "m"},
        doc! {"update": "system.js", "updates": [{"q": {"_id": 1}, "u": {"$set": {"value": 2}}}]},
        doc! {"delete": "readings", "deletes": [{"q": {"m": 1}, "limit": 0}]},
    ];
    for step in steps(2).into_iter().chain(more) {
        source.run_command(step).await.unwrap();
    }
    common::caught_up(&mirror, &root).await;
    common::assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    assert!(last.unsupported.is_empty(), "{:?}", last.unsupported);
}

/// Without the right to read its id, a source is known by its name.
#[tokio::test(flavor = "multi_thread")]
async fn another_source_of_the_same_name_is_refused() {
    let start = async |collection: &str| {
        let builder = ReplicaSet::builder().auth(true).name("same");
        let set = builder.start().await.unwrap();
        let read = doc! {"role": "read", "db": "shop"};
        set.create_user("reader", "canary-r", [read.into()])
            .await
            .unwrap();
        let shop = set.client().await.unwrap().database("shop");
        common::fill(&shop, collection, 0, 10).await;
        set
    };
    let (first, second) = (start("orders").await, start("others").await);
    let target = ReplicaSet::builder().start().await.unwrap();
    let of = |set: &ReplicaSet| config(&set.uri_as("reader", "canary-r"), &target.uri(), "shop");
    let mirror = MirrorHandle::start(of(&first));
    mirroring(&mirror).await;
    mirror.stop().await;
    let problem = problem_of(of(&second)).await;
    assert_eq!(problem.reason, "SourceReplaced", "{}", problem.message);
    assert!(problem.needs_human);
    let copy = target.client().await.unwrap().database("shop_backup");
    assert_eq!(copy.list_collection_names().await.unwrap(), ["orders"]);
    let mirror = MirrorHandle::start(of(&first));
    mirroring(&mirror).await;
    mirror.stop().await;
}
