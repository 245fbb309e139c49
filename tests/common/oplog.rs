//! Oplogs that do not reach back for long.

use bson::{Document, doc};
use mongodb::Client;

use super::PATIENCE;

/// Writes elsewhere until the oplog has lost everything that was there when it was called.
pub async fn roll_over(client: &Client) {
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    let newest = oplog
        .find_one(doc! {})
        .sort(doc! {"$natural": -1})
        .await
        .unwrap()
        .unwrap();
    let elsewhere = client
        .database("elsewhere")
        .collection::<Document>("filler");
    let started = tokio::time::Instant::now();
    loop {
        let filler = (0..40).map(|_| doc! {"text": "x".repeat(50_000)});
        elsewhere.insert_many(filler).await.unwrap();
        let oldest = oplog
            .find_one(doc! {})
            .sort(doc! {"$natural": 1})
            .await
            .unwrap()
            .unwrap();
        if oldest.get_timestamp("ts").unwrap() > newest.get_timestamp("ts").unwrap() {
            elsewhere.drop().await.unwrap();
            return;
        }
        assert!(started.elapsed() < PATIENCE, "the oplog does not roll over");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}
