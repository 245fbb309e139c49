//! What happens on the source: something for every kind of write that a mirror makes.

use bson::{Bson, Document, doc};
use futures::TryStreamExt;
use mongodb::{Database, IndexModel};

use crate::common::order;

/// Collections of such names are not selected.
pub const HIDDEN: &str = "hidden*";

/// An index that nobody has on the source.
const STRANGE: &str = "strange";

async fn run(db: &Database, command: Document) {
    db.run_command(command.clone())
        .await
        .unwrap_or_else(|error| panic!("{command}: {error}"));
}

async fn rename(db: &Database, from: &str, to: &str) {
    let named = |collection: &str| format!("{}.{collection}", db.name());
    crate::common::rename(db.client(), &named(from), &named(to)).await;
}

/// One measurement of a time series.
fn measurement(n: i32) -> Document {
    doc! {"t": bson::DateTime::now(), "meta": n % 3, "value": n}
}

/// What is there before the mirror starts.
pub async fn prepare(db: &Database) {
    let orders = db.collection::<Document>("orders");
    orders.insert_many((0..60).map(order)).await.unwrap();
    // A server before 6.0.27 changes an empty timestamp of a plain insert.
    let empty = Bson::Timestamp(bson::Timestamp {
        time: 0,
        increment: 0,
    });
    let set = doc! {"$set": {"stamp": empty}};
    orders.update_one(doc! {"_id": 7}, set).await.unwrap();
    let index = IndexModel::builder().keys(doc! {"customer": 1}).build();
    orders.create_index(index).await.unwrap();
    for name in [
        "items", "doomed", "covered", "hidden", "bounded", "arrays", "many",
    ] {
        let collection = db.collection::<Document>(name);
        collection.insert_many((0..30).map(order)).await.unwrap();
    }
    let view =
        doc! {"create": "paid", "viewOn": "orders", "pipeline": [{"$match": {"status": "paid"}}]};
    run(db, view).await;
    prepare_kinds(db).await;
}

/// What no transaction may write, and what is withheld on a target.
async fn prepare_kinds(db: &Database) {
    run(db, doc! {"create": "log", "capped": true, "size": 1 << 16}).await;
    let series = doc! {"timeField": "t", "metaField": "meta"};
    run(
        db,
        doc! {"create": "series", "timeseries": series, "expireAfterSeconds": 864_000},
    )
    .await;
    let scripts = db.collection::<Document>("system.js");
    for n in 0..20 {
        db.collection("log").insert_one(order(n)).await.unwrap();
        db.collection("series")
            .insert_one(measurement(n))
            .await
            .unwrap();
        let script = doc! {"_id": format!("f{n}"), "value": "function() {}"};
        scripts.insert_one(script).await.unwrap();
    }
    let seats = (0..10).map(|n| doc! {"_id": n, "seat": n, "at": bson::DateTime::now()});
    db.collection("seats").insert_many(seats).await.unwrap();
    let indexes = [
        doc! {"key": {"seat": 1}, "name": "seat_1", "unique": true},
        doc! {"key": {"at": 1}, "name": "at_1", "expireAfterSeconds": 864_000},
    ];
    run(
        db,
        doc! {"createIndexes": "seats", "indexes": indexes.to_vec()},
    )
    .await;
}

/// Whether the target refuses a second document with the key of another one.
pub async fn enforces_seats(target: &Database) -> bool {
    let listed = target.run_cursor_command(doc! {"listIndexes": "seats"});
    let Ok(listed) = listed.await else {
        return false;
    };
    let indexes: Vec<Document> = listed.try_collect().await.unwrap();
    let is_unique = |index: &Document| index.get_bool("unique").unwrap_or(false);
    indexes.iter().any(is_unique)
}

/// Somebody's index on the target, which cannot hold the document that is inserted then.
pub async fn refuse(db: &Database, target: &Database, round: i32) {
    // Documents of earlier rounds must not be in its way.
    let (a, b) = (format!("a{round}"), format!("b{round}"));
    let index = doc! {"key": {&a: 1, &b: 1}, "name": STRANGE};
    run(target, doc! {"createIndexes": "arrays", "indexes": [index]}).await;
    let document = doc! {"_id": 1000 + round, a: [1, 2], b: [3, 4]};
    db.collection("arrays").insert_one(document).await.unwrap();
}

/// The index is gone.
pub async fn take(target: &Database) {
    run(target, doc! {"dropIndexes": "arrays", "index": STRANGE}).await;
}

