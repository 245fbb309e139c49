//! `mongomirror roles`: users with exactly what it prints are enough, for everything.

mod common;

use std::process::Command;

use bson::{Document, doc};
use common::{
    PATIENCE, ask_to_verify, assert_equal, caught_up, config, definitions, fill, hashes, mirroring,
    run, verify, wait_for,
};
use futures::StreamExt;
use mongodb::Database;
use mongomirror::engine::finish::{End, finish};
use mongomirror::engine::headroom::Headroom;
use mongomirror::engine::progress::Phase;
use mongomirror::engine::request::Request;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};
use tokio::sync::oneshot;

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

/// Collections of every kind.
async fn prepare(source: &Database) {
    for command in [
        doc! {"create": "readings", "timeseries": {"timeField": "at", "metaField": "m"}},
        doc! {"create": "log", "capped": true, "size": 65536},
        doc! {"createIndexes": "orders", "indexes": [
            {"key": {"u": 1}, "name": "u", "unique": true, "sparse": true},
            {"key": {"t": 1}, "name": "t", "expireAfterSeconds": 1_000_000},
        ]},
    ] {
        run(source, command).await;
    }
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
        doc! {"collMod": "readings", "index": {"name": "m", "hidden": true}},
        doc! {"dropIndexes": "readings", "index": "m"},
        doc! {"createIndexes": "system.js", "indexes": [{"key": {"value": 1}, "name": "v"}]},
        doc! {"dropIndexes": "system.js", "index": "v"},
        doc! {"createIndexes": "system.js", "indexes": [
            {"key": {"t": 1}, "name": "t", "expireAfterSeconds": 1_000_000},
        ]},
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
    prepare(&source).await;
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

/// Which of the two roles, which of its privileges, and which of that one's actions.
type Place = (usize, usize, usize);

/// The roles of a mirror of this database, without one action.
fn without(database: &str, place: Option<Place>) -> (Vec<Document>, String) {
    let target = format!("{database}_backup");
    let state = format!("{database}_notes");
    let text = roles(&[
        "--source",
        database,
        "--target",
        &target,
        "--state-database",
        &state,
        "--time-series",
        "readings",
        "--json",
    ]);
    let both: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let both = both
        .iter()
        .map(|role| bson::serialize_to_document(role).unwrap());
    let mut both: Vec<Document> = both.collect();
    let mut left_out = String::new();
    if let Some((role, privilege, action)) = place {
        let privileges = both[role].get_array_mut("privileges").unwrap();
        let privilege = privileges[privilege].as_document_mut().unwrap();
        let action = privilege.get_array_mut("actions").unwrap().remove(action);
        left_out = format!(
            "{action} on {}",
            privilege.get_document("resource").unwrap()
        );
        if privilege.get_array("actions").unwrap().is_empty() {
            privileges.retain(|it| {
                !it.as_document()
                    .unwrap()
                    .get_array("actions")
                    .unwrap()
                    .is_empty()
            });
        }
    }
    (both, left_out)
}

/// All places of the printed roles.
fn places() -> Vec<Place> {
    let (both, _) = without("shop", None);
    let mut places = Vec::new();
    for (role, document) in both.iter().enumerate() {
        for (n, privilege) in document.get_array("privileges").unwrap().iter().enumerate() {
            let actions = privilege
                .as_document()
                .unwrap()
                .get_array("actions")
                .unwrap();
            places.extend((0..actions.len()).map(|action| (role, n, action)));
        }
    }
    places
}

/// What a mirror of these roles complains about, or lacks; `None` if all is as it should be.
async fn lacks(from: &ReplicaSet, to: &ReplicaSet, n: usize, both: &[Document]) -> Option<String> {
    let database = format!("shop{n}");
    let mut uris = Vec::new();
    for (set, role) in [from, to].into_iter().zip(both) {
        set.admin(role.clone()).await.unwrap();
        let user = format!("user{n}");
        let own = role.get_str("createRole").unwrap().to_owned();
        set.create_user(&user, "canary-n", [own.into()])
            .await
            .unwrap();
        uris.push(set.uri_as(&user, "canary-n"));
    }
    let (root, copies) = (from.client().await.unwrap(), to.client().await.unwrap());
    let source = root.database(&database);
    let target = copies.database(&format!("{database}_backup"));
    prepare(&source).await;
    changes(&source, 1).await;
    let mut config = config(&uris[0], &uris[1], &database);
    config.state_database = format!("{database}_notes");
    let mirror = MirrorHandle::start(config.clone());
    let mut progress = mirror.progress();
    // Whatever goes wrong first ends the trial; what does not go wrong goes on to its end.
    let mut complains = mirror.progress();
    let complaint = async {
        let now = complains.wait_for(|now| {
            let unmeasured = match &now.headroom {
                Some(Headroom::Unknown { why }) => why.contains("may not"),
                _ => false,
            };
            now.problem.is_some() || !now.unsupported.is_empty() || unmeasured
        });
        let now = now.await.unwrap().clone();
        let problem = now.problem.map(|it| it.message);
        format!("{problem:?} {:?} {:?}", now.unsupported, now.headroom)
    };
    let life = async {
        progress
            .wait_for(|now| now.phase == Phase::Mirroring)
            .await
            .unwrap();
        changes(&source, 2).await;
        caught_up(&mirror, &root).await;
        // What is put right below is not to be found by the one that follows the copy.
        if let Err(refusal) = ask_to_verify(&mirror).await.await.unwrap() {
            return Some(format!("{refusal:?}"));
        }
        let orders = target.collection::<Document>("orders");
        orders.delete_one(doc! {"_id": 1001}).await.unwrap();
        run(&target, doc! {"create": "stranger"}).await;
        let index = |collection: &str, order: i32| {
            let index = doc! {"key": {"w": order}, "name": "w"};
            doc! {"createIndexes": collection, "indexes": [index]}
        };
        for strange in [
            doc! {"collMod": "orders", "validator": {}},
            index("readings", 1),
            index("system.js", 1),
        ] {
            run(&target, strange).await;
        }
        match ask_to_verify(&mirror).await.await.unwrap() {
            Ok(result) if result.differences > 0 && result.is_equal() => {}
            other => return Some(format!("{other:?}")),
        }
        let differ = async || {
            hashes(&source).await != hashes(&target).await
                || definitions(&source).await != definitions(&target).await
        };
        if differ().await {
            return Some("they differ when all is compared".into());
        }
        // Another one of this name is in the way.
        run(&source, index("system.js", -1)).await;
        caught_up(&mirror, &root).await;
        let (done, planned) = oneshot::channel();
        mirror
            .requests()
            .send(Request::Resync { done })
            .await
            .unwrap();
        planned.await.unwrap().unwrap();
        caught_up(&mirror, &root).await;
        rename(&source, "system.js", "scripts").await;
        changes(&source, 3).await;
        caught_up(&mirror, &root).await;
        if differ().await {
            return Some("in the end they differ".into());
        }
        let measured =
            progress.wait_for(|now| matches!(now.headroom, Some(Headroom::Measured { .. })));
        let now = measured.await.unwrap().clone();
        let estimated = now.initial_sync.is_some_and(|sync| sync.bytes_total > 0);
        let checkpoints = copies
            .database(&config.state_database)
            .collection::<Document>("checkpoints");
        let checkpoint = checkpoints.find_one(doc! {}).await.unwrap().unwrap();
        let certain = checkpoint.get_str("source").unwrap().contains('/');
        (!estimated || !certain).then(|| format!("estimated {estimated}, certain {certain}"))
    };
    let found = tokio::select! {
        complaint = complaint => Some(complaint),
        found = tokio::time::timeout(PATIENCE, life) => found.unwrap_or(Some("it hangs".into())),
    };
    mirror.stop().await;
    if found.is_some() {
        return found;
    }
    finish(&config, End::Arm)
        .await
        .err()
        .map(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_action_of_the_roles_could_be_left_out() {
    let set = || ReplicaSet::builder().auth(true).start();
    let (from, to) = tokio::try_join!(set(), set()).unwrap();
    let places: Vec<_> = std::iter::once(None)
        .chain(places().into_iter().map(Some))
        .collect();
    let trials = places.into_iter().enumerate().map(|(n, place)| {
        let (from, to) = (&from, &to);
        async move {
            let (both, left_out) = without(&format!("shop{n}"), place);
            let lacks = lacks(from, to, n, &both).await;
            eprintln!("without {left_out}: {lacks:?}");
            // Those of ordinary collections are told by name, before anything is written.
            let action = left_out.split('"').nth(1).unwrap_or_default();
            if left_out.contains(r#""collection": """#) {
                let told = lacks.clone().unwrap_or_default();
                assert!(told.contains("may not") && told.contains(action), "{told}");
            }
            // With all of them nothing is missing.
            (lacks.is_some() == left_out.is_empty()).then_some(left_out)
        }
    });
    let wrong: Vec<_> = futures::stream::iter(trials)
        .buffer_unordered(8)
        .collect()
        .await;
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "nobody misses {wrong:?}");
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
