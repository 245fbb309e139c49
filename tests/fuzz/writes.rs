//! Writes of every kind, as commands.

use bson::{Bson, Document, RawArrayBuf, RawDocumentBuf, cstr, doc};

use crate::dice::{Dice, Ids, POOL, id};
use crate::plan::{Collection, Command, Kind, On};

/// Where documents live whose bytes no driver makes. A pipeline update of them would end a 6.0.5
/// server, so nothing but plain commands goes there (`facts` mongodb 3.4).
pub const TWINS: &str = "twins";

/// A collection that commands on collections create and drop.
pub const EXTRAS: [&str; 3] = ["extra1", "extra2", "out1"];

/// An insert of these documents.
pub fn insert(collection: &str, documents: Vec<Document>) -> Command {
    let body = doc! {"insert": collection, "documents": documents, "ordered": false};
    Command::new("insert", &body)
}

/// A random write.
pub fn write(dice: &mut Dice, collections: &[Collection], heavy: bool) -> Command {
    if dice.one_in(25) {
        return twin(dice);
    }
    let base = dice.pick(collections).clone();
    match base.kind {
        Kind::Seats if !dice.one_in(3) => return seat_write(dice),
        Kind::Ring if dice.one_in(2) => return round_the_ring(dice),
        Kind::Large if dice.one_in(8) => return large_write(dice),
        Kind::Readings => return readings_write(dice),
        _ => {}
    }
    // Now and then to a collection that may not be there, which creates it.
    let name = if dice.one_in(10) {
        *dice.pick(&EXTRAS)
    } else {
        base.name
    };
    let ids = base.ids;
    let mut command = match dice.below(21) {
        0..3 => {
            let padding = if heavy && dice.one_in(10) {
                3_000_000
            } else {
                600
            };
            doc! {"insert": name, "documents": [document(dice, ids, padding)]}
        }
        3 => {
            let documents: Vec<Document> = (0..5).map(|_| document(dice, ids, 600)).collect();
            doc! {"insert": name, "documents": documents, "ordered": dice.one_in(2)}
        }
        4..10 => one(name, doc! {"q": {"_id": dice.id(ids)}, "u": update(dice)}),
        10 => one(
            name,
            doc! {"q": {"_id": dice.id(ids)}, "u": update(dice), "upsert": true},
        ),
        11 | 12 => one(name, doc! {"q": {"_id": dice.id(ids)}, "u": pipeline(dice)}),
        13 => {
            let mut whole = document(dice, ids, 600);
            whole.remove("_id");
            one(
                name,
                doc! {"q": {"_id": dice.id(ids)}, "u": whole, "upsert": dice.one_in(2)},
            )
        }
        14 => {
            // The same number in another type: the id's bytes change, the id does not.
            let number = dice.between(0, 40);
            let id = if dice.one_in(2) {
                Bson::Double(number.into())
            } else {
                Bson::Int32(number)
            };
            let mut whole = dice.document(id, 100);
            whole.remove("when");
            one(
                name,
                doc! {"q": {"_id": number}, "u": whole, "upsert": true},
            )
        }
        15 => {
            let limit = i32::from(dice.one_in(2));
            let deletes = doc! {"q": some(dice, ids), "limit": limit};
            doc! {"delete": name, "deletes": [{"q": {"_id": dice.id(ids)}, "limit": 1}, deletes]}
        }
        16 => one(
            name,
            doc! {"q": some(dice, ids), "u": update(dice), "multi": true},
        ),
        17 => {
            let updates: Vec<Document> = (0..=dice.below(8))
                .map(|_| doc! {"q": {"_id": dice.id(ids)}, "u": update(dice)})
                .collect();
            doc! {"update": name, "updates": updates, "ordered": false}
        }
        18 => {
            let change = if dice.one_in(3) {
                Bson::from(pipeline(dice))
            } else {
                update(dice).into()
            };
            doc! {"findAndModify": name, "query": {"_id": dice.id(ids)}, "update": change, "upsert": dice.one_in(3)}
        }
        19 => {
            doc! {"findAndModify": name, "query": some(dice, ids), "sort": {"_id": -1}, "remove": true}
        }
        _ => one(name, filtered(dice, ids)),
    };
    if dice.one_in(3) {
        command.insert("bypassDocumentValidation", true);
        if command.contains_key("delete") {
            command.remove("bypassDocumentValidation");
        }
    }
    Command::new(kind(&command), &command)
}

