//! Commands on collections, indexes and views, of every kind.

use bson::{Bson, Document, doc};

use crate::dice::Dice;
use crate::plan::{Action, Collection, Command, DATABASE, ELSEWHERE, Kind, On};
use crate::writes::{EXTRAS, reading};

/// Names of views.
const VIEWS: [&str; 3] = ["view1", "view2", "view3"];

/// Names of indexes are few, so that commands meet.
const INDEXES: [&str; 6] = [
    "a_1",
    "arr_1",
    "count_-1_n_1",
    "when_1",
    "partial",
    "hidden",
];

/// Some indexes that are there before the mirror starts.
pub fn indexes_before(dice: &mut Dice, collections: &[Collection]) -> Vec<Command> {
    let mut commands = Vec::new();
    for collection in collections {
        for _ in 0..dice.below(3) {
            let index = index(dice);
            commands.push(create_indexes(collection.name, vec![index]));
        }
    }
    commands
}

/// One command, or several that belong together. `special` says whether kinds of collections may
/// come that are only mirrored with the internal flags.
pub fn ddl(dice: &mut Dice, collections: &[Collection], special: bool) -> Action {
    let seats = collections.iter().any(|one| one.kind == Kind::Seats);
    // Of time series, hardly any of these commands is allowed.
    let ordinary = |one: &&Collection| one.kind != Kind::Readings;
    let ordinary: Vec<&Collection> = collections.iter().filter(ordinary).collect();
    let base = dice.pick(&ordinary).name;
    let extra = *dice.pick(&EXTRAS);
    let one = |command| Action::Commands(vec![command]);
    match dice.below(44) {
        0..3 => one(create(dice, extra)),
        3 | 4 => one(drop(dice, extra, base)),
        5 | 6 => rename(dice, extra, base),
        7 | 8 => swap(base, extra),
        9..12 => one(collection_modified(dice, base)),
        12..14 => index_modified(dice, base),
        14..19 => {
            let indexes = (0..=dice.below(2)).map(|_| index(dice)).collect();
            one(create_indexes(base, indexes))
        }
        19..22 => drop_indexes(dice, base),
        22..25 => one(view(dice, base)),
        25 | 26 => one(out(dice, base, extra)),
        27 | 28 => one(merge(dice, base, extra)),
        29 | 30 => in_transaction(dice, extra),
        31 => imported(dice, extra),
        32 => one(exported(extra)),
        33 if dice.one_in(3) => one(Command::new("dropDatabase", &doc! {"dropDatabase": 1})),
        34 | 35 if special => capped(dice, extra, base),
        36 | 37 if special => timeseries(dice),
        38 if special => one(function(dice)),
        39..43 if seats => one(unique(dice)),
        _ => one(create_indexes(extra, vec![index(dice)])),
    }
}

fn create(dice: &mut Dice, name: &str) -> Command {
    let options = match dice.below(8) {
        0 => {
            doc! {"validator": {"a": {"$exists": true}}, "validationLevel": "moderate", "validationAction": "warn"}
        }
        1 => doc! {"collation": {"locale": "fr", "strength": 1, "backwards": true}},
        2 => doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true, "name": "by id"}},
        3 => {
            doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}, "expireAfterSeconds": 3_000_000_000_i64}
        }
        4 => doc! {"changeStreamPreAndPostImages": {"enabled": true}},
        5 => doc! {"storageEngine": {"wiredTiger": {"configString": "block_compressor=zlib"}}},
        6 => doc! {"indexOptionDefaults": {"storageEngine": {"wiredTiger": {}}}},
        _ => doc! {},
    };
    let mut command = doc! {"create": name};
    command.extend(options);
    Command::new("create", &command)
}

fn drop(dice: &mut Dice, extra: &str, base: &str) -> Command {
    let name = if dice.one_in(4) { base } else { extra };
    Command::new("drop", &doc! {"drop": name})
}

fn renamed(kind: &'static str, from: &str, to: &str, drop_target: bool) -> Command {
    let command = doc! {
        "renameCollection": format!("{DATABASE}.{from}"),
        "to": format!("{DATABASE}.{to}"),
        "dropTarget": drop_target,
    };
    Command::on(On::Admin, kind, &command)
}

