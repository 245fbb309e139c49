//! Collections that are made, dropped, and renamed.

use bson::{Document, doc};

use crate::common::ddl::Step::{Fill, Rename, Run};
use crate::common::ddl::{Case, case};
use crate::steps::{caseless, create, drop_collection, index};

/// Options of every kind, as `create` takes them.
pub fn options() -> Vec<(&'static str, Document)> {
    vec![
        ("plain", doc! {}),
        (
            "of an old version",
            doc! {"idIndex": {"v": 1, "key": {"_id": 1}, "name": "_id_"}},
        ),
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

pub fn made_and_dropped() -> Vec<Case> {
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

pub fn renamed() -> Vec<Case> {
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
