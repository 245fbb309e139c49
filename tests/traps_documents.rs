//! Odd documents arrive byte for byte, whichever way they come.

mod common;

use bson::{Document, doc};
use common::corpus::{Odd, stored_by};
use common::raw::{
    self, Fields, assert_same_bytes, element, first, insert, literal, read, replacement, run,
    run_in, set, update,
};
use common::servers::shared;
use common::{ask_to_verify, assert_equal, caught_up, config, mirroring, wait_for};
use futures::{AsyncReadExt, AsyncWriteExt};
use mongodb::{Client, Database};
use mongomirror::engine::progress::Phase;
use mongomirror::runner::MirrorHandle;
use testbed::Version;

on_both_versions!(
    odd_documents_arrive_by_copy_insert_replace_update_and_transaction,
    odd_documents_arrive_when_they_are_read_again,
    odd_documents_are_compared_and_put_right,
    odd_documents_are_compared_when_the_history_is_lost,
    odd_documents_are_repaired_byte_for_byte,
    documents_of_sixteen_mebibytes_arrive,
    documents_that_just_fill_a_batch_of_the_copy_arrive,
    duplicate_names_do_not_end_the_server,
    large_transactions_on_odd_documents_arrive,
    files_arrive,
    encrypted_collections_arrive,
);

/// Pads documents so that a change of one field is logged as a delta and not as a replacement.
fn padded(document: &[u8]) -> Vec<u8> {
    let padding = Fields::new().string("padding", "p".repeat(600));
    Fields::within(document).and(&padding).finish()
}

/// Only the `_id`, and something else.
fn seed(document: &[u8]) -> Vec<u8> {
    let (kind, name, value) = first(document);
    let seed = Fields::new().raw(kind, name, value);
    seed.int("old", 1).finish()
}

/// Writes that store a document as it is, in place of another or not.
fn writes(collection: &str, odd: &Odd, in_place: bool) -> Vec<Fields> {
    let document = &odd.document;
    let zero = odd.has_zero_timestamp();
    if (zero || in_place && odd.has_dollar_name()) && !odd.has_duplicate_name() {
        return vec![update(collection, document, &literal(document), true)];
    }
    let mut writes = match (in_place, odd.has_dollar_name()) {
        (false, _) => vec![insert(collection, [document])],
        (true, false) => vec![update(collection, document, &replacement(document), false)],
        // A pipeline would end the server, and nothing else can replace by this.
        (true, true) => vec![delete(collection, document), insert(collection, [document])],
    };
    if zero {
        // It was set to the current time.
        writes.push(update(collection, document, &set("t", 0x11, [0; 8]), false));
    }
    writes
}

fn delete(collection: &str, document: &[u8]) -> Fields {
    let (kind, _, value) = first(document);
    let one = Fields::new().document("q", &Fields::new().raw(kind, "_id", value));
    Fields::new()
        .string("delete", collection)
        .documents("deletes", [&one.int("limit", 1).finish()])
}

/// Stores a document as it is.
async fn store(db: &Database, collection: &str, odd: &Odd) {
    for write in writes(collection, odd, false) {
        let outcome = run(db, write).await;
        outcome.unwrap_or_else(|code| panic!("{} is refused: {code}", odd.name));
    }
}

/// Replaces what is there by the document as it is.
async fn replace(db: &Database, collection: &str, odd: &Odd) {
    for write in writes(collection, odd, true) {
        let outcome = run(db, write).await;
        outcome.unwrap_or_else(|code| panic!("{} cannot replace: {code}", odd.name));
    }
}

/// Sets a field to every odd value, and returns how many the source took.
async fn set_all(db: &Database, collection: &str, path: &str, corpus: &[Odd]) -> usize {
    let mut taken = 0;
    for odd in corpus {
        let Some((kind, _, value)) = element(&odd.document, 1) else {
            continue;
        };
        for (kind, value) in [(kind, value), (0x03, odd.document.clone())] {
            let change = update(collection, &odd.document, &set(path, kind, &value), false);
            // The server refuses some as a value of $set (a $ name at the top, too deep).
            taken += usize::from(run(db, change).await.is_ok());
        }
    }
    taken
}

