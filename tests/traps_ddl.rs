//! Commands on collections and indexes, during the copy and after it, and met a second time.

mod common;

use bson::{Document, doc};
use common::ddl::Step::{DropDatabase, Fill, FillElsewhere, Refused, Rename, Run, Transaction};
use common::ddl::{Case, after_the_copy, after_the_copy_and_again, case, during_the_copy, names};
use common::servers::shared;
use common::{assert_equal, assert_equal_within, caught_up, config, mirroring, wait_for};
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
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

fn create(name: &str, options: Document) -> common::ddl::Step {
    let mut command = doc! {"create": name};
    command.extend(options);
    Run(command)
}

fn drop_collection(name: &str) -> common::ddl::Step {
    Run(doc! {"drop": name})
}

fn index(name: &str, indexes: impl IntoIterator<Item = Document>) -> common::ddl::Step {
    let indexes: Vec<Document> = indexes.into_iter().collect();
    Run(doc! {"createIndexes": name, "indexes": indexes})
}

fn modify(name: &str, changes: Document) -> common::ddl::Step {
    let mut command = doc! {"collMod": name};
    command.extend(changes);
    Run(command)
}

fn caseless() -> Document {
    doc! {"collation": {"locale": "de", "strength": 2}}
}

/// Options of every kind, as `create` takes them.
fn options() -> Vec<(&'static str, Document)> {
    vec![
        ("plain", doc! {}),
        ("collated", caseless()),
        (
            "validated",
            doc! {"validator": {"n": {"$type": "string"}}, "validationLevel": "moderate", "validationAction": "error"},
        ),
        (
            "warned",
            doc! {"validator": {"$jsonSchema": {"required": ["none"]}}, "validationAction": "warn"},
        ),
        (
            "imaged",
            doc! {"changeStreamPreAndPostImages": {"enabled": true}},
        ),
        (
            "tuned",
            doc! {"storageEngine": {"wiredTiger": {"configString": "block_compressor=zlib"}}},
        ),
        (
            "indexed",
            doc! {"indexOptionDefaults": {"storageEngine": {"wiredTiger": {"configString": "prefix_compression=false"}}}},
        ),
        (
            "clustered",
            doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true, "name": "own name"}},
        ),
        (
            "clustered and short-lived",
            doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}, "expireAfterSeconds": 100_000},
        ),
    ]
}

fn collections() -> Vec<Case> {
    let mut cases = vec![
        case("made by an insert", [], [Fill("by insert", 0, 5)]),
        case(
            "made and dropped",
            [],
            [
                create("short", doc! {}),
                Fill("short", 0, 5),
                drop_collection("short"),
            ],
        ),
        case(
            "dropped",
            [
                Fill("dropped", 0, 60),
                index("dropped", [doc! {"key": {"n": 1}, "name": "n"}]),
            ],
            [Fill("dropped", 60, 3), drop_collection("dropped")],
        ),
        case(
            "dropped and made again with other options",
            [Fill("again", 0, 60)],
            [
                drop_collection("again"),
                create("again", caseless()),
                Fill("again", 10, 3),
            ],
        ),
        case(
            "made, dropped and made again",
            [],
            [
                create("thrice", caseless()),
                Fill("thrice", 0, 3),
                drop_collection("thrice"),
                create("thrice", doc! {"validator": {"n": {"$gte": 0}}}),
                drop_collection("thrice"),
                create("thrice", doc! {}),
                Fill("thrice", 5, 3),
            ],
        ),
        case(
            "names of all kinds",
            [],
            [
                Fill("größe", 0, 1),
                Fill("with space\tand tab", 0, 1),
                Fill("a.b.c", 0, 1),
                Fill("tmp.mine", 0, 1),
                Fill("xsystem.y", 0, 1),
            ],
        ),
        case("a name as long as names may be", [], [Fill(LONG, 0, 1)]),
    ];
    // Those that are there before the mirror, and the same again while it runs.
    for (name, options) in options() {
        let later: &'static str = format!("{name} later").leak();
        let before = [create(name, options.clone())];
        let written = |name: &'static str| {
            let insert = doc! {"insert": name, "documents": [{"_id": 100, "n": "text"}, {"_id": 101, "n": "more"}]};
            Run(insert)
        };
        cases.push(case(
            name,
            before,
            [written(name), create(later, options), written(later)],
        ));
    }
    cases
}

/// With the name of the target's database in front it still fits.
const LONG: &str = "a-name-of-two-hundred-bytes-----------------------------------------------------------------------------------------------------------------------------------------------------------------------";

