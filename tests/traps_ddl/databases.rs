//! What happens to several collections, or to all of them: renames between databases, commands in
//! transactions, dropped databases.

use bson::doc;

use crate::common::ddl::Step::{DropDatabase, Fill, FillElsewhere, Rename, Transaction};
use crate::common::ddl::{Case, case};
use crate::steps::{caseless, create, drop_collection, index};

pub fn renamed_across() -> Vec<Case> {
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

pub fn in_transactions() -> Vec<Case> {
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

pub fn dropped() -> Vec<Case> {
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
