//! Every kind of update arrives byte for byte: values, types and the order of fields.

mod common;

use bson::{Bson, Document, Timestamp, bson, doc};
use common::gate::start_held;
use common::raw::{assert_same_bytes, operators, read, run, run_in, update};
use common::servers::shared;
use common::{assert_equal, caught_up, config, mirroring};
use mongodb::Database;
use mongomirror::runner::MirrorHandle;
use testbed::Version;

on_both_versions!(
    every_kind_of_update_arrives_one_at_a_time,
    every_kind_of_update_arrives_in_one_batch,
    every_kind_of_update_arrives_when_documents_are_read_again,
    every_kind_of_update_arrives_in_transactions,
    every_kind_of_update_arrives_during_the_copy,
    updates_that_change_nothing_are_no_events,
    an_update_does_not_bring_a_document_back,
    what_strangers_did_to_a_document_is_told_when_it_changes,
);

/// What a document is, and what is done to it, step by step.
struct Row {
    name: &'static str,
    seed: Document,
    updates: Vec<Bson>,
}

fn row(name: &'static str, seed: Document, updates: impl IntoIterator<Item = Bson>) -> Row {
    Row {
        name,
        seed,
        updates: updates.into_iter().collect(),
    }
}

/// What most rows begin with.
fn base() -> Document {
    doc! {
        "a": 1, "b": 2, "c": 3,
        "arr": [1, 2, 3],
        "o": {"x": 1, "y": {"z": 2}, "a": [1, 2, 3]},
        "dd": [[1, 2], [3]],
        "items": [{"n": 1, "tags": ["p", "q"]}, {"n": 2, "tags": []}],
    }
}

/// `$setField`, which takes any name.
fn set_field(input: &str, name: &str, value: impl Into<Bson>) -> Bson {
    let value: Bson = value.into();
    bson!({"$setField": {"field": {"$literal": name}, "input": input, "value": value}})
}

fn replace_with(expression: Bson) -> Bson {
    bson!([{"$replaceWith": expression}])
}

fn rows() -> Vec<Row> {
    let mut rows = orders();
    rows.extend(arrays());
    rows.extend(names());
    rows.extend(values());
    rows.extend(forms());
    rows
}

/// Where fields stand.
fn orders() -> Vec<Row> {
    vec![
        row(
            "existing and new fields",
            base(),
            [bson!({"$set": {"b": 20, "zz": 1, "c": 30, "new": 1}})],
        ),
        row(
            "new fields in the order of their names",
            base(),
            [bson!({"$set": {"zz": 1, "10": 1, "9": 1, "d": 1}})],
        ),
        row(
            "new fields in the order they are written in",
            base(),
            [bson!([{"$set": {"zz": 1, "d": 1}}, {"$set": {"cc": 1}}])],
        ),
        row(
            "reordered, values unchanged",
            base(),
            [replace_with(
                bson!({"_id": "$_id", "c": "$c", "b": "$b", "a": "$a"}),
            )],
        ),
        row(
            "reordered back and forth",
            base(),
            [
                replace_with(
                    bson!({"_id": "$_id", "c": "$c", "b": "$b", "a": "$a", "arr": "$arr"}),
                ),
                replace_with(
                    bson!({"_id": "$_id", "b": "$b", "a": "$a", "c": "$c", "arr": "$arr"}),
                ),
                bson!({"$set": {"a": 9, "new": 1}}),
                replace_with(bson!({"_id": "$_id", "a": "$a", "b": "$b", "c": "$c"})),
            ],
        ),
        row(
            "reordered inside",
            base(),
            [
                bson!([{"$set": {"o": {"$literal": {"y": {"z": 2}, "x": 1}}}}]),
                bson!({"$set": {"o.w": 1}}),
            ],
        ),
        row(
            "the same fields of a sub-document in another order",
            base(),
            [bson!({"$set": {"o": {"y": {"z": 2}, "x": 1, "a": [1, 2, 3]}}})],
        ),
        row(
            "removed and added again",
            base(),
            [
                bson!({"$unset": {"a": ""}}),
                bson!({"$set": {"a": 5}}),
                bson!({"$unset": {"o.x": ""}}),
                bson!({"$set": {"o.x": 6}}),
            ],
        ),
        row(
            "removed, changed and added at once",
            base(),
            [
                bson!({"$unset": {"a": "", "o.x": ""}, "$set": {"b": 5, "o.y.z": 3, "new": 1, "o.new": 1}}),
            ],
        ),
        row(
            "renamed",
            base(),
            [
                bson!({"$rename": {"a": "renamed", "o.x": "o.moved"}}),
                bson!({"$rename": {"b": "o.b", "o.y": "y"}}),
            ],
        ),
        row(
            "renamed over another",
            base(),
            [bson!({"$rename": {"a": "c"}})],
        ),
        row(
            "a nested field that makes its parents",
            base(),
            [
                bson!({"$set": {"p.q.r": 1}}),
                bson!({"$set": {"p.q.s": 1, "p.a": 2}}),
            ],
        ),
        row(
            "a parent after its child, a child after its parent",
            base(),
            [
                bson!({"$set": {"o.x": 5}}),
                bson!({"$set": {"o": {"x": {"deep": 1}}}}),
                bson!({"$set": {"o.x.deep": 2}}),
                bson!({"$unset": {"o": ""}}),
                bson!({"$set": {"o.x": 7}}),
            ],
        ),
    ]
}