/// Mostly of a collection that is there, to a name that is free.
fn rename(dice: &mut Dice, extra: &str, base: &str) -> Action {
    let other = *dice.pick(&EXTRAS);
    let make = doc! {"insert": extra, "documents": [dice.document(1.into(), 50)]};
    let make = Command::new("insert", &make);
    let free = Command::new("drop", &doc! {"drop": other});
    Action::Commands(match dice.below(5) {
        0 => vec![make, free, renamed("rename", extra, other, false)],
        1 => vec![make, renamed("rename over", extra, other, true)],
        2 => vec![make, renamed("rename over", extra, base, true)],
        3 => vec![free, renamed("rename", base, other, false)],
        _ => vec![renamed("rename", extra, other, false)],
    })
}

/// Two names change places.
fn swap(base: &str, extra: &str) -> Action {
    Action::Commands(vec![
        renamed("swap", extra, "swapped", false),
        renamed("swap", base, extra, false),
        renamed("swap", "swapped", base, false),
    ])
}

fn collection_modified(dice: &mut Dice, base: &str) -> Command {
    let change = match dice.below(8) {
        0 => doc! {"validator": {"n": {"$type": "int"}}, "validationAction": "warn"},
        1 => {
            doc! {"validator": {"$jsonSchema": {"required": ["a"]}}, "validationLevel": "moderate", "validationAction": "error"}
        }
        2 => {
            doc! {"validator": {"$or": [{"a": {"$exists": true}}, {"_id": {"$exists": true}}]}, "validationLevel": "strict"}
        }
        3 | 4 => doc! {"validator": {}, "validationLevel": "off"},
        5 => doc! {"changeStreamPreAndPostImages": {"enabled": dice.one_in(2)}},
        6 => doc! {"validationLevel": "strict", "validationAction": "warn"},
        _ => doc! {},
    };
    let mut command = doc! {"collMod": base};
    command.extend(change);
    Command::new("collMod", &command)
}

/// Mostly of an index that is there.
fn index_modified(dice: &mut Dice, base: &str) -> Action {
    let (key, change) = if dice.one_in(2) {
        let change = doc! {"name": "a_1", "hidden": dice.one_in(2)};
        (doc! {"key": {"a": 1}, "name": "a_1"}, change)
    } else {
        let change = doc! {"name": "when_1", "expireAfterSeconds": dice.between(1, 100_000)};
        (
            doc! {"key": {"when": 1}, "name": "when_1", "expireAfterSeconds": 5000},
            change,
        )
    };
    let change = doc! {"collMod": base, "index": change};
    Action::Commands(vec![
        create_indexes(base, vec![key]),
        Command::new("collMod index", &change),
    ])
}

/// A command on the indexes that make seats unique.
fn unique(dice: &mut Dice) -> Command {
    let create = |index: Document| create_indexes("seats", vec![index]);
    let modify = |change: Document| {
        Command::new(
            "collMod unique",
            &doc! {"collMod": "seats", "index": change},
        )
    };
    match dice.below(9) {
        0 => create(doc! {"key": {"seat": 1}, "name": "seat_1", "unique": true, "sparse": true}),
        1 => create(doc! {"key": {"seat": 1}, "name": "seat_1", "sparse": true}),
        2 => create(
            doc! {"key": {"seat": 1}, "name": "some", "unique": true, "partialFilterExpression": {"count": {"$gt": 1}}},
        ),
        3 => create(
            doc! {"key": {"seat": 1}, "name": "blind", "unique": true, "sparse": true, "collation": {"locale": "en", "strength": 1}},
        ),
        4 => create(doc! {"key": {"seat": -1, "arr": 1}, "name": "many", "unique": true}),
        5 => modify(doc! {"name": "seat_1", "prepareUnique": dice.one_in(2)}),
        6 => modify(doc! {"name": "seat_1", "unique": true}),
        7 => modify(doc! {"keyPattern": {"seat": 1}, "hidden": dice.one_in(2)}),
        _ => {
            let name = *dice.pick(&["seat_1", "some", "blind", "many"]);
            Command::new("dropIndexes", &doc! {"dropIndexes": "seats", "index": name})
        }
    }
}

fn create_indexes(collection: &str, indexes: Vec<Document>) -> Command {
    let command = doc! {"createIndexes": collection, "indexes": indexes};
    Command::new("createIndexes", &command)
}

