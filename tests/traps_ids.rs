//! Ids of every type, and ids that are equal although their bytes differ.

mod common;

use bson::{Document, doc};
use common::corpus::{Raw, equal_numbers, equal_texts, every_id};
use common::gate::{start_held, start_held_within_a_range};
use common::raw::{Fields, assert_same_bytes, insert, operators, replacement, run, run_in, update};
use common::servers::shared;
use common::{assert_equal, caught_up, config, fresh_seed, mirroring};
use mongodb::{Client, ClientSession, Database};
use mongomirror::runner::MirrorHandle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testbed::Version;

on_both_versions!(
    ids_of_all_types_in_one_collection_arrive_during_the_copy_and_after,
    ids_of_all_types_in_collections_of_one_range_arrive_during_the_copy_and_after,
    ids_that_change_their_type_in_a_clustered_collection_arrive,
    ids_that_change_their_type_arrive_one_at_a_time,
    ids_that_change_their_type_arrive_in_one_batch,
    ids_that_change_their_type_arrive_when_documents_are_read_again,
    ids_that_change_their_type_arrive_in_transactions,
    ids_that_change_their_type_while_they_are_copied_arrive,
    ids_that_change_their_type_beside_a_repaired_document_arrive,
    ids_under_a_collation_arrive,
    ids_under_a_collation_beside_a_repaired_document_arrive,
    long_ids_are_no_bounds_of_ranges,
);

fn with_id((kind, value): &Raw, fields: &Fields) -> Vec<u8> {
    Fields::new().raw(*kind, "_id", value).and(fields).finish()
}

fn delete(collection: &str, (kind, value): &Raw) -> Fields {
    let query = Fields::new().raw(*kind, "_id", value);
    let statement = Fields::new().document("q", &query).int("limit", 1);
    Fields::new()
        .string("delete", collection)
        .documents("deletes", [&statement.finish()])
}

/// Ids of every type, and so many of the ordinary types that these are cut between them.
fn mixed() -> Vec<Raw> {
    let mut ids = every_id();
    for n in 0..60_u8 {
        ids.push((0x10, (i32::from(n) - 30).to_le_bytes().to_vec()));
        ids.push((0x12, (1000 + i64::from(n)).to_le_bytes().to_vec()));
        ids.push((0x01, (f64::from(n) + 0.25).to_le_bytes().to_vec()));
        ids.push((0x02, common::raw::string(format!("id {n}"))));
        ids.push((0x07, vec![n + 1; 12]));
        ids.push((0x09, (i64::from(n) * 1000).to_le_bytes().to_vec()));
        ids.push((0x05, common::raw::binary(4, &[n + 10; 16])));
    }
    ids.retain(|id| id != &(0x10, 0_i32.to_le_bytes().to_vec()));
    ids
}

/// Changes all of these documents: some in place, some as a whole, some go and come back.
async fn change(db: &Database, ids: &[Raw], round: i32) {
    for (place, id) in ids.iter().enumerate() {
        let touch = operators(&doc! {"$set": {"round": round, "new": {"x": round}}}.into());
        let whole = with_id(id, &Fields::new().int("replaced", round));
        let changes = match place % 4 {
            0 => vec![update("c", &whole, &touch, false)],
            1 => vec![update("c", &whole, &replacement(&whole), false)],
            2 => vec![delete("c", id), insert("c", [&whole])],
            _ if round == 0 => vec![delete("c", id)],
            _ => vec![insert("c", [&whole])],
        };
        for change in changes {
            let reply = run(db, change).await.unwrap();
            assert_eq!(reply.get_i32("n").unwrap(), 1, "{id:?}");
        }
    }
}

async fn ids_of_all_types_in_one_collection_arrive_during_the_copy_and_after(version: Version) {
    mixed_ids(version, "mixed", doc! {}).await;
}

async fn ids_of_all_types_in_collections_of_one_range_arrive_during_the_copy_and_after(
    version: Version,
) {
    mixed_ids(version, "mixed_clustered", clustered()).await;
    mixed_ids(version, "mixed_collated", caseless()).await;
}