/// An update of all documents of a collection.
pub fn everything(dice: &mut Dice, collections: &[Collection]) -> Command {
    let update = match dice.below(3) {
        0 => doc! {"$set": {"pad": "r".repeat(dice.below(2000) as usize)}},
        1 => doc! {"$push": {"arr": {"$each": [dice.value(2)], "$position": 0}}},
        _ => doc! {"$inc": {"count": 1}},
    };
    let all = doc! {"q": {}, "u": update, "multi": true};
    Command::new(
        "update of everything",
        &one(dice.pick(collections).name, all),
    )
}

fn kind(command: &Document) -> &'static str {
    match command.keys().next().map(String::as_str) {
        Some("insert") => "insert",
        Some("delete") => "delete",
        Some("findAndModify") => "findAndModify",
        _ => "update",
    }
}

fn document(dice: &mut Dice, ids: Ids, padding: u32) -> Document {
    let id = dice.id(ids);
    dice.document(id, padding)
}

fn one(collection: &str, statement: Document) -> Document {
    doc! {"update": collection, "updates": [statement]}
}

/// A filter for a few documents.
fn some(dice: &mut Dice, ids: Ids) -> Document {
    let from = dice.below(POOL);
    match dice.below(3) {
        0 => doc! {"_id": {"$gte": id(ids, from), "$lt": id(ids, (from + 6).min(POOL))}},
        1 => {
            let few: Vec<Bson> = (0..4).map(|_| dice.id(ids)).collect();
            doc! {"_id": {"$in": few}}
        }
        _ => {
            // Documents that only the copy and ranges of ids touch.
            let from = i32::try_from(POOL + from * 4).unwrap_or_default();
            doc! {"_id": {"$gte": from, "$lt": from + 8}}
        }
    }
}

/// An update operator, or several.
fn update(dice: &mut Dice) -> Document {
    let value = dice.value(1);
    match dice.below(24) {
        0 | 1 => doc! {"$set": {dice.path(): value}},
        2 => doc! {"$set": {dice.path(): value, "b": 1, "zz.new": {"q": dice.between(0, 9)}}},
        3 => doc! {"$unset": {dice.path(): ""}},
        4 => doc! {"$inc": {"count": 1}},
        5 => doc! {"$push": {"arr": value}},
        6 => doc! {"$push": {"arr": {"$each": [value, 7], "$position": 0, "$slice": 6}}},
        7 => doc! {"$pull": {"arr": 2}},
        8 => doc! {"$pop": {"arr": if dice.one_in(2) { 1 } else { -1 }}},
        9 => doc! {"$addToSet": {"arr": {"$each": [value, dice.between(0, 9)]}}},
        10 => doc! {"$rename": {"a": "renamed", "renamed": "b"}},
        11 => doc! {"$rename": {"doc.x": "c", "n": "doc.n"}},
        12 => doc! {"$min": {"n": 3}, "$max": {"zz": 4}, "$currentDate": {"when": true}},
        13 => doc! {"$mul": {"count": 2.5}, "$set": {"doc.y.z": value}},
        14 => doc! {"$unset": {"doc.x": "", "pad": ""}},
        15 => doc! {"$bit": {"count": {"xor": 5}}},
        16 => doc! {"$set": {"arr.$[]": value}},
        17 => doc! {"$push": {"arr": {"$each": [{"x": dice.between(0, 9)}], "$sort": {"x": 1}}}},
        18 => doc! {"$pullAll": {"arr": [1, 7]}, "$setOnInsert": {"born": value}},
        19 => doc! {"$set": {"pad": "q".repeat(dice.below(900) as usize)}},
        20 => doc! {"$currentDate": {"stamp": {"$type": "timestamp"}}},
        21 => doc! {"$set": {"stamp": bson::Timestamp { time: 0, increment: 0 }}},
        22 => doc! {"$set": {"doc": dice.fields(1)}},
        _ => doc! {"$unset": {"arr.1": "", "doc": ""}},
    }
}