/// Everything that can bring odd documents along, into collections of their own.
async fn every_way(version: Version, internal_delta: bool) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let corpus = stored_by(&client).await;
    let name = format!("ways_{internal_delta}");
    let (source, target) = (
        client.database(&name),
        client.database(&format!("{name}_backup")),
    );
    for odd in &corpus {
        let padded = Odd {
            document: padded(&odd.document),
            ..odd.clone()
        };
        store(&source, "copied", odd).await;
        store(&source, "touched", odd).await;
        store(&source, "touched_padded", &padded).await;
        store(&source, "deleted", odd).await;
        let seed = seed(&odd.document);
        run(&source, insert("replaced", [&seed])).await.unwrap();
        let more = Fields::of(&doc! {"v": 0, "n": {"v": 0, "w": 1}, "l": [1, 2, 3]});
        let seed = self::padded(&Fields::within(&seed).and(&more).finish());
        for collection in ["set", "set_nested", "set_in_array"] {
            run(&source, insert(collection, [&seed])).await.unwrap();
        }
    }
    let mut config = config(&set.uri(), &set.uri(), &name);
    config.limits.internal_delta = internal_delta;
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    for odd in &corpus {
        store(&source, "inserted", odd).await;
        replace(&source, "replaced", odd).await;
        for collection in ["touched", "touched_padded"] {
            let other = update(collection, &odd.document, &set_int("touched", 1), false);
            run(&source, other).await.unwrap();
        }
        run(&source, delete("deleted", &odd.document))
            .await
            .unwrap();
    }
    assert!(set_all(&source, "set", "v", &corpus).await > corpus.len());
    assert!(set_all(&source, "set_nested", "n.v", &corpus).await > corpus.len());
    assert!(set_all(&source, "set_in_array", "l.1", &corpus).await > corpus.len());
    in_transaction(&client, &source, &corpus).await;
    caught_up(&mirror, &client).await;
    for collection in ["copied", "inserted", "replaced", "transacted", "touched"] {
        let documents = assert_same_bytes(&source, &target, collection).await;
        assert_eq!(documents, corpus.len(), "{collection}");
    }
    // What the source holds really is the corpus, so the comparison means something.
    let stored = read(&source, "replaced").await;
    for odd in &corpus {
        assert!(stored.contains(&odd.document), "{} was changed", odd.name);
    }
    assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    assert_eq!((last.totals.repaired, last.totals.retries), (0, 0));
}

fn set_int(name: &str, value: i32) -> Fields {
    set(name, 0x10, value.to_le_bytes())
}

/// All documents in one transaction: inserted, half of them then changed.
async fn in_transaction(client: &Client, db: &Database, corpus: &[Odd]) {
    run(db, Fields::new().string("create", "transacted"))
        .await
        .unwrap();
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for (place, odd) in corpus.iter().enumerate() {
        for write in writes("transacted", odd, false) {
            run_in(db, write, &mut session).await.unwrap();
        }
        if place % 2 == 0 {
            let touch = update("transacted", &odd.document, &set_int("touched", 1), false);
            run_in(db, touch, &mut session).await.unwrap();
        }
    }
    session.commit_transaction().await.unwrap();
}

async fn odd_documents_arrive_by_copy_insert_replace_update_and_transaction(version: Version) {
    every_way(version, true).await;
}

async fn odd_documents_arrive_when_they_are_read_again(version: Version) {
    every_way(version, false).await;
}

/// From one version to the other. What the other one does not store is left out, and told.
async fn odd_documents_are_compared_and_put_right(version: Version) {
    let other = match version {
        Version::V6_0_5 => Version::V6_0_27,
        Version::V6_0_27 => Version::V6_0_5,
    };
    let (from, to) = (shared(version).await, shared(other).await);
    let client = from.client().await.unwrap();
    let taken = stored_by(&to.client().await.unwrap()).await;
    let is_taken = |odd: &Odd| taken.iter().any(|one| one.document == odd.document);
    let (corpus, refused): (Vec<Odd>, Vec<Odd>) =
        stored_by(&client).await.into_iter().partition(is_taken);
    let source = client.database("compared");
    let target = to.client().await.unwrap().database("compared_backup");
    for odd in &corpus {
        store(&source, "odd", odd).await;
    }
    let mirror = MirrorHandle::start(config(&from.uri(), &to.uri(), "compared"));
    let verified = async |what, differences: usize| {
        let now = wait_for(&mirror, what, |now| {
            let last = now.verification.last.as_ref();
            last.is_some_and(|last| last.differences == differences as u64)
        });
        let last = now.await.verification.last.unwrap();
        assert_eq!(last.repaired, last.differences, "{last:?}");
    };
    verified("nothing differs", 0).await;
    let there = target.collection::<Document>("odd");
    for (what, differences) in [("all is missing", corpus.len()), ("nothing differs", 0)] {
        if differences > 0 {
            there.delete_many(doc! {}).await.unwrap();
        }
        drop(ask_to_verify(&mirror).await);
        verified(what, differences).await;
        caught_up(&mirror, &client).await;
        let documents = assert_same_bytes(&source, &target, "odd").await;
        assert_eq!(documents, corpus.len());
    }
    // By the stream, and by a copy.
    for odd in &refused {
        store(&source, "streamed", odd).await;
    }
    let noted = async |mirror: &MirrorHandle, count: usize| {
        wait_for(mirror, "what is refused is noted", |now| {
            now.quarantine.len() == count && now.phase == Phase::Mirroring
        })
        .await;
    };
    noted(&mirror, refused.len()).await;
    mirror.stop().await;
    for name in ["compared_backup", "mongomirror"] {
        target.client().database(name).drop().await.unwrap();
    }
    let mirror = MirrorHandle::start(config(&from.uri(), &to.uri(), "compared"));
    noted(&mirror, refused.len()).await;
    assert_same_bytes(&source, &target, "odd").await;
    mirror.stop().await;
}