async fn mixed_ids(version: Version, name: &str, options: Document) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (
        client.database(name),
        client.database(&format!("{name}_backup")),
    );
    let is_cut = options.is_empty();
    let mut create = doc! {"create": "c"};
    create.extend(options);
    source.run_command(create).await.unwrap();
    let padding = Fields::new()
        .int("round", -1)
        .string("pad", "p".repeat(100));
    let mut ids = Vec::new();
    for id in mixed() {
        // Under a collation some are equal to others.
        let document = with_id(&id, &padding);
        match run(&source, insert("c", [&document])).await {
            Ok(_) => ids.push(id),
            // And what is no text cannot be compared.
            Err(code) => assert!(!is_cut && [201, 11000].contains(&code), "{code}"),
        }
    }
    let mut config = config(&set.uri(), &set.uri(), name);
    config.limits.range_bytes = 1500;
    config.limits.copy_lanes = 1;
    let (mirror, gate) = if is_cut {
        start_held(&config, &client).await
    } else {
        fill_more(&source).await;
        start_held_within_a_range(&config, &client).await
    };
    assert_eq!(gate.ranges > 10, is_cut, "{} ranges are left", gate.ranges);
    change(&source, &ids, 0).await;
    gate.open().await;
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    let more = if is_cut { 0 } else { MORE };
    let left = assert_same_bytes(&source, &target, "c").await;
    assert_eq!(left, ids.len() - ids.len() / 4 + more);
    change(&source, &ids, 1).await;
    caught_up(&mirror, &client).await;
    let all = assert_same_bytes(&source, &target, "c").await;
    assert_eq!(all, ids.len() + more);
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

/// So many, and so large, that a range with them is read and written in several batches.
const MORE: usize = 60;

async fn fill_more(db: &Database) {
    let more: Vec<Vec<u8>> = (0..MORE)
        .map(|n| {
            let id = Fields::new().string("_id", format!("more {n}"));
            id.string("pad", "p".repeat(200_000)).finish()
        })
        .collect();
    for chunk in more.chunks(20) {
        run(db, insert("c", chunk)).await.unwrap();
    }
}

/// Random writes to families of ids, of which each exists in one form at a time.
struct Wanderer {
    db: Database,
    families: Vec<Vec<Raw>>,
    random: StdRng,
    round: i32,
}

impl Wanderer {
    fn new(db: &Database, families: Vec<Vec<Raw>>) -> Self {
        let seed = fresh_seed();
        eprintln!("seed {seed}");
        Self {
            db: db.clone(),
            families,
            random: StdRng::seed_from_u64(seed),
            round: 0,
        }
    }

    /// One write to one of the families, in any of its forms. It may be refused: a form can be
    /// there already, or must not be changed into another.
    fn write(&mut self, family: usize) -> Fields {
        self.round += 1;
        let forms = &self.families[family];
        let form = |random: &mut StdRng| forms[random.random_range(0..forms.len())].clone();
        let (one, other) = (form(&mut self.random), form(&mut self.random));
        let fields = Fields::new().int("round", self.round);
        let fields = fields.string("pad", "p".repeat(self.random.random_range(0..200)));
        let (whole, changed) = (with_id(&one, &fields), with_id(&other, &fields));
        match self.random.random_range(0..10) {
            0..2 => insert("c", [&whole]),
            2..4 => delete("c", &one),
            4..8 => update("c", &whole, &replacement(&changed), false),
            _ => {
                let set = doc! {"$set": {"round": self.round, "new": {"n": self.round}}};
                update("c", &whole, &operators(&set.into()), false)
            }
        }
    }

    /// Everything exists once.
    async fn fill(&mut self) {
        for forms in &self.families {
            let first = with_id(&forms[0], &Fields::new().string("pad", "p".repeat(300)));
            run(&self.db, insert("c", [&first])).await.unwrap();
        }
    }

