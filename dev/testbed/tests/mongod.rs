//! MongoDB servers of one member, and standalone ones.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::{Client, Collection, options::ClientOptions};
use testbed::{ReplicaSet, Standalone, Version};

const AT_ONCE: Duration = Duration::from_millis(500);

fn collection(client: &Client) -> Collection<Document> {
    client.database("shop").collection("orders")
}

/// A client that gives up quickly, as configured by nothing but a URI.
async fn plain_client(uri: &str) -> Client {
    let mut options = ClientOptions::parse(uri).await.unwrap();
    options.server_selection_timeout = Some(AT_ONCE);
    Client::with_options(options).unwrap()
}

#[tokio::test]
async fn a_test_gets_the_very_version_it_asks_for() {
    for version in Version::ALL {
        let set = ReplicaSet::builder()
            .version(version)
            .start()
            .await
            .unwrap();
        let info = set.admin(doc! {"buildInfo": 1}).await.unwrap();
        assert_eq!(info.get_str("version").unwrap(), version.as_str());
        assert_eq!(set.version(), version.as_str());
    }
}

#[tokio::test]
async fn a_server_goes_on_as_a_newer_version() {
    let set = ReplicaSet::builder()
        .version(Version::V6_0_5)
        .start()
        .await
        .unwrap();
    let orders = collection(&set.client().await.unwrap());
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    set.node(0).restart_as(Version::V6_0_27).await.unwrap();
    set.wait_for_primary().await.unwrap();
    let info = set.admin(doc! {"buildInfo": 1}).await.unwrap();
    assert_eq!(info.get_str("version").unwrap(), "6.0.27");
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 1);
}

#[tokio::test]
async fn data_survive_kill_and_restart() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let orders = collection(&set.client().await.unwrap());
    orders.insert_one(doc! {"_id": 1}).await.unwrap();

    let before = set.node(0).pid();
    set.node(0).kill().await.unwrap();
    assert_eq!(set.node(0).pid(), None);
    set.node(0).restart().await.unwrap();
    set.wait_for_primary().await.unwrap();

    assert_ne!(set.node(0).pid(), before);
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 1);
}

#[tokio::test]
async fn a_single_member_steps_down_and_comes_back() {
    let set = ReplicaSet::builder().start().await.unwrap();
    assert_eq!(set.step_down().await.unwrap(), 0);
    let orders = collection(&set.client().await.unwrap());
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
}

#[tokio::test]
async fn parameters_and_the_size_of_the_oplog_reach_the_server() {
    let set = ReplicaSet::builder()
        .oplog_mb(10)
        .param("ttlMonitorSleepSecs", 1)
        .arg("--syncdelay", "3")
        .cache_gb(0.3)
        .start()
        .await
        .unwrap();
    let options = set.admin(doc! {"getCmdLineOpts": 1}).await.unwrap();
    let parsed = options.get_document("parsed").unwrap();
    let parameters = parsed.get_document("setParameter").unwrap();
    assert_eq!(parameters.get_str("ttlMonitorSleepSecs").unwrap(), "1");
    let replication = parsed.get_document("replication").unwrap();
    assert_eq!(replication.get_i32("oplogSizeMB").unwrap(), 10);
    let storage = parsed.get_document("storage").unwrap();
    assert_eq!(storage.get_f64("syncPeriodSecs").unwrap(), 3.0);
}

#[tokio::test]
async fn a_paused_server_does_not_answer_until_it_is_resumed() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let admin = client.database("admin");
    set.node(0).pause().unwrap();
    let ping = admin.run_command(doc! {"ping": 1});
    let answer = tokio::time::timeout(AT_ONCE, ping.into_future()).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(set.primary().await.is_err());
    set.node(0).resume().unwrap();
    admin.run_command(doc! {"ping": 1}).await.unwrap();
}

#[tokio::test]
async fn authentication_refuses_wrong_passwords_and_grants_what_a_role_grants() {
    let set = ReplicaSet::builder().auth(true).start().await.unwrap();
    let role = doc! {"role": "read", "db": "shop"};
    set.create_user("reader", "p@ss/word", [role.into()])
        .await
        .unwrap();

    let reader = set
        .client_for(&set.uri_as("reader", "p@ss/word"))
        .await
        .unwrap();
    collection(&reader).find_one(doc! {}).await.unwrap();
    assert!(collection(&reader).insert_one(doc! {}).await.is_err());

    let wrong = set
        .client_for(&set.uri_as("reader", "wrong"))
        .await
        .unwrap();
    let refused = collection(&wrong).find_one(doc! {}).await.unwrap_err();
    assert!(
        refused.to_string().contains("Authentication failed"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_server_with_tls_is_reached_only_with_tls_and_its_authority() {
    let set = ReplicaSet::builder().tls(true).start().await.unwrap();
    let client = set.client().await.unwrap();
    collection(&client)
        .insert_one(doc! {"_id": 1})
        .await
        .unwrap();

    let without_tls = set.uri().replace("&tls=true", "");
    for uri in [without_tls, set.uri()] {
        // The second URI asks for TLS, but does not know the authority.
        let stranger = plain_client(&uri).await;
        assert!(
            collection(&stranger).find_one(doc! {}).await.is_err(),
            "{uri}"
        );
    }
}

#[tokio::test]
async fn a_client_logs_in_with_a_certificate() {
    let set = ReplicaSet::builder()
        .require_client_certificates(true)
        .auth(true)
        .start()
        .await
        .unwrap();
    let external = set.client().await.unwrap().database("$external");
    let roles = [doc! {"role": "read", "db": "shop"}];
    let user = doc! {"createUser": "CN=mirror", "roles": roles};
    external.run_command(user).await.unwrap();

    let authority = set.authority().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (ca, pem) = (folder.path().join("ca"), folder.path().join("pem"));
    let certificate = authority.client("mirror", None).unwrap();
    std::fs::write(&ca, authority.certificate()).unwrap();
    std::fs::write(&pem, certificate.combined()).unwrap();
    let uri = format!(
        "mongodb://{}/?tls=true&authMechanism=MONGODB-X509&tlsCAFile={}&tlsCertificateKeyFile={}",
        set.node(0).address(),
        ca.display(),
        pem.display()
    );
    let mirror = plain_client(&uri).await;
    collection(&mirror).find_one(doc! {}).await.unwrap();
    assert!(collection(&mirror).insert_one(doc! {}).await.is_err());
}

#[tokio::test]
async fn a_standalone_server_has_no_replica_set() {
    let server = Standalone::builder().auth(true).start().await.unwrap();
    let hello = server.node().hello().await.unwrap();
    assert!(!hello.contains_key("setName"), "{hello}");
    let orders = collection(&server.client().await.unwrap());
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    assert!(orders.watch().await.is_err());
}