fn arrays() -> Vec<Row> {
    let many: Vec<Bson> = (0..300).map(|n| bson!({"n": n, "m": [n]})).collect();
    let leaves: Document = (0..300)
        .step_by(3)
        .map(|n| (format!("many.{n}.n"), Bson::Int32(-n)))
        .collect();
    vec![
        row("an element", base(), [bson!({"$set": {"arr.0": 10}})]),
        row(
            "pushed",
            base(),
            [
                bson!({"$push": {"arr": 4}}),
                bson!({"$push": {"arr": {"$each": [5, 6]}}}),
                bson!({"$push": {"none": 1}}),
            ],
        ),
        row(
            "pushed at the front, sorted, sliced",
            base(),
            [
                bson!({"$push": {"arr": {"$each": [0], "$position": 0}}}),
                bson!({"$push": {"arr": {"$each": [9, 5], "$sort": -1, "$slice": 4}}}),
                bson!({"$push": {"arr": {"$each": [], "$slice": -2}}}),
            ],
        ),
        row(
            "pulled and popped",
            base(),
            [
                bson!({"$pull": {"arr": 2}}),
                bson!({"$pop": {"arr": 1}}),
                bson!({"$pop": {"o.a": -1}}),
                bson!({"$pullAll": {"o.a": [2, 3]}}),
            ],
        ),
        row(
            "a set",
            base(),
            [bson!({"$addToSet": {"arr": {"$each": [1, 7, 8]}}})],
        ),
        row(
            "grown over its end",
            base(),
            [
                bson!({"$set": {"arr.5": 1}}),
                bson!({"$set": {"arr.9": 2, "arr.7": 3}}),
                bson!({"$set": {"dd.0.4": 1}}),
                bson!({"$set": {"dd.3.1": 1}}),
            ],
        ),
        row(
            "truncated",
            base(),
            [
                bson!([{"$set": {"arr": {"$slice": ["$arr", 1]}}}]),
                bson!([{"$set": {"o.a": {"$slice": ["$o.a", 2]}}}]),
            ],
        ),
        row(
            "truncated and changed",
            base(),
            [
                bson!([{"$set": {"arr": [{"$literal": {"x": 1}}, 2]}}]),
                bson!([{"$set": {"arr": {"$concatArrays": [{"$slice": ["$arr", 1]}, [7]]}}}]),
            ],
        ),
        row(
            "truncated inside an array",
            base(),
            [
                bson!([{"$set": {"dd": [[1], [3]]}}]),
                bson!([{"$set": {"dd": [[1], []]}}]),
            ],
        ),
        row(
            "emptied and filled",
            base(),
            [
                bson!([{"$set": {"arr": []}}]),
                bson!({"$push": {"arr": 1}}),
                bson!({"$set": {"arr": []}}),
            ],
        ),
        row(
            "an element removed is null",
            base(),
            [
                bson!({"$unset": {"arr.1": ""}}),
                bson!({"$unset": {"dd.0.0": "", "items.1": ""}}),
            ],
        ),
        row(
            "inside an element",
            base(),
            [
                bson!({"$set": {"items.0.n": 5, "items.1.tags.0": "x"}}),
                bson!({"$push": {"items.0.tags": "r"}, "$unset": {"items.1.n": ""}}),
                bson!({"$set": {"items.$[].new": 1}}),
                bson!({"$push": {"items": {"n": 3}}}),
            ],
        ),
        row(
            "an array becomes text, text an array",
            base(),
            [
                bson!({"$set": {"arr": "text"}}),
                bson!({"$set": {"arr": ["x"]}}),
                bson!({"$set": {"arr": {"0": "x"}}}),
                bson!({"$set": {"arr.0": "y"}}),
                bson!({"$set": {"arr": ["x", "y"]}}),
                bson!({"$set": {"arr.1": "z"}}),
            ],
        ),
        row(
            "a pipeline sets every element",
            base(),
            [
                bson!([{"$set": {"items.extra": 1}}]),
                bson!([{"$set": {"arr": {"$map": {"input": "$arr", "in": {"$add": ["$$this", 1]}}}}}]),
                bson!([{"$set": {"arr": {"$reverseArray": "$arr"}}}]),
            ],
        ),
        row(
            "many leaves of a long array",
            doc! {"many": many},
            [
                bson!({"$set": leaves}),
                bson!({"$inc": {"many.7.n": 1, "many.299.m.0": 1}}),
                bson!({"$pull": {"many": {"n": {"$gt": 150}}}}),
            ],
        ),
    ]
}