/// An update by array filters.
fn filtered(dice: &mut Dice, ids: Ids) -> Document {
    doc! {
        "q": {"_id": dice.id(ids)},
        "u": {"$set": {"arr.$[few]": dice.value(2)}},
        "arrayFilters": [{"few": {"$gte": dice.between(0, 4)}}],
    }
}

/// An update by a pipeline.
fn pipeline(dice: &mut Dice) -> Vec<Document> {
    let array = doc! {"$cond": [{"$isArray": "$arr"}, "$arr", [1, 2]]};
    match dice.below(9) {
        0 => vec![doc! {"$set": {"sum": {"$size": array}}}],
        1 => vec![doc! {"$unset": ["a", "doc.y"]}],
        2 => vec![
            doc! {"$set": {"arr": {"$slice": [array, 2]}}},
            doc! {"$set": {"p": 1, "b": "$a"}},
        ],
        3 => vec![
            doc! {"$replaceWith": {"$mergeObjects": [{"_id": "$_id", "z": 1}, "$$ROOT", {"a": 5}]}},
        ],
        4 => vec![doc! {"$set": {"arr": {"$concatArrays": [array, [dice.value(2)]]}}}],
        5 => vec![doc! {"$set": {"arr": {"$reverseArray": array}, "now": "$$NOW"}}],
        6 => vec![
            doc! {"$replaceWith": {"$setField": {"field": {"$literal": *dice.pick(&["p.q", "$price", "x"])}, "input": "$$ROOT", "value": dice.between(0, 9)}}},
        ],
        7 => vec![
            doc! {"$replaceWith": {"$unsetField": {"field": {"$literal": *dice.pick(&["p.q", "$price", "x"])}, "input": "$$ROOT"}}},
        ],
        _ => vec![doc! {"$set": {"doc": {"$literal": dice.fields(1)}, "c": "$$REMOVE"}}],
    }
}

/// A plain write to the documents with odd bytes.
fn twin(dice: &mut Dice) -> Command {
    let id = dice.between(0, 30);
    let mut body = RawDocumentBuf::new();
    let kind = match dice.below(6) {
        0..3 => {
            let mut documents = RawArrayBuf::new();
            documents.push(dice.twin(id));
            body.append(cstr!("insert"), TWINS);
            body.append(cstr!("documents"), documents);
            "insert twin"
        }
        3 => {
            let mut statement = RawDocumentBuf::new();
            let mut query = RawDocumentBuf::new();
            query.append(cstr!("_id"), id);
            statement.append(cstr!("q"), query);
            statement.append(cstr!("u"), dice.twin(id));
            statement.append(cstr!("upsert"), true);
            let mut updates = RawArrayBuf::new();
            updates.push(statement);
            body.append(cstr!("update"), TWINS);
            body.append(cstr!("updates"), updates);
            "replace twin"
        }
        4 => {
            let update = doc! {"$set": {"last": dice.between(0, 9), "extra": 1}};
            return Command::on(
                On::Mirrored,
                "update twin",
                &one(TWINS, doc! {"q": {"_id": id}, "u": update}),
            );
        }
        _ => {
            let delete = doc! {"delete": TWINS, "deletes": [{"q": {"_id": id}, "limit": 1}]};
            return Command::on(On::Mirrored, "delete twin", &delete);
        }
    };
    Command {
        kind,
        on: On::Mirrored,
        body,
    }
}

/// The seat of this number: they are few, so that they are wanted by several.
pub fn seat(number: u32) -> Bson {
    if number.is_multiple_of(7) {
        Bson::String(format!("Box {number}"))
    } else {
        Bson::Int32(i32::try_from(number).unwrap_or_default())
    }
}

fn some_seat(dice: &mut Dice) -> Bson {
    let number = dice.below(POOL);
    seat(number)
}