/// The mirror cannot go on where it was, and compares.
async fn odd_documents_are_compared_when_the_history_is_lost(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let corpus = stored_by(&client).await;
    let (source, target) = (client.database("lost"), client.database("lost_backup"));
    for odd in &corpus {
        for name in ["gone", "changed", "kept"] {
            store(&source, name, odd).await;
        }
    }
    let config = config(&set.uri(), &set.uri(), "lost");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    let never = bson::Timestamp {
        time: u32::MAX,
        increment: 1,
    };
    common::ddl::set_position(&client, &config, &doc! {"time": never, "at": never}).await;
    let there = target.collection::<Document>("gone");
    there.delete_many(doc! {}).await.unwrap();
    for odd in &corpus {
        let other = Fields::within(&odd.document).int("other", 1).finish();
        let changed = Odd {
            document: other,
            ..odd.clone()
        };
        replace(&source, "changed", &changed).await;
        store(&source, "new", odd).await;
    }
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "compared", |now| now.totals.resyncs == 1).await;
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    for collection in ["gone", "changed", "kept", "new"] {
        let documents = assert_same_bytes(&source, &target, collection).await;
        assert_eq!(documents, corpus.len(), "{collection}");
    }
    mirror.stop().await;
}

async fn odd_documents_are_repaired_byte_for_byte(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let corpus = stored_by(&client).await;
    let (source, target) = (
        client.database("repaired"),
        client.database("repaired_backup"),
    );
    for odd in &corpus {
        store(&source, "gone", odd).await;
        store(&source, "changed", odd).await;
    }
    source.create_collection("taken").await.unwrap();
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "repaired"));
    mirroring(&mirror).await;
    // Somebody else was at the target.
    for name in ["gone", "changed"] {
        let there = target.collection::<Document>(name);
        there.delete_many(doc! {}).await.unwrap();
    }
    for odd in &corpus {
        let there = Fields::within(&seed(&odd.document)).finish();
        run(&target, insert("taken", [&there])).await.unwrap();
    }
    for odd in &corpus {
        store(&source, "taken", odd).await;
        let touch = update("gone", &odd.document, &set_int("touched", 1), false);
        run(&source, touch).await.unwrap();
        replace(
            &source,
            "changed",
            &Odd {
                document: Fields::within(&odd.document).int("other", 1).finish(),
                ..odd.clone()
            },
        )
        .await;
    }
    caught_up(&mirror, &client).await;
    for collection in ["gone", "changed", "taken"] {
        let documents = assert_same_bytes(&source, &target, collection).await;
        assert_eq!(documents, corpus.len());
    }
    let last = mirror.stop().await;
    assert!(last.totals.repaired > 0, "it was noticed");
}

/// A document of exactly this size.
fn sized(id: i32, size: usize, more: &Fields) -> Vec<u8> {
    let rest = Fields::new().int("_id", id).and(more).finish().len();
    // Type, name and its end, length and end of the string.
    let text = "x".repeat(size - rest - (1 + 5 + 4 + 1));
    let document = Fields::new()
        .int("_id", id)
        .and(more)
        .string("text", text)
        .finish();
    assert_eq!(document.len(), size);
    document
}

const MOST: usize = 16 << 20;