fn names() -> Vec<Row> {
    vec![
        row(
            "a sub-document with the key 0",
            doc! {"o": {"0": {"x": 1}, "1": 2}},
            [
                bson!({"$set": {"o.0.x": 2}}),
                bson!({"$set": {"o.0": 5, "o.2": 6}}),
                bson!({"$unset": {"o.1": ""}}),
                bson!({"$set": {"o.00": 5}}),
            ],
        ),
        row(
            "fields that are numbers",
            base(),
            [
                bson!({"$set": {"0": 1, "1": 2}}),
                bson!({"$set": {"0": 3, "-1": 2}}),
                bson!({"$unset": {"1": ""}}),
            ],
        ),
        row(
            "a dotted field",
            doc! {"p": {"q": 1}, "r": 1},
            [
                replace_with(set_field("$$ROOT", "p.q", 1)),
                replace_with(set_field("$$ROOT", "p.q", 2)),
                bson!({"$set": {"p.q": 5}}),
                replace_with(bson!({"$unsetField": {"field": "p.q", "input": "$$ROOT"}})),
            ],
        ),
        row(
            "a nested dotted field",
            base(),
            [
                bson!([{"$set": {"o": set_field("$o", "y.z", 1)}}]),
                bson!([{"$set": {"o": set_field("$o", "y.z", 2)}}]),
                bson!({"$set": {"o.y.z": 9}}),
            ],
        ),
        row(
            "a $ field",
            base(),
            [
                replace_with(set_field("$$ROOT", "$price", 1)),
                replace_with(set_field("$$ROOT", "$price", 2)),
                bson!({"$set": {"a": 5}}),
                bson!([{"$set": {"o": set_field("$o", "$inner", 1)}}]),
                bson!([{"$set": {"o": set_field("$o", "$inner", 2)}}]),
            ],
        ),
        row(
            "an empty field",
            base(),
            [
                replace_with(set_field("$$ROOT", "", 1)),
                replace_with(set_field("$$ROOT", "", 2)),
                bson!([{"$set": {"o": set_field("$o", "", 1)}}]),
                bson!([{"$set": {"o": set_field("$o", "", 2)}}]),
                bson!({"$set": {"a": 5, "o.x": 5}}),
            ],
        ),
        row(
            "fields named like the oplog's own",
            base(),
            [
                bson!({"$set": {"u": 1, "i": 2, "d": 3, "sa": 4, "l": 5, "s": {"u": 1}}}),
                bson!({"$set": {"u": 2, "s.u": 2, "sa": {"i": 1}}}),
                bson!({"$set": {"sa.i": 3}, "$unset": {"d": "", "l": ""}}),
            ],
        ),
        row(
            "values with names of all kinds",
            base(),
            [
                bson!({"$set": {"o": {"p.q": 1, "": 2, "0": 3}}}),
                bson!([{"$set": {"o": {"$literal": {"$set": {"$inc": 1}, "$$ROOT": "$a"}}}}]),
                bson!([{"$set": {"a": {"$literal": "$b"}}}]),
                bson!({"$set": {"a": "$c", "b": "$$ROOT", "c": ["$a"]}}),
            ],
        ),
    ]
}

