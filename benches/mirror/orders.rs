//! The documents, and the updates of a backlog, as raw bytes.

use bson::{Bson, Document, RawDocumentBuf, doc};
use mongomirror::engine::bson::encode::Encoder;
use mongomirror::engine::bson::scan::kind;
use serde::{Deserialize, Serialize};

/// The collection.
pub const ORDERS: &str = "orders";

/// One order, of about a kilobyte.
pub fn order(n: i32) -> Document {
    doc! {
        "_id": n,
        "customer": format!("customer-{}", n % 977),
        "status": "new",
        "total": f64::from(n) * 1.25,
        "quantity": n % 17,
        "tags": ["a", "b", format!("t{}", n % 13)],
        "address": {"street": format!("street {n}"), "city": "city", "geo": {"x": n, "y": -n}},
        "note": "x".repeat(776),
        "nothing": Bson::Null,
    }
}

/// Many updates: each sets three fields of one order to new values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Backlog {
    /// How many.
    pub updates: u32,
    /// How many orders take part, each equally often: the first ones, so that servers whose cache
    /// holds all orders need not write pages while it runs.
    pub orders: u32,
    /// No two backlogs of one number may follow each other, or the second would change nothing.
    pub number: u32,
}

impl Backlog {
    /// A prime, so that every order has its turn, and neighbours in time are no neighbours in the
    /// collection.
    const STEP: u64 = 76_543;

    /// Which order update number `n` goes to.
    fn id(self, n: u32) -> i32 {
        let place = u64::from(n) * Self::STEP % u64::from(self.orders);
        i32::try_from(place).unwrap_or(i32::MAX)
    }

    /// Updates `from..to` as one `update` command: ordered, waiting for the majority.
    pub fn command(self, from: u32, to: u32) -> RawDocumentBuf {
        let statements = usize::try_from(to - from).unwrap_or(0);
        let mut encoder = Encoder::with_capacity(statements * 128 + 256);
        let root = encoder.begin();
        encoder.string("update", ORDERS);
        let updates = encoder.begin_array("updates");
        for (index, n) in (from..to).enumerate() {
            let statement = encoder.begin_element(index);
            let query = encoder.begin_document("q");
            encoder.int("_id", self.id(n));
            encoder.end(query);
            let update = encoder.begin_document("u");
            let set = encoder.begin_document("$set");
            encoder.string("status", &format!("paid-{}-{n}", self.number));
            let total = f64::from(n) + f64::from(self.number) / 16.0;
            encoder.raw(kind::DOUBLE, b"total", &total.to_le_bytes());
            let quantity = n.wrapping_add(self.number << 24);
            encoder.raw(kind::INT32, b"quantity", &quantity.to_le_bytes());
            encoder.end(set);
            encoder.end(update);
            encoder.end(statement);
        }
        encoder.end(updates);
        encoder.bool("ordered", true);
        majority(&mut encoder);
        encoder.end(root);
        encoder.finish()
    }
}

/// The write concern of everything that is measured: the mirror's own.
pub fn majority(encoder: &mut Encoder) {
    let concern = encoder.begin_document("writeConcern");
    encoder.string("w", "majority");
    encoder.end(concern);
}