async fn documents_of_sixteen_mebibytes_arrive(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("large"), client.database("large_backup"));
    let plain = Fields::new().int("a", 1);
    let zero = Fields::new().int("a", 1).raw(0x11, "t", [0; 8]);
    let put = async |db: &Database, document: &[u8]| {
        let put = update("c", document, &literal(document), true);
        run(db, put).await.unwrap();
    };
    put(&source, &sized(0, MOST, &plain)).await;
    put(&source, &sized(1, MOST, &zero)).await;
    let seed = Fields::new().int("_id", 4).finish();
    run(&source, insert("c", [&seed])).await.unwrap();
    for internal_delta in [true, false] {
        let mut config = config(&set.uri(), &set.uri(), "large");
        config.limits.internal_delta = internal_delta;
        let mirror = MirrorHandle::start(config);
        mirroring(&mirror).await;
        let large = sized(2, MOST, &plain);
        let delete = doc! {"delete": "c", "deletes": [{"q": {"_id": 2}, "limit": 1}]};
        source.run_command(delete).await.unwrap();
        run(&source, insert("c", [&large])).await.unwrap();
        put(&source, &sized(3, MOST, &zero)).await;
        let replaced = sized(4, MOST, &plain);
        run(
            &source,
            update("c", &replaced, &replacement(&replaced), false),
        )
        .await
        .unwrap();
        // Of a full document nothing can grow.
        for id in 0..4 {
            let change =
                doc! {"update": "c", "updates": [{"q": {"_id": id}, "u": {"$inc": {"a": 1}}}]};
            source.run_command(change).await.unwrap();
        }
        caught_up(&mirror, &client).await;
        assert_eq!(assert_same_bytes(&source, &target, "c").await, 5);
        mirror.stop().await;
    }
    source.drop().await.unwrap();
    target.drop().await.unwrap();
}

async fn documents_that_just_fill_a_batch_of_the_copy_arrive(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("skewed"), client.database("skewed_backup"));
    // Many small documents make the lanes ask for thousands at once; then come large ones, whose
    // sizes add up to exactly what a reply may hold.
    let small: Vec<Vec<u8>> = (0..20_000)
        .map(|id| Fields::new().int("_id", id).finish())
        .collect();
    run(&source, insert("c", &small)).await.unwrap();
    for id in 20_000..20_003 {
        let half = sized(id, MOST / 2, &Fields::new());
        run(&source, insert("c", [&half])).await.unwrap();
    }
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "skewed"));
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_eq!(assert_same_bytes(&source, &target, "c").await, 20_003);
    mirror.stop().await;
    source.drop().await.unwrap();
    target.drop().await.unwrap();
}

async fn large_transactions_on_odd_documents_arrive(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let corpus = stored_by(&client).await;
    let (source, target) = (client.database("pieces"), client.database("pieces_backup"));
    for odd in &corpus {
        let padded = padded(&odd.document);
        run(&source, insert("c", [&padded])).await.unwrap();
    }
    let mut config = config(&set.uri(), &set.uri(), "pieces");
    // So little that the transaction is passed on piece by piece.
    config.limits.memory_bytes = 256 << 10;
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for round in 0..4_i32 {
        for odd in &corpus {
            // A new field, a changed one, and one that goes and comes back at the end.
            for change in [
                doc! {"$set": {format!("new {round}"): 1}},
                doc! {"$set": {"new 0": {"round": round}}},
                doc! {"$unset": {"padding": 1}},
                doc! {"$set": {"padding": "p".repeat(600)}},
            ] {
                let change = update("c", &odd.document, &raw::operators(&change.into()), false);
                run_in(&source, change, &mut session).await.unwrap();
            }
        }
    }
    session.commit_transaction().await.unwrap();
    caught_up(&mirror, &client).await;
    assert_eq!(assert_same_bytes(&source, &target, "c").await, corpus.len());
    // And what follows is taken in the usual way.
    for odd in &corpus {
        let change = update("c", &odd.document, &set_int("last", 1), false);
        run(&source, change).await.unwrap();
    }
    caught_up(&mirror, &client).await;
    assert_same_bytes(&source, &target, "c").await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

async fn files_arrive(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("files"), client.database("files_backup"));
    let upload = async |name: &str, bytes: usize| {
        let bucket = source.gridfs_bucket(None);
        let mut file = bucket.open_upload_stream(name).await.unwrap();
        file.write_all(&vec![7; bytes]).await.unwrap();
        file.close().await.unwrap();
        file.id().clone()
    };
    upload("copied", 1_000_000).await;
    let gone = upload("gone", 700_000).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "files"));
    mirroring(&mirror).await;
    let later = upload("later", 600_001).await;
    source.gridfs_bucket(None).delete(gone).await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    let mut bytes = Vec::new();
    let bucket = target.gridfs_bucket(None);
    let mut file = bucket.open_download_stream(later).await.unwrap();
    file.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes.len(), 600_001);
    mirror.stop().await;
}

