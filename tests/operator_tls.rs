//! Certificates from Secrets: a private authority, X.509 authentication, and their rotation.

mod common;

use std::time::{Duration, Instant};

use bson::{Document, doc};
use common::cluster::{Cluster, mirror, secret};
use common::process::checkpoint;
use common::{assert_equal, eventually, fill};
use mongodb::{Client, Database};
use testbed::{Authority, Certificate, ReplicaSet};

/// Another authority is in use within this, on a machine with other work to do.
const SOON: Duration = Duration::from_secs(30);

const READY: &str = ".status.conditions[?(@.type==\"Ready\")]";

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

/// The Secret with these authorities' certificates.
fn authorities(all: &[&Authority]) -> String {
    let all: Vec<&str> = all.iter().map(|one| one.certificate()).collect();
    texts("authority", &[("ca.crt", &all.concat())])
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

/// Without these lines.
fn mirror_without(parts: &[&str]) -> String {
    let is_left = |line: &&str| !parts.iter().any(|part| line.contains(part));
    let lines = MIRROR.lines().filter(is_left);
    lines.map(|line| format!("{line}\n")).collect()
}

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

/// A server that lets nobody in without a certificate, with something in it.
async fn with_certificates() -> (ReplicaSet, Client) {
    let set = ReplicaSet::builder()
        .auth(true)
        .require_client_certificates(true)
        .behind_proxies()
        .start()
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    fill(&client.database("shop"), "orders", 0, 300).await;
    (set, client)
}

/// An operator with a mirror that is known by this certificate.
async fn mirror_by(set: &ReplicaSet, own: &Certificate) -> Cluster {
    // The spec alone asks for TLS.
    let uri = format!(
        "mongodb://{}/?replicaSet={}&authMechanism=MONGODB-X509",
        set.node(0).announced(),
        set.name()
    );
    let authority = authorities(&[set.authority().expect("TLS")]);
    let cluster = Cluster::start().await;
    let all = secret("shop", &uri) + MIRROR + &authority + &certificate("certificate", own);
    cluster.apply(&all).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    cluster
}

/// How often the mirror was started.
async fn epoch(client: &Client) -> i64 {
    let checkpoint = checkpoint(client, "shop").await.unwrap();
    checkpoint.get_i64("epoch").unwrap()
}

/// Waits until it was started so often.
async fn started(client: &Client, times: i64) {
    eventually("it is started again", async || {
        (epoch(client).await == times).then_some(())
    })
    .await;
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
    let (set, client) = with_certificates().await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    let first = user(&set, "first").await;
    let cluster = mirror_by(&set, &first).await;
    arrives(&shop, &copy, 1000).await;
    let begun = cluster.field("shop", ".status.initialSync.startedAt").await;

    assert!(!begun.is_empty());
    // Another certificate, and the old one is worth nothing any more.
    let second = user(&set, "second").await;
    cluster.apply(&certificate("certificate", &second)).await;
    started(&client, 2).await;
    let gone = doc! {"dropUser": "CN=first,O=mirrors"};
    client
        .database("$external")
        .run_command(gone)
        .await
        .unwrap();
    arrives(&shop, &copy, 1001).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    let still = cluster.field("shop", ".status.initialSync.startedAt").await;
    assert_eq!(begun, still, "it was not copied again");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_an_unknown_authority_are_not_trusted() {
    let set = ReplicaSet::builder().tls(true).start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client.database("shop"), "orders", 0, 10).await;
    let cluster = Cluster::start().await;
    let without = mirror_without(&["tls:", "caSecretRef", "clientCertificate"]);
    cluster
        .apply(&(secret("shop", &set.uri()) + &without))
        .await;
    let ready = format!("{READY}.reason");
    cluster.wait("shop", &ready, "SourceUnreachable").await;
    let message = cluster.field("shop", ".status.message").await;
    assert!(message.contains("certificate"), "{message}");

    let authority = authorities(&[set.authority().expect("TLS")]);
    cluster.apply(&authority).await;
    let tls = r#"{"spec": {"source": {"tls": {"caSecretRef": {"name": "authority"}}}}}"#;
    cluster
        .kubectl(&["patch", "mongomirror", "shop", "--type=merge", "-p", tls])
        .await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    // Two that contradict each other.
    let plain = set.uri().replace("tls=true", "tls=false");
    cluster.apply(&secret("shop", &plain)).await;
    cluster.wait("shop", &ready, "InvalidUri").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_has_an_authority_of_its_own() {
    let set = || ReplicaSet::builder().tls(true).start();
    let (from, to) = tokio::try_join!(set(), set()).unwrap();
    let shop = from.client().await.unwrap().database("shop");
    let copy = to.client().await.unwrap().database("shop_backup");
    fill(&shop, "orders", 0, 10).await;
    let cluster = Cluster::start().await;
    let authority = |name: &str, set: &ReplicaSet| {
        let authority = set.authority().expect("TLS");
        texts(name, &[("ca.crt", authority.certificate())])
    };
    let secrets = secret("from", &from.uri()) + &secret("to", &to.uri());
    let authorities = authority("from-authority", &from) + &authority("to-authority", &to);
    let target = "  target: {uriSecretRef: {name: to}, tls: {caSecretRef: {name: to-authority}}}\n";
    let tls = "  source: {tls: {caSecretRef: {name: from-authority}}, ";
    let manifest = mirror("shop", "from", "shop", target).replace("  source: {", tls);
    cluster.apply(&(secrets + &manifest + &authorities)).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    arrives(&shop, &copy, 1000).await;
    // Neither is trusted for the other.
    let ready = format!("{READY}.reason");
    for (side, own, other, reason) in [
        ("source", "from", "to", "SourceUnreachable"),
        ("target", "to", "from", "TargetUnreachable"),
    ] {
        let edit = async |whose: &str| {
            let tls = format!(r#"{{"caSecretRef": {{"name": "{whose}-authority"}}}}"#);
            let edit = format!(r#"{{"spec": {{"{side}": {{"tls": {tls}}}}}}}"#);
            cluster.patch("shop", &edit).await;
        };
        edit(other).await;
        cluster.wait("shop", &ready, reason).await;
        let message = cluster.field("shop", ".status.message").await;
        assert!(message.contains("certificate"), "{message}");
        edit(own).await;
        cluster.wait("shop", &ready, "Mirroring").await;
    }
    arrives(&shop, &copy, 1001).await;
    assert_equal(&shop, &copy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_goes_on_when_its_certificates_go_or_are_spoiled_and_says_so() {
    let (set, client) = with_certificates().await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    let own = user(&set, "first").await;
    let cluster = mirror_by(&set, &own).await;
    let good = authorities(&[set.authority().expect("TLS")]) + &certificate("certificate", &own);
    let (chain, key) = (own.certificate.as_str(), own.key.as_str());
    let other = user(&set, "other").await;
    let of_nothing = |kind: &str| format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
    let (no_certificate, no_key) = (of_nothing("CERTIFICATE"), of_nothing("PRIVATE KEY"));
    let pair = |chain: &str, key: &str| {
        Some(texts(
            "certificate",
            &[("tls.crt", chain), ("tls.key", key)],
        ))
    };
    let useless = "no certificate that can be used with its key";
    let mut id = 1000;
    for (name, spoiled, reason, hint) in [
        ("authority", None, "SecretNotFound", "\"authority\""),
        ("certificate", None, "SecretNotFound", "\"certificate\""),
        (
            "authority",
            Some(texts("authority", &[("ca", chain)])),
            "SecretKeyMissing",
            "\"ca.crt\"",
        ),
        (
            "certificate",
            Some(texts("certificate", &[("tls.crt", chain)])),
            "SecretKeyMissing",
            "\"tls.key\"",
        ),
        (
            "authority",
            Some(texts("authority", &[("ca.crt", "nonsense")])),
            "InvalidCertificate",
            "the authorities' certificates",
        ),
        (
            "authority",
            Some(texts("authority", &[("ca.crt", &no_certificate)])),
            "InvalidCertificate",
            "the authorities' certificates",
        ),
        (
            "certificate",
            pair("nonsense", key),
            "InvalidCertificate",
            "the mirror's certificate",
        ),
        (
            "certificate",
            pair(chain, "nonsense"),
            "InvalidCertificate",
            "the certificate's key",
        ),
        (
            "certificate",
            pair(&no_certificate, key),
            "InvalidCertificate",
            useless,
        ),
        (
            "certificate",
            pair(chain, &no_key),
            "InvalidCertificate",
            useless,
        ),
        (
            "certificate",
            pair(chain, &other.key),
            "InvalidCertificate",
            useless,
        ),
    ] {
        // Applied anew each time: what is no longer there is taken away only so.
        cluster.kubectl(&["delete", "secret", name]).await;
        if let Some(spoiled) = spoiled {
            cluster.apply(&spoiled).await;
        }
        cluster.goes_on_in_spite_of("shop", reason, hint).await;
        arrives(&shop, &copy, id).await;
        // Also over new connections.
        set.node(0).proxy().close();
        arrives(&shop, &copy, id + 1).await;
        id += 2;
        cluster.apply(&good).await;
        cluster
            .wait("shop", &format!("{READY}.reason"), "Mirroring")
            .await;
    }
    assert_equal(&shop, &copy).await;
    // What was started once has gone on all the time.
    assert_eq!(epoch(&client).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_follows_servers_to_another_authority_in_either_order() {
    let set = ReplicaSet::builder().tls(true).behind_proxies().start();
    let set = set.await.unwrap();
    let first = set.authority().expect("TLS");
    let client = set.client().await.unwrap();
    fill(&client.database("shop"), "orders", 0, 300).await;
    let cluster = Cluster::start().await;
    let all = secret("shop", &set.uri()) + &mirror_without(&["clientCertificate"]);
    cluster.apply(&(all + &authorities(&[first]))).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    let copied = async || {
        let copied = ".status.conditions[?(@.type==\"InitialSyncCompleted\")]";
        let copied = format!("{copied}['status','lastTransitionTime']");
        let at = cluster.field("shop", ".status.initialSync").await;
        (cluster.field("shop", &copied).await, at)
    };
    let begun = copied().await;
    assert!(begun.0.starts_with("True "), "{begun:?}");
    let databases = |client: &Client| (client.database("shop"), client.database("shop_backup"));
    // Lets the server be of another authority, and everybody connect anew.
    let change = async |authority: &Authority| {
        set.certify_by(authority).await.unwrap();
        set.node(0).proxy().close();
        set.client().await.unwrap()
    };

    // As it is done: both are trusted while the server changes.
    let second = Authority::new("second").unwrap();
    cluster.apply(&authorities(&[first, &second])).await;
    started(&client, 2).await;
    let (shop, copy) = databases(&client);
    arrives(&shop, &copy, 1000).await;
    let client = change(&second).await;
    let changed = Instant::now();
    let (shop, copy) = databases(&client);
    arrives(&shop, &copy, 1001).await;
    let took = changed.elapsed();
    eprintln!("over new connections after {took:?}");
    assert!(took < SOON, "{took:?}");
    assert_eq!(epoch(&client).await, 2, "nothing had to be started again");
    cluster.apply(&authorities(&[&second])).await;
    started(&client, 3).await;
    arrives(&shop, &copy, 1002).await;
    let list = ["get", "events.events.k8s.io", "-o", "yaml"];
    let events = cluster.kubectl(&list).await;
    assert!(!events.contains("certificate"), "{events}");

    // As it is done by mistake: the server first.
    let third = Authority::new("third").unwrap();
    let client = change(&third).await;
    let (shop, copy) = databases(&client);
    let late = shop.collection::<Document>("orders");
    late.insert_one(doc! {"_id": 1003}).await.unwrap();
    let reason = format!("{READY}.reason");
    cluster.wait("shop", &reason, "SourceUnreachable").await;
    // At first only that connections have ended.
    eventually("the mirror says why", async || {
        let message = cluster.field("shop", ".status.message").await;
        message.contains("certificate").then_some(())
    })
    .await;
    let copies = copy.collection::<Document>("orders");
    let found = copies.find_one(doc! {"_id": 1003}).await.unwrap();
    assert_eq!(found, None, "no server of this authority is trusted");
    cluster.apply(&authorities(&[&third])).await;
    let applied = Instant::now();
    eventually("what was written meanwhile arrives", async || {
        copies.find_one(doc! {"_id": 1003}).await.unwrap()
    })
    .await;
    let took = applied.elapsed();
    eprintln!("with the new authority after {took:?}");
    assert!(took < SOON, "{took:?}");
    cluster.wait("shop", &reason, "Mirroring").await;
    arrives(&shop, &copy, 1004).await;
    assert_equal(&shop, &copy).await;
    assert_eq!(copied().await, begun, "it was not copied again");
}
