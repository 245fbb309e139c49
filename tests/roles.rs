//! `mongomirror roles`: users with exactly what it prints are enough, for everything.

mod common;

use std::process::Command;

use bson::{Document, doc};
use common::{assert_equal, caught_up, config, fill, mirroring, run, verify, wait_for};
use mongodb::Database;
use mongomirror::engine::finish::{End, finish};
use mongomirror::engine::headroom::Headroom;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

fn roles(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mongomirror"));
    let output = command.arg("roles").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the roles that are printed as JSON; returns their names.
async fn create(set: &ReplicaSet, arguments: &[&str]) -> Vec<String> {
    let text = roles(&[arguments, &["--json"]].concat());
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut names = Vec::new();
    for role in all {
        let role = bson::serialize_to_document(&role).unwrap();
        names.push(role.get_str("createRole").unwrap().to_owned());
        set.admin(role).await.unwrap();
    }
    names
}

async fn rename(db: &Database, from: &str, to: &str) {
    let named = |collection: &str| format!("{}.{collection}", db.name());
    common::rename(db.client(), &named(from), &named(to)).await;
}

/// Something of every kind that a mirror does on its target.
async fn changes(source: &Database, n: i32) {
    let at = bson::DateTime::now();
    fill(source, "orders", 1000 * n, 20).await;
    let orders = source.collection::<Document>("orders");
    let change = doc! {"$set": {"n": n}, "$push": {"list": n}};
    orders.update_many(doc! {}, change).await.unwrap();
    orders.delete_one(doc! {"_id": 1000 * n}).await.unwrap();
    let key = doc! {format!("f{n}"): 1};
    for command in [
        doc! {"insert": "readings", "documents": [{"at": at, "m": n}]},
        doc! {"insert": "log", "documents": [{"_id": n}]},
        doc! {"insert": "system.js", "documents": [{"_id": n, "value": 1}]},
        doc! {"create": format!("made{n}"), "viewOn": "orders", "pipeline": []},
        doc! {"create": format!("other{n}"), "clusteredIndex": {"key": {"_id": 1}, "unique": true}},
        doc! {"convertToCapped": format!("other{n}"), "size": 4096},
        doc! {"createIndexes": "orders", "indexes": [{"key": key, "name": "f", "unique": false}]},
        doc! {"collMod": "orders", "index": {"name": "f", "hidden": true}},
        doc! {"dropIndexes": "orders", "index": "f"},
        doc! {"collMod": "orders", "validator": {"_id": {"$ne": -n}}},
        doc! {"createIndexes": "readings", "indexes": [{"key": {"m": 1}, "name": "m"}]},
        doc! {"dropIndexes": "readings", "index": "m"},
        doc! {"create": format!("gone{n}")},
        doc! {"drop": format!("gone{n}")},
        doc! {"create": format!("from{n}")},
    ] {
        run(source, command).await;
    }
    rename(source, &format!("from{n}"), "to").await;
}

async fn exactly_these_roles_are_enough(version: Version) {
    let set = || ReplicaSet::builder().version(version).auth(true).start();
    let (from, to) = tokio::try_join!(set(), set()).unwrap();
    let (root, copies) = (from.client().await.unwrap(), to.client().await.unwrap());
    let (source, target) = (root.database("shop"), copies.database("shop_backup"));
    let series = ["--time-series", "readings"];
    let notes = ["--state-database", "notes"];
    let reads = create(&from, &[&["--source", "shop"], &series[..]].concat()).await;
    let writes = create(
        &to,
        &[&["--target", "shop_backup"], &series[..], &notes].concat(),
    )
    .await;
    let of = |names: &[String]| {
        names
            .iter()
            .map(|name| name.as_str().into())
            .collect::<Vec<_>>()
    };
    from.create_user("reader", "canary-r", of(&reads))
        .await
        .unwrap();
    to.create_user("writer", "canary-w", of(&writes))
        .await
        .unwrap();
    for command in [
        doc! {"create": "readings", "timeseries": {"timeField": "at", "metaField": "m"}},
        doc! {"create": "log", "capped": true, "size": 65536},
        doc! {"createIndexes": "orders", "indexes": [
            {"key": {"u": 1}, "name": "u", "unique": true, "sparse": true},
            {"key": {"t": 1}, "name": "t", "expireAfterSeconds": 1_000_000},
        ]},
    ] {
        run(&source, command).await;
    }
    changes(&source, 1).await;
    let mut config = config(
        &from.uri_as("reader", "canary-r"),
        &to.uri_as("writer", "canary-w"),
        "shop",
    );
    config.state_database = "notes".into();
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    changes(&source, 2).await;
    caught_up(&mirror, &root).await;
    let result = verify(&mirror).await;
    assert!(result.is_equal() && result.differences == 0, "{result:?}");
    assert_equal(&source, &target).await;
    // A source that has just begun has no rate to tell it from, until the next measurement.
    wait_for(&mirror, "the oplog measured", |now| {
        matches!(now.headroom, Some(Headroom::Measured { .. }))
    })
    .await;
    mirror.stop().await;

    // It goes on, and what somebody has meddled with is put right.
    let orders = target.collection::<Document>("orders");
    orders.delete_one(doc! {"_id": 1001}).await.unwrap();
    run(&target, doc! {"create": "stranger"}).await;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    let result = verify(&mirror).await;
    assert!(result.differences > 0 && result.is_equal(), "{result:?}");
    changes(&source, 3).await;
    caught_up(&mirror, &root).await;
    assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    assert!(last.unsupported.is_empty(), "{:?}", last.unsupported);
    assert_eq!(last.totals.retries, 0);
    finish(&config, End::Arm).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_these_roles_are_enough_on_6_0_5() {
    exactly_these_roles_are_enough(Version::V6_0_5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_these_roles_are_enough_on_6_0_27() {
    exactly_these_roles_are_enough(Version::V6_0_27).await;
}

#[test]
fn what_is_printed_for_people_holds_the_same_and_mistakes_are_explained() {
    let text = roles(&["--source", "shop", "--target", "shop_backup"]);
    for part in [
        "// On the source.",
        "// On the target.",
        "createRole: \"mongomirror-target-shop_backup\"",
        "passwordPrompt()",
        r#"actions: ["find","changeStream","listCollections","listIndexes","collStats"]"#,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for wrong in [&[][..], &["--source", "a.b"], &["--target", ""]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mongomirror"));
        let output = command.arg("roles").args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}