    /// So many writes to each family.
    async fn wander(&mut self, writes: usize) {
        let mut done = 0;
        for family in 0..self.families.len() {
            for _ in 0..writes {
                let write = self.write(family);
                let reply = run(&self.db, write).await;
                done +=
                    usize::from(reply.is_ok_and(|reply| reply.get_i32("n").is_ok_and(|n| n == 1)));
            }
        }
        assert!(done > self.families.len() / 2, "{done} writes");
    }

    /// As [`Self::wander`], a transaction for each family.
    async fn wander_in_transactions(&mut self, session: &mut ClientSession, writes: usize) {
        for family in 0..self.families.len() {
            session.start_transaction().await.unwrap();
            let mut aborted = false;
            for _ in 0..writes {
                let write = self.write(family);
                // An error ends a transaction.
                aborted |= run_in(&self.db, write, session).await.is_err();
                if aborted {
                    break;
                }
            }
            if aborted {
                session.abort_transaction().await.unwrap();
            } else {
                session.commit_transaction().await.unwrap();
            }
        }
    }
}

/// How the writes meet the mirror.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// While it runs.
    Live,
    /// While it is stopped, so that they are one batch.
    Backlog,
    /// The same, and somebody has removed another document from the target.
    BesideRepair,
    /// In transactions.
    Transactions,
    /// While the range they are in is being copied.
    Copying,
}

async fn wandering(
    version: Version,
    name: &str,
    families: Vec<Vec<Raw>>,
    options: Document,
    how: How,
    internal_delta: bool,
) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (
        client.database(name),
        client.database(&format!("{name}_backup")),
    );
    let mut create = doc! {"create": "c"};
    create.extend(options);
    source.run_command(create).await.unwrap();
    let other = Fields::new().string("_id", "other").finish();
    run(&source, insert("c", [&other])).await.unwrap();
    let mut wanderer = Wanderer::new(&source, families);
    wanderer.fill().await;
    let mut config = config(&set.uri(), &set.uri(), name);
    config.limits.internal_delta = internal_delta;
    if how == How::Copying {
        fill_more(&source).await;
        let (mirror, gate) = start_held_within_a_range(&config, &client).await;
        wanderer.wander(8).await;
        gate.open().await;
        mirroring(&mirror).await;
        caught_up(&mirror, &client).await;
        assert_same_bytes(&source, &target, "c").await;
        mirror.stop().await;
        return;
    }
    let mut mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    for _ in 0..3 {
        match how {
            How::Backlog | How::BesideRepair => {
                mirror.stop().await;
                if how == How::BesideRepair {
                    let copies = target.collection::<Document>("c");
                    copies.delete_one(doc! {"_id": "other"}).await.unwrap();
                    let touch = operators(&doc! {"$inc": {"touched": 1}}.into());
                    run(&source, update("c", &other, &touch, false))
                        .await
                        .unwrap();
                }
                wanderer.wander(8).await;
                mirror = MirrorHandle::start(config.clone());
            }
            How::Transactions => {
                let mut session = client.start_session().await.unwrap();
                wanderer.wander_in_transactions(&mut session, 4).await;
            }
            _ => wanderer.wander(8).await,
        }
        caught_up(&mirror, &client).await;
        assert_same_bytes(&source, &target, "c").await;
    }
    assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    // Of what is read again anyway nobody can tell that it was missing.
    assert!(last.totals.repaired == 0 || how == How::BesideRepair);
}

async fn numbers(version: Version, name: &str, how: How, internal_delta: bool) {
    wandering(version, name, equal_numbers(), doc! {}, how, internal_delta).await;
}

async fn ids_that_change_their_type_arrive_one_at_a_time(version: Version) {
    numbers(version, "ids_live", How::Live, true).await;
}

async fn ids_that_change_their_type_arrive_in_one_batch(version: Version) {
    numbers(version, "ids_batch", How::Backlog, true).await;
}

async fn ids_that_change_their_type_arrive_when_documents_are_read_again(version: Version) {
    numbers(version, "ids_refetch", How::Backlog, false).await;
}

