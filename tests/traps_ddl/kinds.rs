//! Collections of special kinds, and renames over the edge of the selection.

use bson::doc;

use crate::common::ddl::Step::{Fill, Rename, Run};
use crate::common::ddl::{Case, case};
use crate::steps::{create, drop_collection, index, modify};

/// Capped and time-series collections, scripts, unique indexes.
pub fn special() -> Vec<Case> {
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
            "a time series with a collation, indexed by measurements",
            [],
            [
                create(
                    "s4",
                    doc! {
                        "timeseries": {"timeField": "when", "metaField": "k"},
                        "collation": {"locale": "de", "strength": 1},
                    },
                ),
                Fill("s4", 0, 10),
                index(
                    "s4",
                    [
                        doc! {"key": {"n": 1}, "name": "inherited"},
                        doc! {"key": {"m": 1}, "name": "simple", "collation": {"locale": "simple"}},
                    ],
                ),
                Fill("s4", 10, 10),
            ],
        ),
        case(
            "a time series whose indexes come and go",
            [
                series("s6"),
                Fill("s6", 0, 30),
                index("s6", [doc! {"key": {"k": 1}, "name": "k"}]),
            ],
            [
                index(
                    "s6",
                    [
                        doc! {"key": {"k": -1, "n": 1}, "name": "some", "partialFilterExpression": {"k": {"$gt": 3}}},
                        doc! {"key": {"k.$**": 1}, "name": "all"},
                        doc! {"key": {"spot": "2dsphere"}, "name": "spot"},
                    ],
                ),
                Run(doc! {"insert": "s6", "documents": [{
                    "when": bson::DateTime::from_millis(4_000_000_000_000), "k": {"deep": 1}, "n": 7,
                    "spot": {"type": "Point", "coordinates": [3, 4]},
                }]}),
                Run(doc! {"dropIndexes": "s6", "index": "k"}),
                Run(doc! {"dropIndexes": "s6", "index": ["some", "spot"]}),
                Fill("s6", 30, 10),
                modify("s6", doc! {"expireAfterSeconds": "off"}),
                Run(doc! {"dropIndexes": "s6", "index": "*"}),
                Fill("s6", 40, 10),
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
            "scripts with an index, and under another name",
            [
                Run(doc! {"insert": "system.js", "documents": [{"_id": "h", "value": 3}]}),
                index("system.js", [doc! {"key": {"value": 1}, "name": "value"}]),
            ],
            [
                index("system.js", [doc! {"key": {"value": -1}, "name": "other"}]),
                Run(doc! {"dropIndexes": "system.js", "index": "value"}),
                Rename("system.js", "j1", false),
                Fill("j1", 0, 5),
                Rename("j1", "system.js", false),
                Fill("system.js", 10, 5),
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
pub fn over_the_edge() -> Vec<Case> {
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
