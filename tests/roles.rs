//! `mongomirror roles`: users with exactly what it prints are enough, for everything.

mod common;

use std::process::Command;
use std::time::Duration;

use bson::{Bson, Document, doc};
use common::faults::has_problem;
use common::oplog::roll_over;
use common::refused::{arrays, noted, strangers_index, verified};
use common::workload::{self, Workload};
use common::{
    PATIENCE, ask_to_verify, assert_equal, assert_equal_within, caught_up, config, definitions,
    eventually, fill, fresh_seed, hashes, mirroring, run, verify, wait_for,
};
use futures::{StreamExt, TryStreamExt};
use mongodb::{Client, Database};
use mongomirror::engine::config::{
    ApplyMode, MirrorConfig, OnDeselected, OnExistingData, ReadFrom,
};
use mongomirror::engine::finish::{End, finish};
use mongomirror::engine::headroom::Headroom;
use mongomirror::engine::progress::{Phase, Progress};
use mongomirror::engine::request::{Request, ask};
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};
use tokio::sync::oneshot;

fn roles(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mongomirror"));
    let output = command.arg("roles").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The roles of a mirror between these databases, on the source and on the target.
fn printed_for(source: &str, target: &str, more: &[&str]) -> Vec<Document> {
    let both = ["--source", source, "--target", target];
    let series = ["--time-series", "readings", "--json"];
    let text = roles(&[&both[..], &series, more].concat());
    let both: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let both = both.iter().map(bson::serialize_to_document);
    both.collect::<Result<_, _>>().unwrap()
}

/// The roles of a mirror of this database.
fn printed(database: &str, more: &[&str]) -> Vec<Document> {
    printed_for(database, &format!("{database}_backup"), more)
}

/// A mirror whose users have these roles, and no others.
async fn granted(
    from: &ReplicaSet,
    to: &ReplicaSet,
    database: &str,
    both: &[Document],
) -> MirrorConfig {
    let mut uris = Vec::new();
    for (set, role) in [from, to].into_iter().zip(both) {
        set.admin(role.clone()).await.unwrap();
        let name = role.get_str("createRole").unwrap();
        set.create_user(name, "canary-n", [name.into()])
            .await
            .unwrap();
        uris.push(set.uri_as(name, "canary-n"));
    }
    config(&uris[0], &uris[1], database)
}

/// What servers log when somebody may not do something.
const AUTHORIZATION_FAILED: i64 = 20_436;

/// The servers have refused these commands for want of a privilege, and no others.
fn assert_refused_only(set: &ReplicaSet, known: &[&str]) {
    let mut failed = Vec::new();
    for node in set.nodes() {
        let log = std::fs::read_to_string(node.log_path()).unwrap();
        let lines = log.lines().filter_map(|it| serde_json::from_str(it).ok());
        let lines = lines.filter(|it: &serde_json::Value| it["id"] == AUTHORIZATION_FAILED);
        failed.extend(lines.map(|it| it["attr"]["error"]["errmsg"].as_str().unwrap().to_owned()));
    }
    // Of clients that are about to leave, and never said who they are.
    failed.retain(|what| !what.contains("endSessions"));
    for what in &failed {
        assert!(known.iter().any(|it| what.contains(it)), "{what}");
    }
    for it in known {
        assert!(
            failed.iter().any(|what| what.contains(it)),
            "{it}: {failed:?}"
        );
    }
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
    let both = printed("shop", &["--state-database", "notes"]);
    let mut config = granted(&from, &to, "shop", &both).await;
    config.state_database = "notes".into();
    prepare(&source).await;
    changes(&source, 1).await;
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
    assert_refused_only(&from, &[]);
    assert_refused_only(&to, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_these_roles_are_enough_on_6_0_5() {
    exactly_these_roles_are_enough(Version::V6_0_5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_these_roles_are_enough_on_6_0_27() {
    exactly_these_roles_are_enough(Version::V6_0_27).await;
}

/// Users as `granted`, on servers on which every kind of mirror runs.
struct Ground {
    from: ReplicaSet,
    to: ReplicaSet,
    root: Client,
    copies: Client,
}

impl Ground {
    /// A mirror with exactly the printed roles, and its two databases.
    async fn mirror(&self, database: &str) -> (MirrorConfig, Database, Database) {
        let both = printed(database, &[]);
        let config = granted(&self.from, &self.to, database, &both).await;
        let source = self.root.database(database);
        let target = self.copies.database(&config.target.database);
        prepare(&source).await;
        changes(&source, 1).await;
        (config, source, target)
    }

    /// The target goes, and all that is remembered of it.
    async fn delete(&self, config: &MirrorConfig, target: &Database) {
        assert!(finish(config, End::Delete).await.unwrap());
        let mut left = target.list_collection_names().await.unwrap();
        left.retain(|name| name != "system.views");
        assert_eq!(left, [""; 0]);
        let state = target.client().database(&config.state_database);
        let checkpoints = state.collection::<Document>("checkpoints");
        let own = checkpoints.find_one(doc! {"_id": target.name()});
        assert_eq!(own.await.unwrap(), None);
    }
}

async fn stop(mirror: MirrorHandle) -> Progress {
    let last = mirror.stop().await;
    assert!(last.unsupported.is_empty(), "{:?}", last.unsupported);
    assert_eq!(last.problem, None);
    last
}

/// Something of every kind that is in the way.
async fn existing(target: &Database) {
    fill(target, "orders", 995, 20).await;
    let time = bson::DateTime::now();
    let value = doc! {"value": 1};
    for command in [
        doc! {"createIndexes": "orders", "indexes": [
            {"key": {"gone": 1}, "name": "gone", "unique": true, "sparse": true},
            {"key": {"u": -1}, "name": "u"},
            {"key": {"t": 1}, "name": "t", "expireAfterSeconds": 2_000_000},
        ]},
        doc! {"collMod": "orders", "validator": {"theirs": 1}, "validationLevel": "moderate"},
        doc! {"create": "readings", "timeseries": {"timeField": "time"}},
        doc! {"insert": "readings", "documents": [{"time": time}]},
        doc! {"create": "log", "capped": true, "size": 4096, "max": 5},
        doc! {"insert": "log", "documents": [{"_id": "theirs"}]},
        doc! {"insert": "system.js", "documents": [{"_id": "theirs", "value": 1}]},
        doc! {"createIndexes": "system.js", "indexes": [{"key": &value, "name": "theirs"}]},
        doc! {"create": "other1", "capped": true, "size": 4096},
        // Of whose buckets nothing is granted.
        doc! {"create": "theirs", "timeseries": {"timeField": "time"}},
        doc! {"insert": "theirs", "documents": [{"time": time}]},
        doc! {"create": "made1", "viewOn": "theirs", "pipeline": []},
        doc! {"create": "seen", "viewOn": "theirs", "pipeline": []},
    ] {
        run(target, command).await;
    }
}

/// What is withheld on a target while it is mirrored.
async fn withheld(db: &Database) -> (Option<u64>, Option<Duration>) {
    let filter = doc! {"name": "log"};
    let mut log = db.list_collections().filter(filter).await.unwrap();
    let log = log.try_next().await.unwrap().unwrap();
    let orders = db.collection::<Document>("orders");
    let indexes = orders.list_indexes().await.unwrap();
    let indexes: Vec<_> = indexes.try_collect().await.unwrap();
    let mut options = indexes.into_iter().filter_map(|index| index.options);
    let expires = options.find(|it| it.name.as_deref() == Some("t")).unwrap();
    (log.options.size, expires.expire_after)
}

/// A target that is not empty; its mirror ends, goes on, with fewer collections, and is deleted.
async fn begins_over_what_is_there(ground: &Ground, database: &str, how: OnExistingData) {
    let (mut config, source, target) = ground.mirror(database).await;
    existing(&target).await;
    config.on_existing_data = how;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    assert_eq!(verify(&mirror).await.differences, 0);
    let series = doc! {"create": "theirs", "timeseries": {"timeField": "time"}};
    run(&target, series).await;
    let result = verify(&mirror).await;
    assert!(result.differences == 1 && result.is_equal(), "{result:?}");
    changes(&source, 2).await;
    caught_up(&mirror, &ground.root).await;
    assert_equal(&source, &target).await;
    stop(mirror).await;
    assert_ne!(withheld(&source).await, withheld(&target).await);
    assert!(finish(&config, End::Arm).await.unwrap());
    assert_eq!(withheld(&source).await, withheld(&target).await);

    let fewer = ["readings", "system.js", "log", "made1"];
    config.selection = Selection::new(Vec::new(), fewer.map(str::to_owned).into()).unwrap();
    config.on_deselected = OnDeselected::Drop;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    changes(&source, 3).await;
    caught_up(&mirror, &ground.root).await;
    let stays = |name: &str| !fewer.contains(&name.trim_start_matches("system.buckets."));
    assert_equal_within(&source, &target, stays).await;
    stop(mirror).await;
    ground.delete(&config, &target).await;
}

/// All lanes, and whatever is read from a secondary.
async fn is_parallel_and_reads_secondaries(ground: &Ground, database: &str) {
    let (mut config, source, target) = ground.mirror(database).await;
    let seed = fresh_seed();
    workload::fill(&ground.root, database, seed, 200).await;
    config.apply_mode = ApplyMode::Parallel;
    config.read_from = ReadFrom::Secondary;
    config.limits.lanes_from = 2;
    config.limits.range_bytes = 20_000;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    let workload = Workload::start(&ground.root, database, seed, 2, true);
    let state = ground.copies.database(&config.state_database);
    let fences = state.collection::<Document>("fences");
    let used = doc! {"_id.t": target.name(), "batches": {"$gt": 0}};
    eventually("all lanes are used", async || {
        let count = fences.count_documents(used.clone()).await.unwrap();
        (count == 4).then_some(())
    })
    .await;
    workload.stop().await;
    changes(&source, 2).await;
    caught_up(&mirror, &ground.root).await;
    assert_equal(&source, &target).await;
    assert_eq!(verify(&mirror).await.differences, 0);
    stop(mirror).await;
    ground.delete(&config, &target).await;
}

/// Documents that the target refuses for a while, and a user who asks for some.
async fn refuses(ground: &Ground, database: &str) -> (MirrorConfig, Database, Database) {
    let (config, source, target) = ground.mirror(database).await;
    let mirror = MirrorHandle::start(config.clone());
    verified(&mirror).await;
    for name in ["orders", "system.js"] {
        strangers_index(&target, name).await;
        let some = source.collection::<Document>(name);
        some.insert_many([arrays(5), doc! {"_id": 6}])
            .await
            .unwrap();
    }
    wait_for(&mirror, "noted", |now| now.quarantine.len() == 2).await;
    stop(mirror).await;
    assert_eq!(noted(&ground.copies).await, 2);
    let mirror = MirrorHandle::start(config.clone());
    wait_for(&mirror, "remembered", |now| {
        now.phase == Phase::Mirroring && now.quarantine.len() == 2
    })
    .await;
    let orders = target.collection::<Document>("orders");
    orders.delete_one(doc! {"_id": 6}).await.unwrap();
    let requests = mirror.requests();
    let synced = ask(&requests, |done| Request::Sync {
        collection: "orders".into(),
        filter: doc! {"_id": {"$lt": 10}},
        done,
    });
    let synced = synced.await.unwrap();
    assert_eq!((synced.written, synced.refused), (1, 1), "{synced:?}");
    for name in ["orders", "system.js"] {
        let some = target.collection::<Document>(name);
        some.drop_index("a_1_b_1").await.unwrap();
    }
    wait_for(&mirror, "healed", |now| now.quarantine.is_empty()).await;
    caught_up(&mirror, &ground.root).await;
    assert_equal(&source, &target).await;
    assert_eq!(noted(&ground.copies).await, 0);
    stop(mirror).await;
    (config, source, target)
}

/// Both databases on one deployment, and both roles in the hands of one user.
async fn is_alone(ground: &Ground, database: &str) {
    let mut names = Vec::new();
    for role in printed(database, &[]) {
        names.push(role.get_str("createRole").unwrap().into());
        ground.from.admin(role).await.unwrap();
    }
    let created = ground.from.create_user("both", "canary-b", names);
    created.await.unwrap();
    let uri = ground.from.uri_as("both", "canary-b");
    let config = config(&uri, &uri, database);
    let source = ground.root.database(database);
    let target = ground.root.database(&config.target.database);
    prepare(&source).await;
    changes(&source, 1).await;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    changes(&source, 2).await;
    caught_up(&mirror, &ground.root).await;
    assert_equal(&source, &target).await;
    stop(mirror).await;
    ground.delete(&config, &target).await;
}

/// With the database of notes that is the usual one.
#[tokio::test(flavor = "multi_thread")]
async fn exactly_these_roles_are_enough_for_all_that_a_spec_can_ask_for() {
    let from = ReplicaSet::builder()
        .nodes(2)
        .auth(true)
        .oplog_mb(10)
        .arg("--syncdelay", "2");
    let to = ReplicaSet::builder().auth(true);
    let (from, to) = tokio::try_join!(from.start(), to.start()).unwrap();
    from.wait_until_settled().await.unwrap();
    let ground = Ground {
        root: from.client().await.unwrap(),
        copies: to.client().await.unwrap(),
        from,
        to,
    };
    let ((), (), (), (), forgotten) = tokio::join!(
        begins_over_what_is_there(&ground, "replaced", OnExistingData::Replace),
        begins_over_what_is_there(&ground, "adopted", OnExistingData::Adopt),
        is_parallel_and_reads_secondaries(&ground, "parallel"),
        is_alone(&ground, "alone"),
        refuses(&ground, "refused"),
    );
    let (config, source, target) = forgotten;
    changes(&source, 2).await;
    roll_over(&ground.root).await;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    changes(&source, 3).await;
    caught_up(&mirror, &ground.root).await;
    assert_equal(&source, &target).await;
    assert_eq!(stop(mirror).await.totals.resyncs, 1);
    ground.delete(&config, &target).await;
    assert_refused_only(&ground.from, &[]);
    assert_refused_only(&ground.to, &["listIndexes: \"system.buckets.theirs\""]);
}

/// Which of the two roles, and one action of it by itself.
type Action = (usize, Document);

fn action(side: usize, resource: &Document, action: &str) -> Action {
    (side, doc! {"resource": resource, "actions": [action]})
}

/// What nothing but the detection of rings needs, of a mirror whose notes are in this database.
fn only_for_rings(notes: &str) -> [Action; 3] {
    let looked_up_in = |database| {
        let checkpoints = doc! {"db": database, "collection": "checkpoints"};
        action(0, &checkpoints, "find")
    };
    let id = action(1, &doc! {"cluster": true}, "replSetGetConfig");
    [looked_up_in(notes), looked_up_in("mongomirror"), id]
}

fn privileges(role: &mut Document) -> Vec<&mut Document> {
    let all = role.get_array_mut("privileges").unwrap().iter_mut();
    all.map(|it| it.as_document_mut().unwrap()).collect()
}

/// All actions of both roles.
fn actions(mut both: Vec<Document>) -> Vec<Action> {
    let mut all = Vec::new();
    for (side, role) in both.iter_mut().enumerate() {
        for privilege in privileges(role) {
            let resource = privilege.get_document("resource").unwrap();
            for name in privilege.get_array("actions").unwrap() {
                all.push(action(side, resource, name.as_str().unwrap()));
            }
        }
    }
    all
}

/// The roles without one action.
fn without(mut both: Vec<Document>, (side, action): &Action) -> Vec<Document> {
    let left_out = &action.get_array("actions").unwrap()[0];
    for privilege in privileges(&mut both[*side]) {
        if privilege.get("resource") == action.get("resource") {
            let actions = privilege.get_array_mut("actions").unwrap();
            actions.retain(|it| it != left_out);
        }
    }
    let all = both[*side].get_array_mut("privileges").unwrap();
    let empty = |it: &Bson| {
        it.as_document()
            .unwrap()
            .get_array("actions")
            .unwrap()
            .is_empty()
    };
    all.retain(|it| !empty(it));
    both
}

/// What a mirror of these roles complains about, or lacks; `None` if all is as it should be.
async fn lacks(from: &ReplicaSet, to: &ReplicaSet, n: usize, both: &[Document]) -> Option<String> {
    let database = format!("shop{n}");
    let mut config = granted(from, to, &database, both).await;
    config.state_database = format!("{database}_notes");
    let (root, copies) = (from.client().await.unwrap(), to.client().await.unwrap());
    let source = root.database(&database);
    let target = copies.database(&format!("{database}_backup"));
    prepare(&source).await;
    changes(&source, 1).await;
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
    let copies = to.client().await.unwrap();
    let of = |n: usize| {
        let notes = format!("shop{n}_notes");
        let both = printed(&format!("shop{n}"), &["--state-database", &notes]);
        (both, notes)
    };
    let trials = (0..=actions(of(0).0).len()).map(|n| {
        let (from, to, copies) = (&from, &to, &copies);
        async move {
            let (both, notes) = of(n);
            // With all of them nothing is missing.
            let Some(left_out) = actions(both.clone()).get(n).cloned() else {
                let lacks = lacks(from, to, n, &both).await;
                return lacks.map(|lacks| format!("with all of them: {lacks}"));
            };
            let lacks = lacks(from, to, n, &without(both, &left_out)).await;
            eprintln!("without {left_out:?}: {lacks:?}");
            // All that a mirror loses without these is told below.
            if only_for_rings(&notes).contains(&left_out) {
                return lacks.map(|lacks| format!("without {left_out:?}: {lacks}"));
            }
            let resource = left_out.1.get_document("resource").unwrap();
            let action = left_out.1.get_array("actions").unwrap()[0]
                .as_str()
                .unwrap();
            // Those of ordinary collections are told by name, before anything is written.
            if resource.get_str("collection").is_ok_and(str::is_empty) {
                let told = lacks.clone().unwrap_or_default();
                for part in ["may not", "grantPrivilegesToRole(", action] {
                    assert!(told.contains(part), "{part}: {told}");
                }
                for written in [&notes, &format!("shop{n}_backup")] {
                    let database = copies.database(written);
                    let names = database.list_collection_names().await.unwrap();
                    assert_eq!(names, [""; 0], "{told}");
                }
            }
            lacks
                .is_none()
                .then(|| format!("nobody misses {left_out:?}"))
        }
    });
    let wrong: Vec<_> = futures::stream::iter(trials)
        .buffer_unordered(8)
        .collect()
        .await;
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A database of a deployment.
type Place<'a> = (&'a ReplicaSet, &'a str);

/// A mirror whose users have exactly the printed roles, and these.
async fn between(from: Place<'_>, to: Place<'_>, notes: &str) -> (MirrorConfig, Vec<Document>) {
    let both = printed_for(from.1, to.1, &["--state-database", notes]);
    let mut config = granted(from.0, to.0, from.1, &both).await;
    to.1.clone_into(&mut config.target.database);
    notes.clone_into(&mut config.state_database);
    (config, both)
}

/// Each of these is mirrored to the next one, and the last one shall be to the first one.
async fn is_seen(ring: &[Place<'_>], notes: &str, asking: &str) {
    let mut mirrors = Vec::new();
    let root = ring[0].0.client().await.unwrap();
    let first = root.database(ring[0].1);
    fill(&first, "orders", 0, 20).await;
    for two in ring.windows(2) {
        let (config, _) = between(two[0], two[1], notes).await;
        let mirror = MirrorHandle::start(config);
        mirroring(&mirror).await;
        mirrors.push(mirror);
    }
    let last = ring[ring.len() - 1];
    let (closing, both) = between(last, ring[0], asking).await;
    let begins = async || {
        let mirror = MirrorHandle::start(closing.clone());
        let now = has_problem(&mirror, &["MirrorRing", "TargetNotEmpty"]).await;
        mirror.stop().await;
        now.problem.unwrap().reason.as_str()
    };
    assert_eq!(begins().await, "MirrorRing");
    // Without what finds it, it would only not begin because there is something.
    let printed = actions(both.clone());
    for one in only_for_rings(asking) {
        assert!(printed.contains(&one), "{one:?}");
        let (side, privilege) = &one;
        let name = both[*side].get_str("createRole").unwrap();
        let set = [last.0, ring[0].0][*side];
        let with = |command: &str| doc! {command: name, "privileges": [privilege]};
        set.admin(with("revokePrivilegesFromRole")).await.unwrap();
        let finds = one == only_for_rings(notes)[0] || *side == 1;
        let reason = ["MirrorRing", "TargetNotEmpty"][usize::from(finds)];
        assert_eq!(begins().await, reason, "without {one:?}");
        set.admin(with("grantPrivilegesToRole")).await.unwrap();
    }
    assert_eq!(begins().await, "MirrorRing");
    let noted = root.database(asking).collection::<Document>("checkpoints");
    let claims = noted.count_documents(doc! {"_id": ring[0].1});
    assert_eq!(claims.await.unwrap(), 0);

    fill(&first, "orders", 1000, 20).await;
    for (mirror, two) in mirrors.iter().zip(ring.windows(2)) {
        let (from, to) = (two[0].0.client().await.unwrap(), two[1].0.client());
        caught_up(mirror, &from).await;
        let target = to.await.unwrap().database(two[1].1);
        assert_equal(&from.database(two[0].1), &target).await;
    }
    for mirror in mirrors {
        stop(mirror).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_these_roles_see_rings() {
    let set = || ReplicaSet::builder().auth(true).start();
    let (one, two) = tokio::try_join!(set(), set()).unwrap();
    let between_two = [(&one, "far"), (&two, "away")];
    let within_one = [(&one, "near"), (&one, "here")];
    let longer = [(&one, "a"), (&two, "b"), (&one, "c")];
    tokio::join!(
        is_seen(&between_two, "mongomirror", "notes"),
        is_seen(&within_one, "notes", "notes"),
        is_seen(&longer, "mongomirror", "mongomirror"),
    );
    // What was revoked.
    let notes = "find: \"checkpoints\"";
    assert_refused_only(&one, &[notes, "replSetGetConfig: 1"]);
    assert_refused_only(&two, &[notes]);
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
