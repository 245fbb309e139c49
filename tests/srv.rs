//! Connection strings with `mongodb+srv`: names and options from a DNS server of the test's own.

mod common;

use std::path::Path;

use bson::{Document, doc};
use common::process::Manifest;
use common::{assert_equal, eventually, fill, not_tried};
use testbed::{Dns, Entry, ReplicaSet};

/// What the connection string names.
const NAME: &str = "shop.mirror.test";
/// The server's host, in the same domain as an SRV record demands.
const HOST: &str = "node.mirror.test";

fn entries(host: &str, port: u16, options: &str) -> Vec<Entry> {
    vec![
        Entry::Srv(NAME.to_owned(), vec![(host.to_owned(), port)]),
        Entry::Txt(NAME.to_owned(), options.to_owned()),
        Entry::Local(host.to_owned()),
    ]
}

fn manifest(uri: &str, authority: &str) -> String {
    let documents = [
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "shop"},
            "stringData": {"uri": uri, "ca.crt": authority},
        }),
        serde_json::json!({
            "apiVersion": "mongomirror.dev/v1alpha1",
            "kind": "MongoMirror",
            "metadata": {"name": "shop"},
            "spec": {"source": {
                "uriSecretRef": {"name": "shop"},
                "tls": {"caSecretRef": {"name": "shop"}},
                "database": "shop",
            }},
        }),
    ];
    documents
        .map(|document| format!("---\n{document}\n"))
        .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_options_come_from_dns_as_soon_as_they_are_right() {
    let dns = match Dns::start(Vec::new()) {
        Ok(dns) => dns,
        Err(error) => {
            not_tried(&format!("this machine does not let us serve DNS: {error}"));
            return;
        }
    };
    let set = ReplicaSet::builder()
        .auth(true)
        .certified_name(HOST)
        .start();
    let set = set.await.unwrap();
    let client = set.client().await.unwrap();
    let roles = [
        "readWriteAnyDatabase",
        "dbAdminAnyDatabase",
        "clusterMonitor",
    ];
    let roles = roles.map(|role| role.into()).to_vec();
    set.create_user("mirror", "canary-srv", roles)
        .await
        .unwrap();
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    fill(&shop, "orders", 0, 100).await;
    let port = set.node(0).port();

    let mirrors = Manifest::new("mongodb://unused", "mongodb://unused", &[]);
    let uri = format!("mongodb+srv://mirror:canary-srv@{NAME}/");
    let authority = set.authority().expect("TLS").certificate();
    mirrors.write(&manifest(&uri, authority));
    let wrapper: Vec<String> = dns
        .wrapper()
        .into_iter()
        .map(|part| part.into_string().unwrap())
        .collect();
    let before: Vec<&str> = wrapper[1..].iter().map(String::as_str).collect();
    let process = mirrors.run_by(Path::new(&wrapper[0]), &before, &[]);
    let says = async |what: &str| {
        eventually(what, async || mirrors.log().contains(what).then_some(())).await;
    };

    // Nothing is known of the name yet; then it leads out of its own domain; then its options are
    // not those that DNS may give. Each is told, with the name, and tried again.
    says(NAME).await;
    dns.set(entries("node.elsewhere.test", port, "authSource=admin"));
    says("node.elsewhere.test").await;
    dns.set(entries(HOST, port, "tlsInsecure=true"));
    says("authSource").await;
    let copied = copy.collection::<Document>("orders");
    assert_eq!(copied.count_documents(doc! {}).await.unwrap(), 0);

    dns.set(entries(HOST, port, "authSource=admin&replicaSet=rs0"));
    eventually("all is copied", async || {
        let count = copied.count_documents(doc! {}).await.unwrap();
        (count == 100).then_some(())
    })
    .await;
    fill(&shop, "orders", 1000, 10).await;
    eventually("changes arrive", async || {
        let count = copied.count_documents(doc! {}).await.unwrap();
        (count == 110).then_some(())
    })
    .await;
    assert_equal(&shop, &copy).await;
    let asked = dns.asked();
    assert!(
        asked.contains(&format!("SRV _mongodb._tcp.{NAME}.")),
        "{asked:?}"
    );
    assert!(asked.contains(&format!("TXT {NAME}.")), "{asked:?}");
    assert!(process.stop().await.unwrap().success());
}