fn index(dice: &mut Dice) -> Document {
    match dice.below(19) {
        0 | 1 => doc! {"key": {"a": 1}, "name": "a_1"},
        2 => doc! {"key": {"count": -1, "n": 1}, "name": "count_-1_n_1"},
        3 => doc! {"key": {"arr": 1}, "name": "arr_1"},
        4 => doc! {"key": {"$**": 1}, "name": "all"},
        5 => doc! {"key": {"$**": 1}, "name": "some", "wildcardProjection": {"doc": 1, "zz": 1}},
        6 => {
            doc! {"key": {"pad": "text", "c": "text"}, "name": "text", "weights": {"c": 3}, "default_language": "german"}
        }
        7 => doc! {"key": {"point": "2d"}, "name": "place", "bits": 20, "min": -200, "max": 200},
        8 => doc! {"key": {"point": "2dsphere"}, "name": "place"},
        9 => doc! {"key": {"c": "hashed"}, "name": "c_hashed"},
        10 => doc! {"key": {"zz": 1}, "name": "zz_1", "sparse": true},
        11 => {
            doc! {"key": {"b": 1}, "name": "partial", "partialFilterExpression": {"count": {"$gt": 1}}}
        }
        12 => doc! {"key": {"doc.x": 1}, "name": "hidden", "hidden": true},
        13 => {
            doc! {"key": {"c": 1}, "name": "collated", "collation": {"locale": "sv", "strength": 2}}
        }
        14 => doc! {"key": {"c": 1}, "name": "simple", "collation": {"locale": "simple"}},
        15 => {
            doc! {"key": {"when": 1}, "name": "when_1", "expireAfterSeconds": *dice.pick(&[1, 100, 100_000])}
        }
        16 => doc! {"key": {"seat": 1}, "name": "unique", "unique": true, "sparse": true},
        // The same name with another key: the source refuses it, or had dropped the first.
        17 => doc! {"key": {"b": -1}, "name": "a_1"},
        _ => doc! {"key": {"doc.y.z": 1, "a": -1}, "name": "deep"},
    }
}

fn drop_indexes(dice: &mut Dice, base: &str) -> Action {
    let which = match dice.below(8) {
        0 => Bson::from("*"),
        1 => Bson::from(doc! {"a": 1}),
        2..5 => Bson::from("a_1"),
        _ => Bson::from(*dice.pick(&INDEXES)),
    };
    let mut commands = Vec::new();
    if dice.one_in(2) {
        let index = doc! {"key": {"a": 1}, "name": "a_1"};
        commands.push(create_indexes(base, vec![index]));
    }
    let drop = doc! {"dropIndexes": base, "index": which};
    commands.push(Command::new("dropIndexes", &drop));
    Action::Commands(commands)
}

fn view(dice: &mut Dice, base: &str) -> Command {
    let name = *dice.pick(&VIEWS);
    let on = if dice.one_in(3) {
        *dice.pick(&VIEWS)
    } else {
        base
    };
    let pipeline = vec![doc! {"$match": {"n": dice.between(0, 9)}}];
    match dice.below(6) {
        0..3 => Command::new(
            "create view",
            &doc! {"create": name, "viewOn": on, "pipeline": pipeline},
        ),
        3 => Command::new(
            "create view",
            &doc! {"create": name, "viewOn": on, "pipeline": pipeline, "collation": {"locale": "de", "strength": 2}},
        ),
        4 => Command::new(
            "collMod view",
            &doc! {"collMod": name, "viewOn": on, "pipeline": pipeline},
        ),
        _ => Command::new("drop view", &doc! {"drop": name}),
    }
}

fn out(dice: &mut Dice, base: &str, extra: &str) -> Command {
    let to = if dice.one_in(5) { base } else { extra };
    let pipeline = vec![
        doc! {"$match": {"n": {"$lt": dice.between(0, 9)}}},
        doc! {"$set": {"from": "out"}},
        doc! {"$out": to},
    ];
    Command::new(
        "$out",
        &doc! {"aggregate": base, "pipeline": pipeline, "cursor": {}},
    )
}

fn merge(dice: &mut Dice, base: &str, extra: &str) -> Command {
    let matched = match dice.below(4) {
        0 => Bson::from("replace"),
        1 => Bson::from("merge"),
        2 => Bson::from("keepExisting"),
        _ => Bson::from(vec![doc! {"$set": {"merged": "$$new.n"}}]),
    };
    let (from, to) = if dice.one_in(2) {
        (base, extra)
    } else {
        (extra, base)
    };
    let pipeline = vec![
        doc! {"$match": {"_id": {"$type": ["string", "int"]}}},
        doc! {"$limit": 40},
        doc! {"$merge": {"into": to, "whenMatched": matched, "whenNotMatched": "insert"}},
    ];
    Command::new(
        "$merge",
        &doc! {"aggregate": from, "pipeline": pipeline, "cursor": {}},
    )
}