fn renames() -> Vec<Case> {
    vec![
        case(
            "renamed",
            [
                Fill("r1", 0, 60),
                index("r1", [doc! {"key": {"n": 1}, "name": "n"}]),
            ],
            [Rename("r1", "r1 new", false), Fill("r1 new", 100, 3)],
        ),
        case(
            "renamed over another",
            [Fill("r2", 0, 60), Fill("r2 new", 500, 60)],
            [Rename("r2", "r2 new", true), Fill("r2 new", 100, 3)],
        ),
        case(
            "renamed, its old name taken again",
            [Fill("r3", 0, 60)],
            [
                Rename("r3", "r3 new", false),
                Fill("r3", 200, 3),
                Fill("r3 new", 100, 3),
            ],
        ),
        case(
            "renamed in a chain",
            [Fill("r4", 0, 60)],
            [
                Rename("r4", "r4 b", false),
                Fill("r4 b", 100, 3),
                Rename("r4 b", "r4 c", false),
                Rename("r4 c", "r4 d", false),
                Fill("r4 d", 200, 3),
            ],
        ),
        case(
            "two names change places",
            [Fill("r5 a", 0, 60), Fill("r5 b", 1000, 60)],
            [
                Rename("r5 a", "r5 t", false),
                Rename("r5 b", "r5 a", false),
                Rename("r5 t", "r5 b", false),
                Fill("r5 a", 2000, 3),
                Fill("r5 b", 3000, 3),
            ],
        ),
        case(
            "three names change places, with writes between",
            [
                Fill("r6 a", 0, 60),
                Fill("r6 b", 1000, 60),
                Fill("r6 c", 2000, 60),
            ],
            [
                Rename("r6 a", "r6 t", false),
                Fill("r6 t", 100, 3),
                Rename("r6 b", "r6 a", false),
                Fill("r6 a", 100, 3),
                Rename("r6 c", "r6 b", false),
                Fill("r6 b", 100, 3),
                Rename("r6 t", "r6 c", false),
                Fill("r6 c", 200, 3),
            ],
        ),
        case(
            "renamed and back",
            [Fill("r7", 0, 60)],
            [
                Rename("r7", "r7 new", false),
                Fill("r7 new", 100, 3),
                Rename("r7 new", "r7", false),
                Fill("r7", 200, 3),
            ],
        ),
        case(
            "renamed and dropped",
            [Fill("r8", 0, 60)],
            [Rename("r8", "r8 new", false), drop_collection("r8 new")],
        ),
        case(
            "renamed over another, then that name made again",
            [Fill("r9", 0, 60), Fill("r9 new", 500, 60)],
            [
                Rename("r9", "r9 new", true),
                drop_collection("r9 new"),
                Fill("r9 new", 900, 3),
                Fill("r9", 700, 3),
            ],
        ),
        case(
            "a new version put in place",
            [Fill("r10", 0, 60)],
            [
                Fill("r10 next", 0, 20),
                index("r10 next", [doc! {"key": {"k": 1}, "name": "k"}]),
                Rename("r10", "r10 old", false),
                Rename("r10 next", "r10", false),
                drop_collection("r10 old"),
                Fill("r10", 300, 3),
            ],
        ),
        case(
            "another takes the place again and again",
            [Fill("r11", 0, 60)],
            [
                Fill("r11 next", 0, 5),
                Rename("r11 next", "r11", true),
                Fill("r11 next", 5, 5),
                Rename("r11 next", "r11", true),
                Fill("r11", 100, 1),
            ],
        ),
    ]
}

/// Indexes of every kind.
fn indexes_of_every_kind() -> Vec<Document> {
    vec![
        doc! {"key": {"n": 1}, "name": "simple"},
        doc! {"key": {"n": -1, "k": 1}, "name": "compound"},
        doc! {"key": {"k": 2.5}, "name": "odd direction"},
        doc! {"key": {"pad": 1}, "name": "sparse", "sparse": true},
        doc! {"key": {"k": 1, "n": 1}, "name": "partial", "partialFilterExpression": {"k": {"$gt": 3}}},
        doc! {"key": {"k": -1}, "name": "hidden", "hidden": true},
        doc! {"key": {"$**": 1}, "name": "wildcard", "wildcardProjection": {"pad": 0}},
        doc! {"key": {"place.$**": 1}, "name": "nested wildcard"},
        doc! {"key": {"text": "text", "pad": "text"}, "name": "words", "weights": {"text": 5}, "default_language": "german"},
        doc! {"key": {"place": "2d"}, "name": "flat", "bits": 20, "min": -200.0, "max": 200.0},
        doc! {"key": {"place": "2dsphere", "n": 1}, "name": "sphere"},
        doc! {"key": {"n": "hashed"}, "name": "hashed"},
        doc! {"key": {"text": 1}, "name": "collated", "collation": {"locale": "sv", "caseLevel": true}},
        doc! {"key": {"text": -1}, "name": "simply collated", "collation": {"locale": "simple"}},
        doc! {"key": {"when": 1}, "name": "short-lived", "expireAfterSeconds": 100_000},
        doc! {"key": {"when": -1}, "name": "short-lived, partial", "expireAfterSeconds": 100_000, "partialFilterExpression": {"n": 1}},
        doc! {"key": {"n": 1, "text": 1}, "name": "unique", "unique": true},
        doc! {"key": {"pad": -1}, "name": "first version", "v": 1},
        doc! {"key": {"text": 1, "n": -1}, "name": "with old options", "ns": "any.thing", "background": true, "dropDups": true},
        doc! {"key": {"when": 1}, "name": "never", "expireAfterSeconds": f64::NAN, "partialFilterExpression": {"n": 2}},
        doc! {"key": {"pad": 1, "n": 1}, "name": "tuned", "storageEngine": {"wiredTiger": {"configString": "prefix_compression=false"}}},
    ]
}

