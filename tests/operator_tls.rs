//! Certificates from Secrets: a private authority, X.509 authentication, and their rotation.

mod common;

use bson::{Document, doc};
use common::cluster::{Cluster, secret};
use common::{eventually, fill};
use mongodb::Database;
use testbed::{Certificate, ReplicaSet};

/// A Secret whose values are texts of several lines.
fn texts(name: &str, values: &[(&str, &str)]) -> String {
    let data: serde_json::Map<String, serde_json::Value> = values
        .iter()
        .map(|(key, text)| ((*key).to_owned(), (*text).into()))
        .collect();
    let secret = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "stringData": data,
    });
    format!("---\n{secret}\n")
}

fn certificate(name: &str, certificate: &Certificate) -> String {
    let (chain, key) = (&certificate.certificate, &certificate.key);
    texts(name, &[("tls.crt", chain), ("tls.key", key)])
}

const MIRROR: &str = "---
apiVersion: mongomirror.dev/v1alpha1
kind: MongoMirror
metadata: {name: shop}
spec:
  source:
    uriSecretRef: {name: shop}
    tls:
      caSecretRef: {name: authority}
      clientCertificateSecretRef: {name: certificate}
    database: shop
";

/// Makes a user that is known by its certificate.
async fn user(set: &ReplicaSet, name: &str) -> Certificate {
    let external = set.client().await.unwrap().database("$external");
    let roles = [
        "readWriteAnyDatabase",
        "dbAdminAnyDatabase",
        "clusterMonitor",
    ];
    let roles: Vec<Document> = roles
        .iter()
        .map(|role| doc! {"role": *role, "db": "admin"})
        .collect();
    let create = doc! {"createUser": format!("CN={name},O=mirrors"), "roles": roles};
    external.run_command(create).await.unwrap();
    let authority = set.authority().expect("TLS");
    authority.client(name, Some("mirrors")).unwrap()
}

async fn arrives(source: &Database, target: &Database, id: i32) {
    let orders = source.collection::<Document>("orders");
    orders.insert_one(doc! {"_id": id}).await.unwrap();
    let copies = target.collection::<Document>("orders");
    eventually("a document arrives", async || {
        copies.find_one(doc! {"_id": id}).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_authorities_and_certificates_come_from_secrets_and_are_rotated() {
    let set = ReplicaSet::builder()
        .auth(true)
        .require_client_certificates(true)
        .start()
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    fill(&shop, "orders", 0, 300).await;
    let first = user(&set, "first").await;
    // The spec alone asks for TLS.
    let hosts = set.node(0).address();
    let uri = format!(
        "mongodb://{hosts}/?replicaSet={}&authMechanism=MONGODB-X509",
        set.name()
    );
    let authority = texts(
        "authority",
        &[("ca.crt", set.authority().unwrap().certificate())],
    );
    let cluster = Cluster::start().await;
    let all = secret("shop", &uri) + MIRROR + &authority + &certificate("certificate", &first);
    cluster.apply(&all).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    arrives(&shop, &copy, 1000).await;
    let begun = cluster.field("shop", ".status.initialSync.startedAt").await;

    assert!(!begun.is_empty());
    // Another certificate, and the old one is worth nothing any more.
    let second = user(&set, "second").await;
    cluster.apply(&certificate("certificate", &second)).await;
    let gone = doc! {"dropUser": "CN=first,O=mirrors"};
    client
        .database("$external")
        .run_command(gone)
        .await
        .unwrap();
    arrives(&shop, &copy, 1001).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;

    // What is no certificate changes nothing but what is said.
    cluster
        .apply(&texts(
            "certificate",
            &[("tls.crt", "nonsense"), ("tls.key", "")],
        ))
        .await;
    let reason = r#".status.conditions[?(@.type=="Ready")].reason"#;
    cluster.wait("shop", reason, "InvalidCertificate").await;
    arrives(&shop, &copy, 1002).await;
    cluster.apply(&certificate("certificate", &second)).await;
    cluster.wait("shop", reason, "Mirroring").await;
    arrives(&shop, &copy, 1003).await;
    let still = cluster.field("shop", ".status.initialSync.startedAt").await;
    assert_eq!(begun, still, "it was not copied again");
    let log = cluster.log();
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_an_unknown_authority_are_not_trusted() {
    let set = ReplicaSet::builder().tls(true).start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client.database("shop"), "orders", 0, 10).await;
    let cluster = Cluster::start().await;
    let without = MIRROR.lines().filter(|line| {
        !["tls:", "caSecretRef", "clientCertificate"]
            .iter()
            .any(|part| line.contains(part))
    });
    let without = without.collect::<Vec<_>>().join("\n");
    cluster
        .apply(&(secret("shop", &set.uri()) + &without))
        .await;
    let ready = r#".status.conditions[?(@.type=="Ready")].reason"#;
    cluster.wait("shop", ready, "SourceUnreachable").await;
    let message = cluster.field("shop", ".status.message").await;
    assert!(message.contains("certificate"), "{message}");

    let authority = texts(
        "authority",
        &[("ca.crt", set.authority().unwrap().certificate())],
    );
    cluster.apply(&authority).await;
    let tls = r#"{"spec": {"source": {"tls": {"caSecretRef": {"name": "authority"}}}}}"#;
    cluster
        .kubectl(&["patch", "mongomirror", "shop", "--type=merge", "-p", tls])
        .await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    // Two that contradict each other.
    let plain = set.uri().replace("tls=true", "tls=false");
    cluster.apply(&secret("shop", &plain)).await;
    cluster.wait("shop", ready, "InvalidUri").await;
}