/// A transaction that creates a collection, an index and documents.
fn in_transaction(dice: &mut Dice, extra: &str) -> Action {
    let documents: Vec<Document> = (0..3).map(|n| dice.document(n.into(), 100)).collect();
    let mut commands = vec![Command::new(
        "create in a transaction",
        &doc! {"create": extra},
    )];
    if dice.one_in(2) {
        commands.push(create_indexes(extra, vec![index(dice)]));
    }
    commands.push(Command::new(
        "insert",
        &doc! {"insert": extra, "documents": documents},
    ));
    Action::Transaction {
        commands,
        commit: !dice.one_in(4),
    }
}

/// A collection comes from another database.
fn imported(dice: &mut Dice, extra: &str) -> Action {
    let documents: Vec<Document> = (0..5).map(|n| dice.document(n.into(), 100)).collect();
    let insert = doc! {"insert": "import", "documents": documents, "ordered": false};
    let rename = doc! {
        "renameCollection": format!("{ELSEWHERE}.import"),
        "to": format!("{DATABASE}.{extra}"),
        "dropTarget": true,
    };
    Action::Commands(vec![
        Command::on(On::Elsewhere, "insert elsewhere", &insert),
        Command::on(On::Admin, "rename from elsewhere", &rename),
    ])
}

/// A collection goes to another database.
fn exported(extra: &str) -> Command {
    let rename = doc! {
        "renameCollection": format!("{DATABASE}.{extra}"),
        "to": format!("{ELSEWHERE}.export"),
        "dropTarget": true,
    };
    Command::on(On::Admin, "rename to elsewhere", &rename)
}

/// Mostly under a name that is free.
fn capped(dice: &mut Dice, extra: &str, base: &str) -> Action {
    let free = Command::new("drop", &doc! {"drop": extra});
    Action::Commands(match dice.below(4) {
        0 => {
            let create =
                doc! {"create": extra, "capped": true, "size": 20_000, "max": dice.between(5, 50)};
            vec![free, Command::new("create capped", &create)]
        }
        1 => vec![Command::new(
            "convertToCapped",
            &doc! {"convertToCapped": extra, "size": 30_000},
        )],
        2 => {
            let clone =
                doc! {"cloneCollectionAsCapped": base, "toCollection": extra, "size": 30_000};
            vec![free, Command::new("cloneCollectionAsCapped", &clone)]
        }
        _ => {
            let name = if dice.one_in(3) { extra } else { "ring" };
            let size = dice.between(10_000, 60_000);
            let modify =
                doc! {"collMod": name, "cappedSize": size, "cappedMax": dice.between(5, 50)};
            vec![Command::new("collMod capped", &modify)]
        }
    })
}

fn timeseries(dice: &mut Dice) -> Action {
    let create = doc! {
        "create": "readings",
        "timeseries": {"timeField": "at", "metaField": "sensor", "granularity": "seconds"},
    };
    let readings: Vec<Document> = (0..20).map(|_| reading(dice)).collect();
    let command = match dice.below(8) {
        0 => Command::new("create time series", &create),
        1 => Command::new("drop time series", &doc! {"drop": "readings"}),
        2 => Command::new(
            "collMod time series",
            &doc! {"collMod": "readings", "timeseries": {"granularity": *dice.pick(&["minutes", "hours"])}},
        ),
        3 => {
            // What is older goes, which here is everything, or nothing does.
            let after = match dice.below(2) {
                0 => Bson::from("off"),
                _ => Bson::from(3600_i64),
            };
            Command::new(
                "collMod time series",
                &doc! {"collMod": "readings", "expireAfterSeconds": after},
            )
        }
        4 => {
            let index = doc! {"key": {"sensor": 1, "at": -1}, "name": "sensor_1_at_-1"};
            create_indexes("readings", vec![index])
        }
        _ => Command::new(
            "insert into a time series",
            &doc! {"insert": "readings", "documents": readings, "ordered": false},
        ),
    };
    // Without the collection, a reading would make an ordinary one.
    Action::Commands(vec![Command::new("create time series", &create), command])
}

fn function(dice: &mut Dice) -> Command {
    let code = Bson::JavaScriptCode(format!("function() {{ return {} }}", dice.between(0, 9)));
    let update = doc! {"q": {"_id": "f"}, "u": {"_id": "f", "value": code}, "upsert": true};
    Command::new(
        "system.js",
        &doc! {"update": "system.js", "updates": [update]},
    )
}