fn indexes() -> Vec<Case> {
    let n = || doc! {"key": {"n": 1}, "name": "n"};
    vec![
        case(
            "on an empty collection",
            [create("i1", doc! {})],
            [index("i1", [n(), doc! {"key": {"k": 1}, "name": "k"}])],
        ),
        case(
            "on a collection that is made by it",
            [],
            [index("i2", [n()])],
        ),
        case(
            "of every kind",
            [Fill("i3", 0, 60)],
            indexes_of_every_kind()
                .into_iter()
                .map(|one| index("i3", [one])),
        ),
        case(
            "several at once",
            [Fill("i4", 0, 60)],
            [index("i4", indexes_of_every_kind())],
        ),
        case(
            "one that is there",
            [Fill("i5", 0, 60), index("i5", [n()])],
            [index("i5", [n()])],
        ),
        case(
            "dropped by name, by key, in a list",
            [Fill("i6", 0, 60), index("i6", indexes_of_every_kind())],
            [
                Run(doc! {"dropIndexes": "i6", "index": "hashed"}),
                Run(doc! {"dropIndexes": "i6", "index": {"n": 1}}),
                Run(doc! {"dropIndexes": "i6", "index": ["words", "unique"]}),
            ],
        ),
        case(
            "all dropped",
            [Fill("i7", 0, 60), index("i7", indexes_of_every_kind())],
            [Run(doc! {"dropIndexes": "i7", "index": "*"})],
        ),
        case(
            "dropped and made again with other options",
            [Fill("i8", 0, 60), index("i8", [n()])],
            [
                Run(doc! {"dropIndexes": "i8", "index": "n"}),
                index("i8", [doc! {"key": {"n": 1}, "name": "n", "sparse": true}]),
                Run(doc! {"dropIndexes": "i8", "index": "n"}),
                index("i8", [doc! {"key": {"k": 1}, "name": "n"}]),
                index("i8", [doc! {"key": {"n": 1}, "name": "other"}]),
            ],
        ),
        case(
            "one key under two names",
            [Fill("i9", 0, 60)],
            [
                index(
                    "i9",
                    [
                        n(),
                        doc! {"key": {"n": 1}, "name": "too", "collation": {"locale": "de"}},
                    ],
                ),
                Run(doc! {"dropIndexes": "i9", "index": "n"}),
                index(
                    "i9",
                    [doc! {"key": {"n": 1}, "name": "again", "collation": {"locale": "sv"}}],
                ),
            ],
        ),
        case(
            "one that cannot be built",
            [Fill("i10", 0, 60)],
            [
                Refused(
                    doc! {"createIndexes": "i10", "indexes": [{"key": {"k": 1}, "name": "k", "unique": true}]},
                ),
                Fill("i10", 100, 1),
            ],
        ),
        case(
            "on a collated collection",
            [create("i11", caseless()), Fill("i11", 0, 60)],
            [
                index(
                    "i11",
                    [
                        doc! {"key": {"text": 1}, "name": "inherited"},
                        doc! {"key": {"text": 1, "n": 1}, "name": "simple", "collation": {"locale": "simple"}},
                    ],
                ),
                index(
                    "i11",
                    [doc! {"key": {"text": -1}, "name": "own", "collation": {"locale": "sv"}}],
                ),
                index(
                    "i11",
                    [
                        doc! {"key": {"n": "hashed"}, "name": "hashed", "collation": {"locale": "simple"}},
                    ],
                ),
            ],
        ),
        case(
            "on a clustered collection",
            [
                create(
                    "i12",
                    doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}},
                ),
                Fill("i12", 0, 60),
            ],
            [index("i12", [n()])],
        ),
        case(
            "on a collection that was renamed",
            [Fill("i13", 0, 60), index("i13", [n()])],
            [
                Rename("i13", "i13 new", false),
                Run(doc! {"dropIndexes": "i13 new", "index": "n"}),
                index("i13 new", [doc! {"key": {"k": 1}, "name": "k"}]),
            ],
        ),
    ]
}