fn values() -> Vec<Row> {
    let decimal = |text: &str| Bson::Decimal128(text.parse().unwrap());
    let zero = Timestamp {
        time: 0,
        increment: 0,
    };
    vec![
        row(
            "1 becomes 1.0",
            base(),
            [
                bson!({"$set": {"a": 1.0, "o.x": 1.0}}),
                bson!({"$set": {"a": 1_i64}}),
                bson!({"$set": {"a": decimal("1")}}),
                bson!({"$set": {"a": decimal("1.00")}}),
            ],
        ),
        row(
            "zero becomes negative",
            doc! {"a": 0.0},
            [bson!({"$set": {"a": -0.0}}), bson!({"$set": {"a": 0}})],
        ),
        row(
            "calculated",
            doc! {"i": 1, "l": i64::MAX - 1, "d": 0.1, "x": decimal("0.10"), "m": i32::MAX},
            [
                bson!({"$inc": {"i": 1, "l": 1, "d": 0.2, "x": decimal("0.20"), "m": 1, "none": 1}}),
                bson!({"$mul": {"i": 2.5, "d": 3, "nothing": 4}}),
                bson!({"$min": {"i": 2, "new": 1}, "$max": {"d": 100}}),
                bson!({"$bit": {"m": {"or": 5_i64}}}),
            ],
        ),
        row(
            "a zero timestamp",
            base(),
            [
                bson!({"$set": {"t": zero, "o.t": zero}}),
                bson!({"$set": {"t": Timestamp { time: 1, increment: 1 }}}),
                bson!([{"$set": {"t": {"$literal": zero}, "new": 1}}]),
                bson!({"$set": {"c": 7}}),
            ],
        ),
        row(
            "the time",
            base(),
            [
                bson!({"$currentDate": {"when": true, "stamp": {"$type": "timestamp"}}}),
                bson!([{"$set": {"now": "$$NOW", "cluster": "$$CLUSTER_TIME"}}]),
            ],
        ),
        row(
            "objects become values and objects again",
            base(),
            [
                bson!({"$set": {"o": 1}}),
                bson!({"$set": {"o": {"x": 1}}}),
                bson!({"$set": {"o.x": Bson::Null}}),
                bson!({"$set": {"o": Bson::Null}}),
                bson!({"$unset": {"o": ""}}),
            ],
        ),
        row(
            "an object merged by a pipeline",
            base(),
            [
                bson!([{"$set": {"o": {"y": {"w": 1}}}}]),
                bson!([{"$set": {"o": {"$literal": {"only": 1}}}}]),
            ],
        ),
        row(
            "deeper than anybody nests",
            doc! {"d": deep(20)},
            [
                bson!({"$set": {path(20): 1}}),
                bson!({"$set": {path(19): {"v": 2, "w": 3}}}),
                bson!({"$unset": {path(20): ""}}),
            ],
        ),
        row(
            "more fields than are merged",
            (0..120).map(|n| (format!("f{n}"), bson!(n))).collect(),
            [
                Bson::Document(
                    doc! {"$set": (0..60).map(|n| (format!("f{n}"), bson!("x"))).collect::<Document>()},
                ),
                Bson::Document(
                    doc! {"$set": (30..120).map(|n| (format!("f{n}"), bson!("y"))).collect::<Document>()},
                ),
                bson!({"$unset": {"f0": "", "f50": ""}}),
            ],
        ),
    ]
}

/// How updates are written down.
fn forms() -> Vec<Row> {
    vec![
        row(
            "replaced",
            base(),
            [
                bson!({"z": 1, "a": 2}),
                bson!({"a": 2, "z": 1}),
                bson!({}),
                bson!({"b": 1}),
            ],
        ),
        row(
            "replaced by a pipeline",
            base(),
            [
                replace_with(bson!({"z": 1, "y": "$a"})),
                replace_with(bson!({"_id": "$_id", "y": 5})),
            ],
        ),
        row(
            "replaced, then changed, then replaced",
            base(),
            [
                bson!({"$set": {"a": 1000}}),
                bson!({"x": 1, "text": "t".repeat(500)}),
                bson!({"$set": {"x": 2, "y": 1}}),
                bson!({"x": 3}),
                bson!({"$push": {"l": 1}}),
            ],
        ),
        row(
            "many small changes",
            base(),
            (0..60).map(|n| match n % 4 {
                0 => bson!({"$set": {"a": n}}),
                1 => bson!({"$push": {"arr": n}}),
                2 => bson!({"$set": {"o.x": n, format!("n{n}"): 1}}),
                _ => bson!({"$unset": {format!("n{}", n - 1): ""}, "$inc": {"b": 1}}),
            }),
        ),
    ]
}