/// Documents of every kind of write, and a repair; from 0 on, in rounds.
pub async fn change_documents(db: &Database, target: &Database, round: i32) {
    let from = 100 * (round + 1);
    // Somebody else's write on the target: the next update of that document does not find it.
    let copies = target.collection::<Document>("orders");
    copies.delete_one(doc! {"_id": 5}).await.unwrap();
    let orders = db.collection::<Document>("orders");
    orders
        .update_one(doc! {"_id": 5}, doc! {"$inc": {"total": 1}})
        .await
        .unwrap();
    orders
        .insert_many((from..from + 20).map(order))
        .await
        .unwrap();
    orders
        .update_many(doc! {"quantity": 3}, doc! {"$push": {"tags": "new"}})
        .await
        .unwrap();
    orders
        .replace_one(doc! {"_id": 8}, doc! {"b": 1, "a": 2})
        .await
        .unwrap();
    orders.delete_many(doc! {"quantity": 4}).await.unwrap();
    let set = |seat: i32| doc! {"$set": {"seat": seat}};
    let mut session = db.client().start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for n in 0..3 {
        let paid = doc! {"$set": {"status": "paid"}};
        orders
            .update_one(doc! {"_id": n}, paid)
            .session(&mut session)
            .await
            .unwrap();
    }
    // Two documents exchange their unique keys.
    let seats = db.collection::<Document>("seats");
    let (one, two) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
    for (id, seat) in [(1, -1), (2, one), (1, two)] {
        seats
            .update_one(doc! {"_id": id}, set(seat))
            .session(&mut session)
            .await
            .unwrap();
    }
    session.commit_transaction().await.unwrap();
    change_kinds(db, from).await;
}

/// One transaction of so many documents that it is worth several on the target.
pub async fn change_many(db: &Database) {
    let many = db.collection::<Document>("many");
    let mut session = db.client().start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    many.insert_many((100..140).map(order))
        .session(&mut session)
        .await
        .unwrap();
    session.commit_transaction().await.unwrap();
}

/// Writes to what no transaction may write on the target.
pub async fn change_kinds(db: &Database, from: i32) {
    let log = db.collection::<Document>("log");
    log.insert_many((from..from + 10).map(order)).await.unwrap();
    let set = doc! {"$set": {"status": "old!"}};
    log.update_one(doc! {"_id": from}, set).await.unwrap();
    let series = db.collection::<Document>("series");
    for n in from..from + 5 {
        series.insert_one(measurement(n)).await.unwrap();
    }
    let scripts = db.collection::<Document>("system.js");
    let set = doc! {"$set": {"value": format!("function() {{ return {from}; }}")}};
    scripts.update_one(doc! {"_id": "f1"}, set).await.unwrap();
    scripts.delete_one(doc! {"_id": "f2"}).await.unwrap();
}

/// Every kind of command on collections, with documents in between.
pub async fn change_collections(db: &Database) {
    let orders = db.collection::<Document>("orders");
    run(
        db,
        doc! {"createIndexes": "orders", "indexes": [
            {"key": {"total": 1}, "name": "total_1"},
            {"key": {"quantity": 1}, "name": "quantity_1", "unique": false, "sparse": true},
        ]},
    )
    .await;
    orders
        .update_many(doc! {"quantity": 5}, doc! {"$inc": {"total": 1}})
        .await
        .unwrap();
    run(db, doc! {"dropIndexes": "orders", "index": "total_1"}).await;
    run(
        db,
        doc! {"collMod": "orders", "index": {"name": "quantity_1", "hidden": true}},
    )
    .await;
    run(db, doc! {"collMod": "orders", "validator": {"customer": {"$exists": true}}, "validationLevel": "moderate"}).await;
    run(
        db,
        doc! {"collMod": "paid", "viewOn": "orders", "pipeline": []},
    )
    .await;
    run(db, doc! {"create": "made", "collation": {"locale": "de"}}).await;
    db.collection("made")
        .insert_one(doc! {"_id": "a"})
        .await
        .unwrap();
    run(db, doc! {"drop": "doomed"}).await;
    db.collection("doomed")
        .insert_one(doc! {"_id": "again"})
        .await
        .unwrap();
    rename(db, "items", "covered").await;
    let covered = db.collection::<Document>("covered");
    covered.delete_one(doc! {"_id": 1}).await.unwrap();
    let out = [
        doc! {"$match": {"quantity": {"$lt": 3}}},
        doc! {"$out": "few"},
    ];
    orders.aggregate(out).await.unwrap();
    // Into the selection, and out of it.
    rename(db, "hidden", "shown").await;
    let shown = db.collection::<Document>("shown");
    shown.insert_one(order(1000)).await.unwrap();
    rename(db, "few", "hidden").await;
    run(db, doc! {"convertToCapped": "bounded", "size": 1 << 16}).await;
    run(db, doc! {"drop": "series"}).await;
    let series = doc! {"timeField": "t", "metaField": "meta"};
    run(db, doc! {"create": "series", "timeseries": series}).await;
    change_kinds(db, 1000).await;
}
