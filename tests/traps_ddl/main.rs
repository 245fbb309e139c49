//! Commands on collections and indexes, during the copy and after it, and met a second time.

mod changes;
mod collections;
#[path = "../common/mod.rs"]
mod common;
mod databases;
mod indexes;
mod kinds;
mod steps;
mod views;

use bson::{Document, doc};
use common::ddl::Step::{Fill, Run};
use common::ddl::{after_the_copy, case, cut_off, during_the_copy, names};
use common::servers::shared;
use common::{
    assert_equal, assert_equal_within, caught_up, config, fresh_seed, mirroring, wait_for,
};
use futures::StreamExt;
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use steps::{caseless, create, index};
use testbed::Version;

on_both_versions!(
    collections_made_and_dropped_after_the_copy,
    collections_made_and_dropped_during_the_copy,
    collections_renamed_after_the_copy,
    collections_renamed_during_the_copy,
    indexes_made_and_dropped_after_the_copy,
    indexes_made_and_dropped_during_the_copy,
    options_changed_after_the_copy,
    options_changed_during_the_copy,
    views_after_the_copy,
    views_during_the_copy,
    results_of_aggregations_after_the_copy,
    results_of_aggregations_during_the_copy,
    renames_across_databases_after_the_copy,
    renames_across_databases_during_the_copy,
    commands_in_transactions_after_the_copy,
    commands_in_transactions_during_the_copy,
    a_database_dropped_and_made_again_after_the_copy,
    a_database_dropped_and_made_again_during_the_copy,
    kinds_of_collections_after_the_copy,
    kinds_of_collections_during_the_copy,
    renames_over_the_edge_of_the_selection_after_the_copy,
    renames_over_the_edge_of_the_selection_during_the_copy,
    indexes_of_every_kind_are_copied,
    names_that_do_not_fit_on_the_target_are_told,
    the_result_of_an_aggregation_is_the_only_selected_collection,
);

async fn kinds_of_collections_after_the_copy(version: Version) {
    after_the_copy(version, "kinds", &kinds::special()).await;
}

async fn kinds_of_collections_during_the_copy(version: Version) {
    during_the_copy(version, "kinds_copy", &kinds::special()).await;
}

async fn renames_over_the_edge_of_the_selection_after_the_copy(version: Version) {
    after_the_copy(version, "edge", &kinds::over_the_edge()).await;
}

async fn renames_over_the_edge_of_the_selection_during_the_copy(version: Version) {
    during_the_copy(version, "edge_copy", &kinds::over_the_edge()).await;
}

async fn collections_made_and_dropped_after_the_copy(version: Version) {
    after_the_copy(version, "make", &collections::made_and_dropped()).await;
}

async fn collections_made_and_dropped_during_the_copy(version: Version) {
    during_the_copy(version, "make_copy", &collections::made_and_dropped()).await;
}

async fn collections_renamed_after_the_copy(version: Version) {
    after_the_copy(version, "rename", &collections::renamed()).await;
}

async fn collections_renamed_during_the_copy(version: Version) {
    during_the_copy(version, "rename_copy", &collections::renamed()).await;
}

async fn indexes_made_and_dropped_after_the_copy(version: Version) {
    after_the_copy(version, "index", &indexes::made_and_dropped()).await;
}

async fn indexes_made_and_dropped_during_the_copy(version: Version) {
    during_the_copy(version, "index_copy", &indexes::made_and_dropped()).await;
}

async fn options_changed_after_the_copy(version: Version) {
    after_the_copy(version, "modify", &changes::changed()).await;
}

async fn options_changed_during_the_copy(version: Version) {
    during_the_copy(version, "modify_copy", &changes::changed()).await;
}

async fn views_after_the_copy(version: Version) {
    after_the_copy(version, "view", &views::views()).await;
}

async fn views_during_the_copy(version: Version) {
    during_the_copy(version, "view_copy", &views::views()).await;
}

async fn results_of_aggregations_after_the_copy(version: Version) {
    after_the_copy(version, "aggregate", &views::results_of_aggregations()).await;
}

async fn results_of_aggregations_during_the_copy(version: Version) {
    during_the_copy(version, "aggregate_copy", &views::results_of_aggregations()).await;
}

async fn renames_across_databases_after_the_copy(version: Version) {
    after_the_copy(version, "across", &databases::renamed_across()).await;
}

async fn renames_across_databases_during_the_copy(version: Version) {
    during_the_copy(version, "across_copy", &databases::renamed_across()).await;
}

async fn commands_in_transactions_after_the_copy(version: Version) {
    after_the_copy(version, "transact", &databases::in_transactions()).await;
}

async fn commands_in_transactions_during_the_copy(version: Version) {
    during_the_copy(version, "transact_copy", &databases::in_transactions()).await;
}

async fn a_database_dropped_and_made_again_after_the_copy(version: Version) {
    after_the_copy(version, "dropped", &databases::dropped()).await;
}

async fn a_database_dropped_and_made_again_during_the_copy(version: Version) {
    during_the_copy(version, "dropped_copy", &databases::dropped()).await;
}