fn deep(levels: usize) -> Bson {
    (0..levels).fold(bson!({"v": 0, "w": 1}), |inner, _| bson!({"d": inner}))
}

fn path(levels: usize) -> String {
    format!("d{}", ".d".repeat(levels)) + if levels == 20 { ".v" } else { "" }
}

/// The rows as documents: small ones, whose updates are logged as replacements, and large ones,
/// whose updates are logged as deltas.
fn documents(rows: &[Row]) -> Vec<(Vec<u8>, &Row)> {
    rows.iter()
        .flat_map(|row| {
            ["small", "large"].map(|size| {
                let mut document = doc! {"_id": format!("{}, {size}", row.name)};
                document.extend(row.seed.clone());
                if size == "large" {
                    document.insert("padding", "p".repeat(4000));
                }
                (document.to_vec().unwrap(), row)
            })
        })
        .collect()
}

async fn seed(db: &Database, rows: &[Row]) {
    let seeds = documents(rows);
    for seeds in seeds.chunks(20) {
        let seeds = seeds.iter().map(|(seed, _)| seed);
        run(db, common::raw::insert("c", seeds)).await.unwrap();
    }
}

/// Carries all updates out; returns how many changed something.
async fn change(db: &Database, rows: &[Row]) -> u64 {
    let mut changed = 0;
    for (document, row) in documents(rows) {
        for (step, change) in row.updates.iter().enumerate() {
            let reply = run(db, update("c", &document, &operators(change), false))
                .await
                .unwrap_or_else(|code| panic!("{} {step}: {code}", row.name));
            let modified = reply.get_i32("nModified").unwrap();
            changed += u64::try_from(modified).unwrap();
        }
    }
    changed
}

struct Pair {
    set: std::sync::Arc<testbed::ReplicaSet>,
    client: mongodb::Client,
    source: Database,
    target: Database,
}

async fn pair(version: Version, name: &str) -> Pair {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    Pair {
        source: client.database(name),
        target: client.database(&format!("{name}_backup")),
        set,
        client,
    }
}

async fn every_kind_of_update_arrives_one_at_a_time(version: Version) {
    let pair = pair(version, "updates_live").await;
    seed(&pair.source, &rows()).await;
    let mirror = MirrorHandle::start(config(&pair.set.uri(), &pair.set.uri(), "updates_live"));
    mirroring(&mirror).await;
    for row in rows() {
        let name = row.name;
        change(&pair.source, &[row]).await;
        caught_up(&mirror, &pair.client).await;
        eprintln!("{name}");
        assert_same_bytes(&pair.source, &pair.target, "c").await;
    }
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

async fn backlog(version: Version, name: &str, internal_delta: bool) {
    let pair = pair(version, name).await;
    seed(&pair.source, &rows()).await;
    let mut config = config(&pair.set.uri(), &pair.set.uri(), name);
    config.limits.internal_delta = internal_delta;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    let changed = change(&pair.source, &rows()).await;
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &pair.client).await;
    assert_same_bytes(&pair.source, &pair.target, "c").await;
    assert_equal(&pair.source, &pair.target).await;
    let last = mirror.stop().await;
    assert_eq!((last.totals.updates, last.totals.repaired), (changed, 0));
}

async fn every_kind_of_update_arrives_in_one_batch(version: Version) {
    backlog(version, "updates_batch", true).await;
}

async fn every_kind_of_update_arrives_when_documents_are_read_again(version: Version) {
    backlog(version, "updates_refetch", false).await;
}

