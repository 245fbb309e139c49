//! Indexes of every kind, made and dropped.

use bson::{Document, doc};

use crate::common::ddl::Step::{Fill, Refused, Rename, Run};
use crate::common::ddl::{Case, case};
use crate::steps::{caseless, create, index};

/// Indexes of every kind.
pub fn of_every_kind() -> Vec<Document> {
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

pub fn made_and_dropped() -> Vec<Case> {
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
            of_every_kind().into_iter().map(|one| index("i3", [one])),
        ),
        case(
            "several at once",
            [Fill("i4", 0, 60)],
            [index("i4", of_every_kind())],
        ),
        case(
            "one that is there",
            [Fill("i5", 0, 60), index("i5", [n()])],
            [index("i5", [n()])],
        ),
        case(
            "dropped by name, by key, in a list",
            [Fill("i6", 0, 60), index("i6", of_every_kind())],
            [
                Run(doc! {"dropIndexes": "i6", "index": "hashed"}),
                Run(doc! {"dropIndexes": "i6", "index": {"n": 1}}),
                Run(doc! {"dropIndexes": "i6", "index": ["words", "unique"]}),
            ],
        ),
        case(
            "all dropped",
            [Fill("i7", 0, 60), index("i7", of_every_kind())],
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
