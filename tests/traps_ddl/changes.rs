//! Options of collections and indexes that are changed.

use bson::{Document, doc};

use crate::common::ddl::Step::{Fill, Rename, Run};
use crate::common::ddl::{Case, case};
use crate::steps::{create, index, modify};

pub fn changed() -> Vec<Case> {
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