/// The index that makes them unique.
pub fn unique_seats() -> Command {
    let index = doc! {"key": {"seat": 1}, "name": "seat_1", "unique": true, "sparse": true};
    let command = doc! {"createIndexes": "seats", "indexes": [index]};
    Command::new("createIndexes", &command)
}

/// A write that takes, leaves or changes a seat.
fn seat_write(dice: &mut Dice) -> Command {
    let seat = some_seat(dice);
    let id = dice.id(Ids::Integers);
    let take = |id: Bson, seat: Bson| doc! {"q": {"_id": id}, "u": {"$set": {"seat": seat}}};
    let command = match dice.below(9) {
        0 => {
            let mut document = dice.document(id, 600);
            document.insert("seat", seat);
            doc! {"insert": "seats", "documents": [document]}
        }
        1 => one("seats", take(id, seat)),
        2 => one(
            "seats",
            doc! {"q": {"seat": seat}, "u": {"$unset": {"seat": ""}}},
        ),
        3 => doc! {"delete": "seats", "deletes": [{"q": {"seat": seat}, "limit": 1}]},
        4 => {
            let mut whole = dice.document(id.clone(), 200);
            whole.insert("seat", seat);
            one("seats", doc! {"q": {"_id": id}, "u": whole, "upsert": true})
        }
        5 => {
            // Whoever has it leaves it to somebody else, one after the other.
            let left = doc! {"q": {"seat": &seat}, "u": {"$set": {"seat": some_seat(dice)}}};
            doc! {"update": "seats", "updates": [left, take(id, seat)]}
        }
        6 => {
            let moved = vec![doc! {"$set": {"seat": {"$ifNull": ["$n", seat]}}}];
            one("seats", doc! {"q": {"_id": id}, "u": moved})
        }
        7 => {
            // All of some rows move on by one: each takes the seat of the next.
            let row = doc! {"seat": {"$gte": dice.between(0, 200)}};
            doc! {"findAndModify": "seats", "query": row, "sort": {"seat": -1}, "update": {"$inc": {"seat": 1}}}
        }
        _ => {
            let again = doc! {"$set": {"seat": seat, "count": dice.between(0, 3)}};
            one("seats", doc! {"q": {"_id": id}, "u": again, "upsert": true})
        }
    };
    Command::new(seat_kind(&command), &command)
}

fn seat_kind(command: &Document) -> &'static str {
    match kind(command) {
        "insert" => "insert into seats",
        "delete" => "delete from seats",
        _ => "change of seats",
    }
}

/// Seats go round among several documents, as a transaction.
pub fn seats_change_hands(dice: &mut Dice) -> Vec<Command> {
    let (first, second, third) = (some_seat(dice), some_seat(dice), some_seat(dice));
    let of = |statement| Command::new("change of seats", &one("seats", statement));
    let free = doc! {"q": {"seat": &third}, "u": {"$unset": {"seat": ""}}};
    let mut commands = vec![
        of(free),
        of(doc! {"q": {"seat": &second}, "u": {"$set": {"seat": &third}}}),
        of(doc! {"q": {"seat": &first}, "u": {"$set": {"seat": &second}}}),
    ];
    let id = dice.id(Ids::Integers);
    commands.push(match dice.below(3) {
        0 => {
            let mut document = dice.document(id, 200);
            document.insert("seat", first);
            insert("seats", vec![document])
        }
        1 => Command::new(
            "delete from seats",
            &doc! {"delete": "seats", "deletes": [{"q": {"seat": second}, "limit": 1}]},
        ),
        _ => of(doc! {"q": {"_id": id}, "u": {"$set": {"seat": first}}, "upsert": true}),
    });
    commands
}

/// Inserts that make others go.
fn round_the_ring(dice: &mut Dice) -> Command {
    let documents: Vec<Document> = (0..=dice.below(5))
        .map(|_| {
            let id = dice.between(1000, 100_000);
            dice.document(id.into(), 300)
        })
        .collect();
    let command = doc! {"insert": "ring", "documents": documents, "ordered": dice.one_in(2)};
    Command::new("insert into a capped one", &command)
}

