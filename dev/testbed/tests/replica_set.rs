//! Replica sets of three members.

use bson::{Document, doc};
use mongodb::{
    Collection,
    options::{Acknowledgment, WriteConcern},
};
use testbed::ReplicaSet;

async fn three() -> ReplicaSet {
    ReplicaSet::builder().nodes(3).start().await.unwrap()
}

/// Writes as an application does that waits for the majority, and survives an election.
async fn insert(orders: &Collection<Document>, id: i32) {
    let insert = orders.insert_one(doc! {"_id": id});
    insert
        .write_concern(WriteConcern::majority())
        .await
        .unwrap();
}

#[tokio::test]
async fn three_members_elect_a_primary_and_another_after_a_step_down() {
    let set = three().await;
    let first = set.primary().await.unwrap();
    assert_eq!(set.secondaries().await.len(), 2);
    let second = set.step_down().await.unwrap();
    assert_ne!(second, first);
    assert!(set.node(second).is_primary().await.unwrap());
    assert!(!set.node(first).is_primary().await.unwrap());
}

#[tokio::test]
async fn a_set_with_authentication_and_tls_survives_the_death_of_its_primary() {
    let set = ReplicaSet::builder()
        .nodes(3)
        .auth(true)
        .tls(true)
        .start()
        .await
        .unwrap();
    let orders = set
        .client()
        .await
        .unwrap()
        .database("shop")
        .collection("orders");
    insert(&orders, 1).await;

    let dead = set.primary().await.unwrap();
    set.node(dead).kill().await.unwrap();
    let next = set.wait_for_primary().await.unwrap();
    assert_ne!(next, dead);
    insert(&orders, 2).await;

    set.node(dead).restart().await.unwrap();
    set.wait_until_settled().await.unwrap();
    assert!(set.node(dead).is_secondary().await.unwrap());
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 2);
}

#[tokio::test]
async fn a_frozen_primary_is_replaced() {
    let set = three().await;
    let frozen = set.primary().await.unwrap();
    set.node(frozen).pause().unwrap();
    let next = set.wait_for_primary().await.unwrap();
    assert_ne!(next, frozen);
    set.node(frozen).resume().unwrap();
    // For a moment both may believe to be the primary: the later election counts.
    assert_eq!(set.wait_for_primary().await.unwrap(), next);
    assert_eq!(set.wait_until_settled().await.unwrap(), next);
}

#[tokio::test]
async fn a_member_is_configured_as_wanted() {
    let set = ReplicaSet::builder()
        .nodes(2)
        .name("shop")
        .member(1, doc! {"priority": 0})
        .start()
        .await
        .unwrap();
    assert_eq!(set.primary().await.unwrap(), 0);
    assert!(set.uri().contains("replicaSet=shop"));
    assert!(set.node(1).uri().contains("directConnection=true"));
}

#[tokio::test]
async fn a_set_grows_from_one_member_to_three() {
    let set = ReplicaSet::builder()
        .nodes(3)
        .begin_with(1)
        .start()
        .await
        .unwrap();
    assert!(set.secondaries().await.is_empty());
    let orders = set
        .client()
        .await
        .unwrap()
        .database("shop")
        .collection("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    set.grow().await.unwrap();
    assert_eq!(set.secondaries().await.len(), 2);
    orders
        .insert_one(doc! {"_id": 2})
        .write_concern(WriteConcern::builder().w(Acknowledgment::Nodes(3)).build())
        .await
        .unwrap();
}
