//! Documents that a target refuses.

use bson::{Document, doc};
use mongodb::{Client, Database, IndexModel};
use mongomirror::engine::progress::Progress;
use mongomirror::runner::MirrorHandle;

use super::{eventually, wait_for};

/// Two arrays, which no index over both fields can hold.
pub fn arrays(id: i32) -> Document {
    doc! {"_id": id, "a": [1, 2], "b": [3, 4]}
}

/// As somebody might who reads from the copy and wants it faster.
pub async fn strangers_index(target: &Database, collection: &str) {
    let orders = target.collection::<Document>(collection);
    let index = IndexModel::builder().keys(doc! {"a": 1, "b": 1}).build();
    orders.create_index(index).await.unwrap();
}

/// From here on no verification comes for a minute, unless it is asked for.
pub async fn verified(mirror: &MirrorHandle) {
    wait_for(mirror, "verified", |now| now.verification.last.is_some()).await;
}

pub async fn arrived(target: &Database, collection: &str, id: i32) {
    let orders = target.collection::<Document>(collection);
    eventually(&format!("{id} arrives"), async || {
        orders.find_one(doc! {"_id": id}).await.unwrap()
    })
    .await;
}

pub fn refused(progress: &Progress) -> Vec<&str> {
    let list = progress.quarantine.iter();
    let mut ids: Vec<&str> = list.map(|one| one.shown_id.as_str()).collect();
    ids.sort_unstable();
    ids
}

pub async fn noted(client: &Client) -> u64 {
    let state = client.database("mongomirror");
    let noted = state.collection::<Document>("quarantine");
    noted.count_documents(doc! {}).await.unwrap()
}