/// A measurement.
pub fn reading(dice: &mut Dice) -> Document {
    // Within some hours, so that buckets are shared.
    let at = bson::DateTime::from_millis(i64::from(dice.between(0, 20_000)) * 1000);
    let mut reading = doc! {"at": at, "sensor": dice.between(0, 4), "value": dice.value(2)};
    if dice.one_in(4) {
        reading.insert("_id", dice.between(0, 1000));
    }
    reading
}

fn readings_write(dice: &mut Dice) -> Command {
    let sensor = dice.between(0, 4);
    match dice.below(8) {
        0 => Command::new(
            "delete of a time series",
            &doc! {"delete": "readings", "deletes": [{"q": {"sensor": sensor}, "limit": 0}]},
        ),
        1 => Command::new(
            "update of a time series",
            &doc! {"update": "readings", "updates": [
                {"q": {"sensor": sensor}, "u": {"$set": {"sensor": dice.between(0, 4)}}, "multi": true},
            ]},
        ),
        _ => {
            let readings: Vec<Document> = (0..=dice.below(20)).map(|_| reading(dice)).collect();
            Command::new(
                "insert into a time series",
                &doc! {"insert": "readings", "documents": readings, "ordered": dice.one_in(2)},
            )
        }
    }
}

const MIB: usize = 1 << 20;

/// Fields of the wide document, and the length of their parent's name: an event names every field
/// that changed in full, so it is larger than its change by far.
const WIDE: (usize, usize) = (20_000, 1000);

/// An `_id` that an event repeats so often that it is too large.
fn long(number: i32) -> String {
    format!("{number}-{}", "k".repeat(MIB / 10 * 28))
}

/// The document whose changes are larger than events can be.
pub fn wide() -> Command {
    let leaf = doc! {"v": 1, "still": "it is not changed, so a delta is smaller"};
    let leaves: Document = (0..WIDE.0)
        .map(|n| (format!("f{n}"), leaf.clone().into()))
        .collect();
    insert(
        "large",
        vec![doc! {"_id": "wide", "p".repeat(WIDE.1): leaves}],
    )
}

/// Writes of several MiB, and some whose events are too large.
fn large_write(dice: &mut Dice) -> Command {
    let number = dice.between(0, 4);
    let filling = "x".repeat(MIB * dice.between(1, 14) as usize);
    match dice.below(8) {
        0 => {
            let mut insert = insert("large", vec![doc! {"_id": long(number), "n": 0}]);
            insert.kind = "insert too large";
            insert
        }
        1 => Command::new(
            "delete too large",
            &doc! {"delete": "large", "deletes": [{"q": {"_id": long(number)}, "limit": 1}]},
        ),
        2 => {
            let parent = "p".repeat(WIDE.1);
            let leaf = doc! {"$mergeObjects": ["$$leaf.v", {"v": {"$add": ["$$leaf.v.v", 1]}}]};
            let changed = doc! {"$map": {
                "input": {"$objectToArray": format!("${parent}")},
                "as": "leaf",
                "in": {"k": "$$leaf.k", "v": leaf},
            }};
            let pipeline = vec![doc! {"$set": {parent: {"$arrayToObject": changed}}}];
            let statement = doc! {"q": {"_id": "wide"}, "u": pipeline};
            Command::new("update too large", &one("large", statement))
        }
        3 => {
            let statement = doc! {"q": {"_id": long(number)}, "u": {"$inc": {"n": 1}}};
            Command::new("update too large", &one("large", statement))
        }
        4 | 5 => {
            let whole = doc! {"n": number, "filling": filling};
            let statement = doc! {"q": {"_id": number}, "u": whole, "upsert": true};
            Command::new("large replace", &one("large", statement))
        }
        _ => {
            let change = doc! {"$set": {"filling": filling, "n": dice.between(0, 9)}};
            let statement = doc! {"q": {"_id": number}, "u": change, "upsert": true};
            Command::new("large update", &one("large", statement))
        }
    }
}