fn changes() -> Vec<Case> {
    let on = |options: Document| {
        move |name: &'static str| [create(name, options.clone()), Fill(name, 0, 60)]
    };
    let plain = on(doc! {});
    let indexed = |name: &'static str| {
        [
            Fill(name, 0, 60),
            index(
                name,
                [
                    doc! {"key": {"n": 1}, "name": "n"},
                    doc! {"key": {"when": 1}, "name": "when", "expireAfterSeconds": 100_000},
                ],
            ),
        ]
    };
    vec![
        case(
            "a validator",
            plain("m1"),
            [
                modify(
                    "m1",
                    doc! {"validator": {"n": {"$type": "string"}}, "validationLevel": "strict", "validationAction": "error"},
                ),
                Run(doc! {"insert": "m1", "documents": [{"_id": "new", "n": "text"}]}),
                Run(
                    doc! {"insert": "m1", "documents": [{"_id": "bad", "n": 1}], "bypassDocumentValidation": true},
                ),
                modify("m1", doc! {"validationLevel": "moderate"}),
                Run(
                    doc! {"update": "m1", "updates": [{"q": {"_id": 5}, "u": {"$set": {"other": 1}}}]},
                ),
                modify("m1", doc! {"validationAction": "warn"}),
                Fill("m1", 100, 3),
            ],
        ),
        case(
            "a validator taken away",
            on(doc! {"validator": {"n": {"$gte": 0}}})("m2"),
            [
                modify("m2", doc! {"validator": {}, "validationLevel": "off"}),
                Run(doc! {"insert": "m2", "documents": [{"_id": "bad", "n": -1}]}),
            ],
        ),
        case(
            "images before and after",
            plain("m3"),
            [
                modify(
                    "m3",
                    doc! {"changeStreamPreAndPostImages": {"enabled": true}},
                ),
                Run(
                    doc! {"update": "m3", "updates": [{"q": {"_id": 5}, "u": {"$set": {"n": -1}}}]},
                ),
                modify(
                    "m3",
                    doc! {"changeStreamPreAndPostImages": {"enabled": false}},
                ),
                Run(doc! {"delete": "m3", "deletes": [{"q": {"_id": 5}, "limit": 1}]}),
            ],
        ),
        case(
            "an index hidden and shown",
            indexed("m4"),
            [
                modify("m4", doc! {"index": {"name": "n", "hidden": true}}),
                modify(
                    "m4",
                    doc! {"index": {"keyPattern": {"n": 1}, "hidden": false}},
                ),
                modify("m4", doc! {"index": {"name": "n", "hidden": true}}),
            ],
        ),
        case(
            "an index that expires otherwise",
            indexed("m5"),
            [
                modify(
                    "m5",
                    doc! {"index": {"name": "when", "expireAfterSeconds": 200_000}},
                ),
                modify(
                    "m5",
                    doc! {"index": {"name": "when", "expireAfterSeconds": 300_000, "hidden": true}},
                ),
            ],
        ),
        case(
            "nothing",
            plain("m7"),
            [
                modify("m7", doc! {}),
                modify("m7", doc! {"validationLevel": "strict"}),
            ],
        ),
        case(
            "a clustered collection that expires otherwise",
            [
                create(
                    "m8",
                    doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}},
                ),
                Fill("m8", 0, 60),
            ],
            [
                modify("m8", doc! {"expireAfterSeconds": 200_000}),
                modify("m8", doc! {"expireAfterSeconds": 300_000}),
                Fill("m8", 100, 1),
            ],
        ),
        case(
            "a clustered collection that expires no more",
            [
                create(
                    "m9",
                    doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}, "expireAfterSeconds": 100_000},
                ),
                Fill("m9", 0, 60),
            ],
            [
                modify("m9", doc! {"expireAfterSeconds": "off"}),
                Fill("m9", 100, 1),
            ],
        ),
        case(
            "after a rename",
            plain("m10"),
            [
                Rename("m10", "m10 new", false),
                modify("m10 new", doc! {"validator": {"n": {"$exists": true}}}),
            ],
        ),
    ]
}