async fn indexes_of_every_kind_are_copied(version: Version) {
    let collated = [
        doc! {"key": {"text": 1}, "name": "inherited"},
        doc! {"key": {"text": 1, "n": 1}, "name": "simple", "collation": {"locale": "simple"}},
        doc! {"key": {"text": -1}, "name": "simple, unique", "unique": true, "collation": {"locale": "simple"}},
    ];
    let cases = [
        case(
            "all kinds",
            [Fill("c", 0, 60), index("c", indexes::of_every_kind())],
            [Fill("c", 100, 5)],
        ),
        case(
            "collated",
            [
                create("d", caseless()),
                Fill("d", 0, 60),
                index("d", collated),
            ],
            [
                // Equal under the collection's collation, not under the index's.
                Run(
                    doc! {"insert": "d", "documents": [{"_id": "x", "text": "same"}, {"_id": "y", "text": "SAME"}]},
                ),
            ],
        ),
    ];
    after_the_copy(version, "kinds_of_indexes", &cases).await;
}

async fn names_that_do_not_fit_on_the_target_are_told(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("names"), client.database("names_backup"));
    // What servers take, on the source and on the target.
    let (most, fits) = (255 - "names.".len(), 255 - "names_backup.".len());
    let long = |letter: &str, length: usize| letter.repeat(length);
    let rename = async |from: String, to: String| {
        let rename =
            doc! {"renameCollection": format!("names.{from}"), "to": format!("names.{to}")};
        client.database("admin").run_command(rename).await.unwrap();
    };
    let fill = async |name: &str| common::fill(&source, name, 0, 3).await;
    let mut told = Vec::new();
    fill(&long("a", fits)).await;
    fill(&long("b", fits + 1)).await;
    fill(&long("c", most)).await;
    let view = async |letter: &str| {
        let view = doc! {"create": long(letter, most), "viewOn": "f", "pipeline": []};
        source.run_command(view).await.unwrap();
    };
    view("d").await;
    told.extend([long("b", fits + 1), long("c", most), long("d", most)]);
    let config = config(&set.uri(), &set.uri(), "names");
    let mirror = MirrorHandle::start(config.clone());
    let told_now = async |mirror: &MirrorHandle, told: &[String]| {
        wait_for(mirror, "what is too long is told", |now| {
            let names = now.unsupported.iter().map(|one| one.name.clone());
            names.collect::<Vec<_>>() == told
        })
        .await;
        let ours = |name: &str| !told.iter().any(|one| one == name);
        caught_up(mirror, &client).await;
        assert_equal_within(&source, &target, ours).await;
    };
    mirroring(&mirror).await;
    told_now(&mirror, &told).await;
    // The same while it runs, and by renames.
    fill(&long("e", fits)).await;
    fill(&long("f", fits + 1)).await;
    view("g").await;
    let modify = doc! {"collMod": long("g", most), "viewOn": "a", "pipeline": []};
    source.run_command(modify).await.unwrap();
    fill("h").await;
    rename("h".into(), long("h", most)).await;
    rename(long("c", most), "c".into()).await;
    source
        .collection("f".repeat(fits + 1).as_str())
        .insert_one(doc! {"_id": "more"})
        .await
        .unwrap();
    told = vec![
        long("b", fits + 1),
        long("d", most),
        long("f", fits + 1),
        long("g", most),
        long("h", most),
    ];
    told_now(&mirror, &told).await;
    mirror.stop().await;
    let mirror = MirrorHandle::start(config);
    told_now(&mirror, &told).await;
    for name in &told {
        source.collection::<Document>(name).drop().await.unwrap();
    }
    told_now(&mirror, &[]).await;
    mirror.stop().await;
}

async fn the_result_of_an_aggregation_is_the_only_selected_collection(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("only"), client.database("only_backup"));
    common::fill(&source, "all", 0, 50).await;
    let mut config = config(&set.uri(), &set.uri(), "only");
    config.selection = Selection::new(vec!["result".into()], vec![]).unwrap();
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    for quantity in [3, 5] {
        // What fills the result does so under another name.
        let out = doc! {
            "aggregate": "all",
            "pipeline": [{"$match": {"quantity": {"$lt": quantity}}}, {"$out": "result"}],
            "cursor": {},
        };
        source.run_command(out).await.unwrap();
        caught_up(&mirror, &client).await;
        assert_eq!(names(&target).await, ["result"]);
        let copied = target.collection::<Document>("result");
        let original = source.collection::<Document>("result");
        let count = original.count_documents(doc! {}).await.unwrap();
        assert_eq!(copied.count_documents(doc! {}).await.unwrap(), count);
        assert!(count > 5);
    }
    source.collection::<Document>("all").drop().await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// Every table, by processes that die in the middle of it.
#[tokio::test(flavor = "multi_thread")]
async fn commands_of_every_kind_are_cut_off_anywhere() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let tables = [
        ("cut_make", collections::made_and_dropped()),
        ("cut_rename", collections::renamed()),
        ("cut_index", indexes::made_and_dropped()),
        ("cut_modify", changes::changed()),
        ("cut_view", views::views()),
        ("cut_aggregate", views::results_of_aggregations()),
        ("cut_across", databases::renamed_across()),
        ("cut_transact", databases::in_transactions()),
        ("cut_dropped", databases::dropped()),
        ("cut_kinds", kinds::special()),
        ("cut_edge", kinds::over_the_edge()),
    ];
    let all = tables.iter().zip(seed..).map(|((name, cases), seed)| {
        let version = Version::ALL[usize::try_from(seed % 2).unwrap()];
        cut_off(version, name, cases, seed)
    });
    let deaths: Vec<usize> = futures::stream::iter(all)
        .buffer_unordered(4)
        .collect()
        .await;
    assert!(deaths.iter().sum::<usize>() > 15, "{deaths:?}");
}
