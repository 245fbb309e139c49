//! Secrets that change, go and come back while mirrors run, on servers that ask for passwords.

mod common;

use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use common::cluster::{Cluster, mirror, secret};
use common::process::checkpoint;
use common::{assert_equal, eventually, fill};
use mongodb::Client;
use testbed::ReplicaSet;

/// A rotated password is in use within this, on a machine with other work to do; it takes some tenths
/// of a second. Where the old one was refused meanwhile, tries that have begun come to their end
/// first, and what waits for a human waits half a minute.
const SOON: Duration = Duration::from_secs(15);

const READY: &str = ".status.conditions[?(@.type==\"Ready\")]";
const REPLICATING: &str = ".status.conditions[?(@.type==\"Replicating\")].status";
const STARTED: &str = ".status.initialSync.startedAt";

/// A server with authentication and an operator.
struct Stage {
    cluster: Cluster,
    set: ReplicaSet,
    client: Client,
    written: i32,
}

impl Stage {
    async fn start() -> Self {
        let set = ReplicaSet::builder().auth(true).start().await.unwrap();
        let client = set.client().await.unwrap();
        fill(&client.database("shop"), "orders", 0, 300).await;
        let mut cluster = Cluster::without_operator().await;
        // No password is in what is told to those who look for a fault either.
        let verbose = [("RUST_LOG", "debug,mongomirror=trace".to_owned())];
        cluster.start_operator_with(&verbose);
        Self {
            cluster,
            set,
            client,
            written: 0,
        }
    }

    async fn create_user(&self, name: &str, password: &str, roles: &[(&str, &str)]) {
        let roles = roles
            .iter()
            .map(|(role, db)| doc! {"role": *role, "db": *db});
        let created = self.set.create_user(name, password, roles.map(Bson::from));
        created.await.unwrap();
    }

    /// Gives a user another password.
    async fn change_password(&self, user: &str, password: &str) {
        let change = doc! {"updateUser": user, "pwd": password};
        self.set.admin(change).await.unwrap();
    }

    /// Ends all connections, and forgets who had logged in.
    async fn restart_server(&self) {
        self.set.node(0).restart().await.unwrap();
        self.set.wait_for_primary().await.unwrap();
    }

    /// Waits until the mirror is as it should be, and has nothing to say.
    async fn is_well(&self) {
        let reason = format!("{READY}.reason");
        self.cluster.wait("shop", &reason, "Mirroring").await;
        let message = self.cluster.field("shop", ".status.message").await;
        assert!(!message.contains("Secret"), "{message}");
    }

    /// Writes one document more.
    async fn write(&mut self) -> Document {
        self.written += 1;
        let document = doc! {"_id": 1000 + self.written};
        let source = self.client.database("shop");
        let orders = source.collection::<Document>("orders");
        orders.insert_one(&document).await.unwrap();
        document
    }

    /// Waits until it is on the target.
    async fn arrives(&self, document: Document) {
        let copies = self.client.database("shop_backup");
        let copies = copies.collection::<Document>("orders");
        eventually("it arrives", async || {
            let found = copies.find_one(document.clone()).await;
            found.ok().flatten()
        })
        .await;
    }

    async fn follows(&mut self) {
        let document = self.write().await;
        self.arrives(document).await;
    }

    /// How often the mirror was started.
    async fn epoch(&self) -> i64 {
        let checkpoint = checkpoint(&self.client, "shop").await.unwrap();
        checkpoint.get_i64("epoch").unwrap()
    }