fn views() -> Vec<Case> {
    let stage = |value: i32| doc! {"$match": {"k": value}};
    vec![
        case(
            "a view",
            [Fill("v1", 0, 60)],
            [create(
                "v1 view",
                doc! {"viewOn": "v1", "pipeline": [stage(1)]},
            )],
        ),
        case(
            "a view on nothing",
            [],
            [create("v2", doc! {"viewOn": "missing", "pipeline": []})],
        ),
        case(
            "a view on a view, with a collation",
            [
                Fill("v3", 0, 60),
                create(
                    "v3 a",
                    doc! {"viewOn": "v3", "pipeline": [stage(1)], "collation": {"locale": "de", "strength": 1}},
                ),
            ],
            [create(
                "v3 b",
                doc! {"viewOn": "v3 a", "pipeline": [stage(1), {"$sort": {"n": 1}}], "collation": {"locale": "de", "strength": 1}},
            )],
        ),
        case(
            "a view changed",
            [create("v4", doc! {"viewOn": "v1", "pipeline": [stage(1)]})],
            [
                modify("v4", doc! {"viewOn": "v1", "pipeline": [stage(2)]}),
                modify("v4", doc! {"viewOn": "v3", "pipeline": [stage(2)]}),
            ],
        ),
        case(
            "a view dropped",
            [create("v5", doc! {"viewOn": "v1", "pipeline": []})],
            [drop_collection("v5")],
        ),
        case(
            "a view dropped and made again",
            [create("v6", doc! {"viewOn": "v1", "pipeline": []})],
            [
                drop_collection("v6"),
                create("v6", doc! {"viewOn": "v3", "pipeline": [stage(5)]}),
            ],
        ),
        case(
            "a view becomes a collection",
            [create("v7", doc! {"viewOn": "v1", "pipeline": []})],
            [drop_collection("v7"), Fill("v7", 0, 5)],
        ),
        case(
            "a collection becomes a view",
            [Fill("v8", 0, 60)],
            [
                drop_collection("v8"),
                create("v8", doc! {"viewOn": "v1", "pipeline": [stage(1)]}),
            ],
        ),
        case(
            "a collection becomes a view by a rename",
            [Fill("v9", 0, 60)],
            [
                Rename("v9", "v9 old", false),
                create("v9", doc! {"viewOn": "v9 old", "pipeline": [stage(1)]}),
            ],
        ),
    ]
}

fn aggregations() -> Vec<Case> {
    let out = |into: &str| {
        Run(
            doc! {"aggregate": "a0", "pipeline": [{"$match": {"k": {"$lt": 4}}}, {"$out": into}], "cursor": {}},
        )
    };
    let merge = |into: &str| {
        let merge = doc! {"$merge": {"into": into, "whenMatched": "merge"}};
        Run(
            doc! {"aggregate": "a0", "pipeline": [{"$project": {"k": 1, "merged": "$n"}}, merge], "cursor": {}},
        )
    };
    vec![
        case("what is aggregated", [Fill("a0", 0, 60)], []),
        case(
            "$out into a new collection",
            [],
            [out("a1"), Fill("a1", 1000, 2)],
        ),
        case(
            "$out over a collection with indexes and options",
            [
                create(
                    "a2",
                    doc! {"validator": {"n": {"$exists": true}}, "collation": {"locale": "de"}},
                ),
                Fill("a2", 0, 60),
                index(
                    "a2",
                    [
                        doc! {"key": {"k": 1}, "name": "k"},
                        doc! {"key": {"text": 1}, "name": "simple", "collation": {"locale": "simple"}},
                    ],
                ),
            ],
            [out("a2"), Fill("a2", 1000, 2)],
        ),
        case(
            "$out twice",
            [Fill("a3", 500, 60)],
            [out("a3"), Fill("a3", 1000, 2), out("a3")],
        ),
        case("$out over itself", [], [out("a0")]),
        case("$merge into a new collection", [], [merge("a4")]),
        case(
            "$merge into a collection",
            [Fill("a5", 30, 60)],
            [merge("a5"), merge("a5")],
        ),
    ]
}

fn across_databases() -> Vec<Case> {
    vec![
        case(
            "to another database",
            [Fill("x1", 0, 60)],
            [Rename("x1", "/x1", false)],
        ),
        case(
            "from another database",
            [FillElsewhere("x2", 0, 20)],
            [Rename("/x2", "x2", false), Fill("x2", 100, 2)],
        ),
        case(
            "from another database over a collection",
            [FillElsewhere("x3", 0, 20), Fill("x3", 500, 60)],
            [Rename("/x3", "x3", true), Fill("x3", 100, 2)],
        ),
        case(
            "to another database and back",
            [
                Fill("x4", 0, 60),
                index("x4", [doc! {"key": {"n": 1}, "name": "n"}]),
            ],
            [
                Rename("x4", "/x4", false),
                Rename("/x4", "x4", false),
                Fill("x4", 100, 2),
            ],
        ),
        case(
            "writes to another database",
            [Fill("x5", 0, 60)],
            [FillElsewhere("x5", 0, 5), Fill("x5", 100, 2)],
        ),
    ]
}

