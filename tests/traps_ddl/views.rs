//! Views, and results of aggregations.

use bson::doc;

use crate::common::ddl::Step::{Fill, Rename, Run};
use crate::common::ddl::{Case, case};
use crate::steps::{create, drop_collection, index, modify};

pub fn views() -> Vec<Case> {
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

pub fn results_of_aggregations() -> Vec<Case> {
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