    async fn is_equal(&self) {
        let (source, target) = ("shop", "shop_backup");
        let (source, target) = (self.client.database(source), self.client.database(target));
        assert_equal(&source, &target).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_passwords_are_taken_up_at_once_and_without_another_copy() {
    let mut stage = Stage::start().await;
    stage
        .create_user("reader", "canary-1", &[("read", "shop")])
        .await;
    let writes = [
        ("readWrite", "shop_backup"),
        ("dbAdmin", "shop_backup"),
        ("readWrite", "mongomirror"),
    ];
    stage.create_user("writer", "canary-1", &writes).await;
    let from = |password| secret("from", &stage.set.uri_as("reader", password));
    // By default the servers choose.
    let into = |password| {
        let uri = stage.set.uri_as("writer", password);
        secret("into", &(uri + "&authMechanism=SCRAM-SHA-256"))
    };
    let (from, into) = (
        [from("canary-1"), from("canary-2"), from("canary-3")],
        [into("canary-1"), into("canary-2")],
    );
    let target = "  target: {database: shop_backup, uriSecretRef: {name: into}}\n";
    let manifest = from[0].clone() + &into[0] + &mirror("shop", "from", "shop", target);
    stage.cluster.apply(&manifest).await;
    stage.is_well().await;
    stage.follows().await;
    let started = stage.cluster.field("shop", STARTED).await;
    assert!(!started.is_empty());
    assert_eq!(stage.epoch().await, 1);

    // As it is done: who is logged in stays so, and the Secret follows.
    stage.change_password("reader", "canary-2").await;
    stage.follows().await;
    stage.cluster.apply(&from[1]).await;
    let applied = Instant::now();
    eventually("it is started with the new password", async || {
        (stage.epoch().await == 2).then_some(())
    })
    .await;
    stage.follows().await;
    let took = applied.elapsed();
    eprintln!("with the new password after {took:?}");
    assert!(took < SOON, "{took:?}");
    stage.is_well().await;

    // As it is done by mistake: nobody is logged in any more, and the Secret is forgotten for long
    // enough that the mirror says so.
    stage.change_password("writer", "canary-2").await;
    stage.restart_server().await;
    let late = stage.write().await;
    let reason = format!("{READY}.reason");
    stage
        .cluster
        .wait("shop", &reason, "AuthenticationFailed")
        .await;
    stage.cluster.apply(&into[1]).await;
    let applied = Instant::now();
    stage.arrives(late).await;
    eprintln!("with the new password after {:?}", applied.elapsed());
    stage.is_well().await;

    // The Secret before the server: nobody need touch the Secret again.
    stage.cluster.apply(&from[2]).await;
    let reason = format!("{READY}.reason");
    stage
        .cluster
        .wait("shop", &reason, "AuthenticationFailed")
        .await;
    let late = stage.write().await;
    stage.change_password("reader", "canary-3").await;
    let changed = Instant::now();
    stage.arrives(late).await;
    eprintln!(
        "with the server's new password after {:?}",
        changed.elapsed()
    );
    stage.is_well().await;
    stage.follows().await;
    stage.is_equal().await;
    assert_eq!(stage.cluster.field("shop", STARTED).await, started);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_runs_goes_on_when_its_secret_goes_or_is_spoiled_and_says_so() {
    let mut stage = Stage::start().await;
    let good = secret("mongo", &stage.set.uri());
    let manifest = good.clone() + &mirror("shop", "mongo", "shop", "");
    stage.cluster.apply(&manifest).await;
    stage.is_well().await;
    let started = stage.cluster.field("shop", STARTED).await;
    let refused = stage.set.uri() + "&tlsInsecure=true";
    let no_text = "apiVersion: v1\nkind: Secret\nmetadata: {name: mongo}\ndata: {uri: //79}\n";
    let other_key = good.replace("{uri: ", "{url: ");
    for (spoiled, reason, hint) in [
        (None, "SecretNotFound", "\"mongo\""),
        (Some(other_key.as_str()), "SecretKeyMissing", "\"uri\""),
        (
            Some(&secret("mongo", "canary-x")),
            "InvalidUri",
            "mongodb://",
        ),
        (
            Some(&secret("mongo", &refused)),
            "InvalidUri",
            "tlsInsecure",
        ),
        (Some(no_text), "InvalidUri", "not text"),
    ] {
        // Applied anew each time: what is no longer there is taken away only so.
        let delete = ["delete", "secret", "mongo"];
        stage.cluster.kubectl(&delete).await;
        if let Some(spoiled) = spoiled {
            stage.cluster.apply(spoiled).await;
        }
        let cluster = &stage.cluster;
        cluster
            .wait("shop", &format!("{READY}.reason"), reason)
            .await;
        cluster.goes_on_in_spite_of("shop", reason, hint).await;
        assert_eq!(cluster.field("shop", REPLICATING).await, "True");
        stage.follows().await;
        if spoiled.is_none() {
            // Also over new connections.
            stage.restart_server().await;
            stage.follows().await;
        }
        stage.cluster.apply(&good).await;
        stage.is_well().await;
        stage.follows().await;
    }
    let log = stage.cluster.log();
    assert!(!log.contains("restarting the mirror"), "{log}");

    let list = "jsonpath={range .items[*]}{.type} {.reason}{\"\\n\"}{end}";
    let list = ["get", "events.events.k8s.io", "-o", list];
    for event in ["SecretNotFound", "SecretKeyMissing", "InvalidUri"] {
        let wanted = format!("Warning {event}");
        eventually(&wanted, async || {
            let events = stage.cluster.kubectl(&list).await;
            events.lines().any(|line| line == wanted).then_some(())
        })
        .await;
    }

    // An edit waits, and costs nothing.
    stage.cluster.kubectl(&["delete", "secret", "mongo"]).await;
    let edit = r#"{"spec": {"collections": {"exclude": ["carts"]}}}"#;
    stage.cluster.patch("shop", edit).await;
    let said = eventually("it says that the edit waits", async || {
        let message = stage.cluster.field("shop", ".status.message").await;
        message.contains("what was edited waits").then_some(message)
    })
    .await;
    assert!(said.contains("the mirror goes on"), "{said}");
    stage.follows().await;
    assert!(!stage.cluster.log().contains("restarting the mirror"));
    stage.cluster.apply(&good).await;
    stage.is_well().await;
    stage.follows().await;
    let log = stage.cluster.log();
    assert!(
        log.contains("the selection of collections changed"),
        "{log}"
    );

    // An operator that never knew the credentials waits for them, and goes on from where it was.
    stage.cluster.kubectl(&["delete", "secret", "mongo"]).await;
    stage.cluster.kill_operator().await;
    let missed = stage.write().await;
    stage.cluster.start_operator();
    stage.cluster.wait("shop", ".status.phase", "Pending").await;
    let reason = format!("{READY}.reason");
    stage.cluster.wait("shop", &reason, "SecretNotFound").await;
    stage.cluster.apply(&good).await;
    stage.arrives(missed).await;
    stage.is_well().await;
    stage.is_equal().await;
    assert_eq!(stage.cluster.field("shop", STARTED).await, started);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_secret_of_a_mirrors_own_namespace_counts() {
    let stage = Stage::start().await;
    let cluster = &stage.cluster;
    let there = |manifest: &str| manifest.replace("metadata: {", "metadata: {namespace: theirs, ");
    let good = secret("mongo", &stage.set.uri());
    let wrong = secret("mongo", &stage.set.uri_as("root", "canary-wrong"));
    let theirs = mirror("shop", "mongo", "shop", "  target: {database: theirs}\n");
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: theirs}\n---\n";
    let manifest = good.clone() + &mirror("shop", "mongo", "shop", "");
    let manifest = manifest + namespace + &there(&theirs);
    cluster.apply(&manifest).await;
    stage.is_well().await;
    let theirs = async |reason: &str| {
        let path = format!("{READY}.reason");
        cluster.wait_in("theirs", "shop", &path, reason).await;
    };
    // There is one of this name, with everything in it, but not theirs.
    theirs("SecretNotFound").await;
    cluster.apply(&there(&wrong)).await;
    theirs("AuthenticationFailed").await;
    cluster.apply(&there(&good)).await;
    theirs("Mirroring").await;
    // And the other way round.
    let reason = format!("{READY}.reason");
    cluster.kubectl(&["delete", "secret", "mongo"]).await;
    cluster.wait("shop", &reason, "SecretNotFound").await;
    theirs("Mirroring").await;
    let one_more = doc! {"_id": 5000};
    let orders = stage.client.database("shop");
    let orders = orders.collection::<Document>("orders");
    orders.insert_one(&one_more).await.unwrap();
    let copies = stage.client.database("theirs");
    let copies = copies.collection::<Document>("orders");
    eventually("it arrives", async || {
        copies.find_one(one_more.clone()).await.unwrap()
    })
    .await;
    stage.arrives(one_more.clone()).await;
    let notes = stage.client.database("mongomirror");
    let notes = notes.collection::<Document>("checkpoints");
    let epoch = async |target: &str| {
        let found = notes.find_one(doc! {"_id": target}).await.unwrap();
        found.unwrap().get_i64("epoch").unwrap()
    };
    assert_eq!((epoch("shop_backup").await, epoch("theirs").await), (1, 1));
}

/// Secrets are watched by their metadata.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_secrets_of_others_is_not_in_memory() {
    let cluster = Cluster::start().await;
    cluster.apply(&mirror("shop", "mongo", "shop", "")).await;
    let reason = format!("{READY}.reason");
    cluster.wait("shop", &reason, "SecretNotFound").await;
    let before = cluster.memory();
    let large = "x".repeat(900_000);
    let others: Vec<_> = (0..40)
        .map(|n| secret(&format!("other-{n}"), &large))
        .collect();
    let create = ["create", "-f", "-"];
    let created = cluster.plane.kubectl_stdin(&create, &others.concat()).await;
    created.unwrap().checked().unwrap();
    // What is told later than they are.
    cluster.apply(&secret("mongo", "nonsense")).await;
    cluster.wait("shop", &reason, "InvalidUri").await;
    let grown = cluster.memory().saturating_sub(before);
    eprintln!("36 MB of Secrets: {} KiB more", grown >> 10);
    assert!(grown < 12 << 20, "{} KiB more", grown >> 10);
}