fn transactions() -> Vec<Case> {
    let insert = |name: &str, id: i32| doc! {"insert": name, "documents": [{"_id": id, "n": id}]};
    vec![
        case(
            "a collection made in a transaction",
            [Fill("t0", 0, 60)],
            [Transaction(
                vec![
                    insert("t0", 1000),
                    doc! {"create": "t1"},
                    insert("t1", 1),
                    insert("t0", 1001),
                ],
                true,
            )],
        ),
        case(
            "a collection made by an insert in a transaction",
            [],
            [Transaction(
                vec![insert("t2", 1), insert("t3", 1), insert("t2", 2)],
                true,
            )],
        ),
        case(
            "indexes made in a transaction",
            [],
            [Transaction(
                vec![
                    doc! {"create": "t4"},
                    doc! {"createIndexes": "t4", "indexes": [{"key": {"n": 1}, "name": "n"}, {"key": {"k": 1}, "name": "k"}]},
                    insert("t4", 1),
                    insert("t0", 1002),
                ],
                true,
            )],
        ),
        case(
            "given up",
            [],
            [
                Transaction(
                    vec![insert("t0", 1003), doc! {"create": "t5"}, insert("t5", 1)],
                    false,
                ),
                Fill("t0", 2000, 1),
            ],
        ),
        case(
            "one after the other",
            [],
            [
                Transaction(vec![insert("t6", 1), insert("t0", 1004)], true),
                drop_collection("t6"),
                Transaction(vec![insert("t6", 2), insert("t0", 1005)], true),
                Rename("t6", "t7", false),
                Transaction(vec![insert("t6", 3), insert("t7", 3)], true),
            ],
        ),
    ]
}

fn dropped_databases() -> Vec<Case> {
    vec![
        case(
            "dropped",
            [
                Fill("d1", 0, 60),
                create("d2", doc! {"viewOn": "d1", "pipeline": []}),
            ],
            [DropDatabase],
        ),
        case(
            "made again and dropped",
            [],
            [
                Fill("d1", 0, 5),
                create("d3", caseless()),
                create("d2", doc! {"viewOn": "d3", "pipeline": []}),
                DropDatabase,
            ],
        ),
        case(
            "made again",
            [],
            [
                create("d1", caseless()),
                Fill("d1", 100, 5),
                index("d1", [doc! {"key": {"n": 1}, "name": "n"}]),
                Fill("d2", 0, 5),
                create(
                    "d3",
                    doc! {"viewOn": "d1", "pipeline": [{"$match": {"n": 1}}]},
                ),
            ],
        ),
    ]
}