async fn ids_that_change_their_type_arrive_in_transactions(version: Version) {
    numbers(version, "ids_transactions", How::Transactions, true).await;
}

async fn ids_that_change_their_type_while_they_are_copied_arrive(version: Version) {
    numbers(version, "ids_copying", How::Copying, true).await;
}

async fn ids_that_change_their_type_beside_a_repaired_document_arrive(version: Version) {
    numbers(version, "ids_repair", How::BesideRepair, true).await;
}

async fn ids_that_change_their_type_in_a_clustered_collection_arrive(version: Version) {
    for (name, how, internal_delta) in [
        ("clustered_live", How::Live, true),
        ("clustered_batch", How::Backlog, true),
        ("clustered_copying", How::Copying, true),
    ] {
        wandering(
            version,
            name,
            equal_numbers(),
            clustered(),
            how,
            internal_delta,
        )
        .await;
    }
}

fn clustered() -> Document {
    doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}}
}

fn caseless() -> Document {
    doc! {"collation": {"locale": "de", "strength": 2}}
}

async fn ids_under_a_collation_arrive(version: Version) {
    for (name, how, internal_delta) in [
        ("texts_live", How::Live, true),
        ("texts_batch", How::Backlog, true),
        ("texts_refetch", How::Backlog, false),
        ("texts_copying", How::Copying, true),
    ] {
        wandering(
            version,
            name,
            equal_texts(),
            caseless(),
            how,
            internal_delta,
        )
        .await;
    }
}

async fn ids_under_a_collation_beside_a_repaired_document_arrive(version: Version) {
    let how = How::BesideRepair;
    wandering(
        version,
        "texts_repair",
        equal_texts(),
        caseless(),
        how,
        true,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_comparisons_of_ids_would_lose_documents() {
    // Why ranges are asked for as they are: the server's own answers.
    let set = shared(Version::LATEST).await;
    let client: Client = set.client().await.unwrap();
    let db = client.database("brackets");
    let documents: Vec<Vec<u8>> = every_id()
        .iter()
        .map(|id| with_id(id, &Fields::new()))
        .collect();
    run(&db, insert("c", &documents)).await.unwrap();
    let ids = db.collection::<Document>("c");
    let count = async |filter: Document| ids.count_documents(filter).await.unwrap();
    let plain = count(doc! {"_id": {"$gte": 5}}).await + count(doc! {"_id": {"$lt": 5}}).await;
    let expr = count(doc! {"$expr": {"$gte": ["$_id", 5]}}).await
        + count(doc! {"$expr": {"$lt": ["$_id", 5]}}).await;
    assert_eq!(expr, documents.len() as u64);
    assert!(plain < expr / 2, "{plain} of {expr}");
}

/// All bounds together are noted at once, and would not fit into one command.
async fn long_ids_are_no_bounds_of_ranges(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("long"), client.database("long_backup"));
    let id = |n: i32| {
        (
            0x02,
            common::raw::string(format!("{n:04}{}", "x".repeat(100_000))),
        )
    };
    for first in (0..300).step_by(100) {
        let long = (first..first + 100).map(|n| with_id(&id(n), &Fields::new().int("n", n)));
        let short = (first..first + 100).map(|n| Fields::new().int("_id", n).finish());
        let documents: Vec<Vec<u8>> = long.chain(short).collect();
        run(&source, insert("c", &documents)).await.unwrap();
    }
    let mut config = config(&set.uri(), &set.uri(), "long");
    config.limits.range_bytes = 150_000;
    let mirror = MirrorHandle::start(config);
    let now = mirroring(&mirror).await;
    assert_eq!(now.initial_sync.unwrap().documents_copied, 600);
    run(&source, delete("c", &id(7))).await.unwrap();
    caught_up(&mirror, &client).await;
    assert_eq!(assert_same_bytes(&source, &target, "c").await, 599);
    mirror.stop().await;
    source.drop().await.unwrap();
    target.drop().await.unwrap();
}