async fn every_kind_of_update_arrives_in_transactions(version: Version) {
    let pair = pair(version, "updates_transaction").await;
    seed(&pair.source, &rows()).await;
    let name = pair.source.name().to_owned();
    let mirror = MirrorHandle::start(config(&pair.set.uri(), &pair.set.uri(), &name));
    mirroring(&mirror).await;
    let mut session = pair.client.start_session().await.unwrap();
    let rows = rows();
    for (document, row) in documents(&rows) {
        session.start_transaction().await.unwrap();
        for change in &row.updates {
            let change = update("c", &document, &operators(change), false);
            run_in(&pair.source, change, &mut session).await.unwrap();
        }
        session.commit_transaction().await.unwrap();
    }
    caught_up(&mirror, &pair.client).await;
    assert_same_bytes(&pair.source, &pair.target, "c").await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

async fn every_kind_of_update_arrives_during_the_copy(version: Version) {
    let pair = pair(version, "updates_copy").await;
    seed(&pair.source, &rows()).await;
    let mut config = config(&pair.set.uri(), &pair.set.uri(), "updates_copy");
    config.limits.range_bytes = 5000;
    config.limits.copy_lanes = 1;
    let (mirror, gate) = start_held(&config, &pair.client).await;
    assert!(gate.ranges > 3, "{} ranges are left", gate.ranges);
    change(&pair.source, &rows()).await;
    gate.open().await;
    mirroring(&mirror).await;
    caught_up(&mirror, &pair.client).await;
    assert_same_bytes(&pair.source, &pair.target, "c").await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

async fn updates_that_change_nothing_are_no_events(version: Version) {
    let pair = pair(version, "no_updates").await;
    let rows = [row(
        "nothing",
        doc! {"a": 1, "nan": f64::NAN, "o": {"x": 1, "y": 2}, "arr": [1]},
        [
            bson!({"$set": {"a": 1}}),
            bson!({"$set": {"nan": f64::NAN}}),
            bson!({"$set": {"o": {"x": 1, "y": 2}}}),
            bson!({"$unset": {"none": ""}}),
            bson!({"$unset": {"a.b": ""}}),
            bson!({"$addToSet": {"arr": 1}}),
            bson!({"$inc": {"a": 0}}),
            bson!([{"$set": {"a": "$a"}}]),
        ],
    )];
    seed(&pair.source, &rows).await;
    let mirror = MirrorHandle::start(config(&pair.set.uri(), &pair.set.uri(), "no_updates"));
    mirroring(&mirror).await;
    assert_eq!(change(&pair.source, &rows).await, 0);
    caught_up(&mirror, &pair.client).await;
    assert_same_bytes(&pair.source, &pair.target, "c").await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.events_read, 0);
}

async fn an_update_does_not_bring_a_document_back(version: Version) {
    let pair = pair(version, "not_back").await;
    seed(&pair.source, &rows()).await;
    let config = config(&pair.set.uri(), &pair.set.uri(), "not_back");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    // Somebody removes what is on the target; the source changes it, and deletes half of it.
    let copies = pair.target.collection::<Document>("c");
    copies.delete_many(doc! {}).await.unwrap();
    change(&pair.source, &rows()).await;
    let small = doc! {"_id": {"$regex": "small$"}};
    let originals = pair.source.collection::<Document>("c");
    originals.delete_many(small).await.unwrap();
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &pair.client).await;
    assert_same_bytes(&pair.source, &pair.target, "c").await;
    assert_eq!(read(&pair.target, "c").await.len(), rows().len());
    let last = mirror.stop().await;
    assert!(last.totals.repaired > 0);
}

/// Whatever the source does with a document that somebody removed from the target or put there.
async fn what_strangers_did_to_a_document_is_told_when_it_changes(version: Version) {
    let pair = pair(version, "strangers").await;
    let originals = pair.source.collection::<Document>("c");
    let copies = pair.target.collection::<Document>("c");
    let documents = (0..4).map(|n| doc! {"_id": n, "a": 0, "pad": "p".repeat(300)});
    originals.insert_many(documents).await.unwrap();
    let config = config(&pair.set.uri(), &pair.set.uri(), "strangers");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    let changes = [
        doc! {"update": "c", "updates": [{"q": {"_id": 0}, "u": {"$set": {"a": 1}}}]},
        doc! {"update": "c", "updates": [{"q": {"_id": 1}, "u": {"whole": 1}}]},
        doc! {"delete": "c", "deletes": [{"q": {"_id": 2}, "limit": 1}]},
        doc! {"insert": "c", "documents": [{"_id": 4, "a": 1}]},
    ];
    for (place, change) in changes.into_iter().enumerate() {
        if place == 3 {
            copies.insert_one(doc! {"_id": 4}).await.unwrap();
        } else {
            let id = i32::try_from(place).unwrap();
            copies.delete_one(doc! {"_id": id}).await.unwrap();
        }
        pair.source.run_command(change.clone()).await.unwrap();
        let mirror = MirrorHandle::start(config.clone());
        caught_up(&mirror, &pair.client).await;
        let last = mirror.stop().await;
        assert_eq!(last.totals.repaired, 1, "{change}");
    }
    assert_same_bytes(&pair.source, &pair.target, "c").await;
}