/// Capped and time-series collections, scripts, unique indexes.
fn kinds() -> Vec<Case> {
    let capped = |name| create(name, doc! {"capped": true, "size": 1_000_000, "max": 50});
    let series = |name| {
        create(
            name,
            doc! {
                "timeseries": {"timeField": "when", "metaField": "k", "granularity": "seconds"},
                "expireAfterSeconds": 1_000_000_000,
            },
        )
    };
    let unique = |name| index(name, [doc! {"key": {"n": 1}, "name": "n", "unique": true}]);
    let capped_again = |name| Run(doc! {"convertToCapped": name, "size": 100_000});
    vec![
        case(
            "capped, and older ones give way",
            [capped("k1"), Fill("k1", 0, 60)],
            [
                Fill("k1", 60, 60),
                Run(
                    doc! {"update": "k1", "updates": [{"q": {"_id": 100}, "u": {"$set": {"new": [1]}}}]},
                ),
                Run(doc! {"delete": "k1", "deletes": [{"q": {"_id": 110}, "limit": 1}]}),
                Fill("k1", 110, 1),
                capped("k1 later"),
                Fill("k1 later", 0, 70),
            ],
        ),
        case(
            "capped otherwise",
            [capped("k2"), Fill("k2", 0, 60)],
            [
                modify("k2", doc! {"cappedSize": 500_000}),
                modify("k2", doc! {"cappedMax": 10}),
                Fill("k2", 60, 5),
                modify("k2", doc! {"cappedMax": 1000}),
                Fill("k2", 70, 30),
            ],
        ),
        case(
            "capped, renamed and dropped",
            [
                capped("k3"),
                Fill("k3", 0, 60),
                capped("k4"),
                Fill("k4", 0, 20),
            ],
            [
                Rename("k3", "k3 new", false),
                Fill("k3 new", 60, 5),
                Rename("k3 new", "k4", true),
                Fill("k4", 100, 5),
                drop_collection("k4"),
                Fill("k4", 0, 5),
            ],
        ),
        case(
            "made capped",
            [
                Fill("k5", 0, 60),
                index("k5", [doc! {"key": {"n": 1}, "name": "n"}]),
            ],
            [
                Fill("k5", 60, 5),
                capped_again("k5"),
                Fill("k5", 100, 5),
                capped_again("k5"),
            ],
        ),
        case(
            "cloned as capped",
            [Fill("k6", 0, 60)],
            [
                Run(
                    doc! {"cloneCollectionAsCapped": "k6", "toCollection": "k6 capped", "size": 100_000},
                ),
                Fill("k6 capped", 100, 5),
            ],
        ),
        case(
            "capped, to another database and back",
            [capped("k7"), Fill("k7", 0, 60)],
            [
                Rename("k7", "/k7", false),
                Rename("/k7", "k7", false),
                Fill("k7", 100, 5),
            ],
        ),
        case(
            "a time series",
            [series("s1"), Fill("s1", 0, 60)],
            [
                Fill("s1", 60, 5),
                modify("s1", doc! {"timeseries": {"granularity": "hours"}}),
                modify("s1", doc! {"expireAfterSeconds": 1_100_000_000}),
                Run(doc! {"delete": "s1", "deletes": [{"q": {"k": 3}, "limit": 0}]}),
                index("s1", [doc! {"key": {"k": 1, "when": 1}, "name": "k"}]),
                Fill("s1", 100, 5),
                series("s1 later"),
                Fill("s1 later", 0, 30),
            ],
        ),
        case(
            "a time series, dropped and made again",
            [series("s2"), Fill("s2", 0, 60)],
            [
                drop_collection("s2"),
                series("s2"),
                Fill("s2", 60, 5),
                drop_collection("s2"),
                Fill("s2", 0, 5),
                series("s3"),
                Fill("s3", 0, 5),
                create(
                    "s3 view",
                    doc! {"viewOn": "s3", "pipeline": [{"$match": {"k": 1}}]},
                ),
            ],
        ),
        case(
            "scripts",
            [Run(
                doc! {"insert": "system.js", "documents": [{"_id": "f", "value": 1}]},
            )],
            [
                Run(
                    doc! {"insert": "system.js", "documents": [{"_id": "g", "value": bson::Bson::JavaScriptCode("1".into())}]},
                ),
                Run(
                    doc! {"update": "system.js", "updates": [{"q": {"_id": "f"}, "u": {"$set": {"value": [2]}}}]},
                ),
                Run(doc! {"delete": "system.js", "deletes": [{"q": {"_id": "g"}, "limit": 1}]}),
            ],
        ),
        case(
            "unique, and no longer",
            [Fill("u1", 0, 60), unique("u1")],
            [
                Fill("u1", 60, 5),
                Run(doc! {"dropIndexes": "u1", "index": "n"}),
                Run(doc! {"insert": "u1", "documents": [{"_id": "twice", "n": 1}]}),
            ],
        ),
        case(
            "made unique",
            [
                Fill("u2", 0, 60),
                index("u2", [doc! {"key": {"n": 1}, "name": "n"}]),
            ],
            [
                modify("u2", doc! {"index": {"name": "n", "prepareUnique": true}}),
                Fill("u2", 60, 5),
                modify("u2", doc! {"index": {"name": "n", "unique": true}}),
                Fill("u2", 70, 5),
                Rename("u2", "u2 new", false),
            ],
        ),
        case(
            "not made unique after all",
            [
                Fill("u3", 0, 60),
                index("u3", [doc! {"key": {"n": 1}, "name": "n"}]),
            ],
            [
                modify("u3", doc! {"index": {"name": "n", "prepareUnique": true}}),
                modify("u3", doc! {"index": {"name": "n", "prepareUnique": false}}),
                Run(doc! {"insert": "u3", "documents": [{"_id": "twice", "n": 1}]}),
            ],
        ),
        case(
            "an index that expires from now on",
            [
                Fill("u4", 0, 60),
                index("u4", [doc! {"key": {"when": 1}, "name": "when"}]),
            ],
            [modify(
                "u4",
                doc! {"index": {"name": "when", "expireAfterSeconds": 100_000}},
            )],
        ),
    ]
}