/// The server lets nobody write to such a collection who has no keys, unless validation is
/// bypassed.
async fn encrypted_collections_arrive(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("secret"), client.database("secret_backup"));
    let create = |name: &str| {
        let key = bson::Binary {
            subtype: bson::spec::BinarySubtype::Uuid,
            bytes: vec![7; 16],
        };
        let fields = [
            doc! {"path": "ssn", "bsonType": "string", "keyId": key, "queries": {"queryType": "equality"}},
        ];
        doc! {"create": name, "encryptedFields": {
            "escCollection": format!("enxcol_.{name}.esc"),
            "eccCollection": format!("enxcol_.{name}.ecc"),
            "ecocCollection": format!("enxcol_.{name}.ecoc"),
            "fields": fields,
        }}
    };
    let cipher = |n: i32| bson::Binary {
        subtype: bson::spec::BinarySubtype::Encrypted,
        bytes: [vec![7], n.to_le_bytes().to_vec(), vec![9; 60]].concat(),
    };
    let person = |n: i32| doc! {"_id": n, "ssn": cipher(n), "__safeContent__": [cipher(n + 1000)], "pad": "p".repeat(300)};
    let write = async |command: Document| {
        let mut command = command;
        command.insert("bypassDocumentValidation", true);
        run(&source, Fields::of(&command)).await.unwrap();
    };
    let people: Vec<Document> = (0..5).map(person).collect();
    source.run_command(create("copied")).await.unwrap();
    write(doc! {"insert": "copied", "documents": people}).await;
    write(doc! {"insert": "enxcol_.copied.esc", "documents": [{"_id": cipher(1)}]}).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "secret"));
    mirroring(&mirror).await;
    source.run_command(create("later")).await.unwrap();
    for name in ["copied", "later"] {
        write(doc! {"insert": name, "documents": [person(10), person(11), person(12)]}).await;
        let change = doc! {"$set": {"ssn": cipher(50)}, "$push": {"__safeContent__": cipher(51)}};
        write(doc! {"update": name, "updates": [{"q": {"_id": 10}, "u": change}]}).await;
        write(doc! {"update": name, "updates": [{"q": {"_id": 11}, "u": person(11)}, {"q": {"_id": 12}, "u": {"a": 1}}]}).await;
        source
            .run_command(doc! {"delete": name, "deletes": [{"q": {"_id": 11}, "limit": 1}]})
            .await
            .unwrap();
    }
    let progress = caught_up(&mirror, &client).await;
    assert!(
        progress.unsupported.is_empty(),
        "{:?}",
        progress.unsupported
    );
    assert_equal(&source, &target).await;
    assert_eq!(assert_same_bytes(&source, &target, "copied").await, 7);
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

/// Process id of the server: another one after a crash.
async fn process_id(client: &Client) -> i64 {
    let status = doc! {"serverStatus": 1};
    let reply = client.database("admin").run_command(status).await.unwrap();
    reply.get_i64("pid").unwrap()
}

async fn duplicate_names_do_not_end_the_server(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let before = process_id(&client).await;
    let mut duplicates = stored_by(&client).await;
    duplicates.retain(Odd::has_duplicate_name);
    assert!(duplicates.len() > 4);
    let (source, target) = (client.database("twice"), client.database("twice_backup"));
    for odd in &duplicates {
        for collection in ["c", "padded"] {
            run(&source, insert(collection, [&seed(&odd.document)]))
                .await
                .unwrap();
        }
    }
    for internal_delta in [true, false] {
        let mut config = config(&set.uri(), &set.uri(), "twice");
        config.limits.internal_delta = internal_delta;
        let mirror = MirrorHandle::start(config);
        mirroring(&mirror).await;
        for odd in &duplicates {
            for (collection, document) in [
                ("c", odd.document.clone()),
                ("padded", padded(&odd.document)),
            ] {
                let odd = Odd {
                    document: document.clone(),
                    ..odd.clone()
                };
                replace(&source, collection, &odd).await;
                for change in [
                    doc! {"$set": {"new": 1}},
                    doc! {"$set": {"new": 2}},
                    doc! {"$unset": {"new": 1}},
                    doc! {"$set": {"x.y": 1}},
                ] {
                    let change = raw::operators(&change.into());
                    run(&source, update(collection, &document, &change, false))
                        .await
                        .unwrap();
                }
            }
        }
        caught_up(&mirror, &client).await;
        for collection in ["c", "padded"] {
            assert_same_bytes(&source, &target, collection).await;
        }
        mirror.stop().await;
    }
    assert_eq!(process_id(&client).await, before, "the server has crashed");
}