/// What is called `outside …` takes no part.
fn over_the_edge() -> Vec<Case> {
    vec![
        case(
            "in",
            [
                Fill("outside e1", 0, 60),
                index("outside e1", [doc! {"key": {"n": 1}, "name": "n"}]),
            ],
            [
                Fill("outside e1", 60, 3),
                Rename("outside e1", "e1", false),
                Fill("e1", 100, 3),
            ],
        ),
        case(
            "in over another",
            [Fill("outside e2", 0, 60), Fill("e2", 500, 60)],
            [Rename("outside e2", "e2", true), Fill("e2", 100, 3)],
        ),
        case(
            "made outside, then in",
            [],
            [
                Fill("outside e3", 0, 5),
                Rename("outside e3", "e3", false),
                Fill("e3", 100, 3),
            ],
        ),
        case(
            "out",
            [Fill("e4", 0, 60)],
            [
                Rename("e4", "outside e4", false),
                Fill("outside e4", 100, 3),
                drop_collection("outside e4"),
            ],
        ),
        case(
            "out over another",
            [Fill("e5", 0, 60), Fill("outside e5", 500, 60)],
            [
                Rename("e5", "outside e5", true),
                drop_collection("outside e5"),
                Fill("e5", 900, 3),
            ],
        ),
        case(
            "out and in",
            [Fill("e6", 0, 60)],
            [
                Rename("e6", "outside e6", false),
                Fill("outside e6", 100, 3),
                Rename("outside e6", "e6", false),
                Fill("e6", 200, 3),
            ],
        ),
        case(
            "in and out and in under another name",
            [Fill("outside e7", 0, 60)],
            [
                Rename("outside e7", "e7", false),
                Fill("e7", 100, 3),
                Rename("e7", "outside e7", false),
                Rename("outside e7", "e7 new", false),
                Fill("e7 new", 200, 3),
            ],
        ),
        case(
            "one in for one out",
            [Fill("e8", 0, 60), Fill("outside e8", 1000, 60)],
            [
                Rename("e8", "outside e8 old", false),
                Rename("outside e8", "e8", false),
                Fill("e8", 2000, 3),
                drop_collection("outside e8 old"),
            ],
        ),
        case(
            "capped, in",
            [
                create("outside e9", doc! {"capped": true, "size": 100_000}),
                Fill("outside e9", 0, 60),
            ],
            [Rename("outside e9", "e9", false), Fill("e9", 100, 3)],
        ),
        case(
            "in and dropped",
            [Fill("outside e10", 0, 60)],
            [Rename("outside e10", "e10", false), drop_collection("e10")],
        ),
    ]
}

async fn kinds_of_collections_after_the_copy(version: Version) {
    // What may not be repeated is copied anew, which takes its time.
    after_the_copy_and_again(version, "kinds", &kinds(), 1).await;
}

async fn kinds_of_collections_during_the_copy(version: Version) {
    during_the_copy(version, "kinds_copy", &kinds()).await;
}

async fn renames_over_the_edge_of_the_selection_after_the_copy(version: Version) {
    after_the_copy(version, "edge", &over_the_edge()).await;
}

async fn renames_over_the_edge_of_the_selection_during_the_copy(version: Version) {
    during_the_copy(version, "edge_copy", &over_the_edge()).await;
}

async fn collections_made_and_dropped_after_the_copy(version: Version) {
    after_the_copy(version, "make", &collections()).await;
}

async fn collections_made_and_dropped_during_the_copy(version: Version) {
    during_the_copy(version, "make_copy", &collections()).await;
}

async fn collections_renamed_after_the_copy(version: Version) {
    after_the_copy(version, "rename", &renames()).await;
}

async fn collections_renamed_during_the_copy(version: Version) {
    during_the_copy(version, "rename_copy", &renames()).await;
}

async fn indexes_made_and_dropped_after_the_copy(version: Version) {
    after_the_copy(version, "index", &indexes()).await;
}

async fn indexes_made_and_dropped_during_the_copy(version: Version) {
    during_the_copy(version, "index_copy", &indexes()).await;
}

async fn options_changed_after_the_copy(version: Version) {
    after_the_copy(version, "modify", &changes()).await;
}

async fn options_changed_during_the_copy(version: Version) {
    during_the_copy(version, "modify_copy", &changes()).await;
}

async fn views_after_the_copy(version: Version) {
    after_the_copy(version, "view", &views()).await;
}

async fn views_during_the_copy(version: Version) {
    during_the_copy(version, "view_copy", &views()).await;
}

async fn results_of_aggregations_after_the_copy(version: Version) {
    after_the_copy(version, "aggregate", &aggregations()).await;
}

async fn results_of_aggregations_during_the_copy(version: Version) {
    during_the_copy(version, "aggregate_copy", &aggregations()).await;
}

async fn renames_across_databases_after_the_copy(version: Version) {
    after_the_copy(version, "across", &across_databases()).await;
}

async fn renames_across_databases_during_the_copy(version: Version) {
    during_the_copy(version, "across_copy", &across_databases()).await;
}

async fn commands_in_transactions_after_the_copy(version: Version) {
    after_the_copy(version, "transact", &transactions()).await;
}

async fn commands_in_transactions_during_the_copy(version: Version) {
    during_the_copy(version, "transact_copy", &transactions()).await;
}

async fn a_database_dropped_and_made_again_after_the_copy(version: Version) {
    after_the_copy(version, "dropped", &dropped_databases()).await;
}

async fn a_database_dropped_and_made_again_during_the_copy(version: Version) {
    during_the_copy(version, "dropped_copy", &dropped_databases()).await;
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
            [Fill("c", 0, 60), index("c", indexes_of_every_kind())],
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
