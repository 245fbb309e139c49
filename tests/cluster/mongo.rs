//! A mongod of the cluster, with users.

use bson::{Document, doc};
use mongodb::{Client, Database};
use testbed::{Cluster, Image, PodSet};

use crate::common::{eventually, hashes, run};
use crate::stage::{SHOP, Stage};

pub const DATABASE: &str = "orders";

/// A replica set of one member.
pub struct Mongo(PodSet);

impl Mongo {
    /// Starts one. Who says to be one of its users is not let in with a wrong password; who says
    /// nothing may do everything, as the test does.
    pub async fn start(cluster: &Cluster, name: &str, image: &Image) -> Self {
        let set = cluster.replica_set(name, SHOP, image).await;
        let set = set.unwrap_or_else(|error| panic!("{error}"));
        let client = cluster.client_of(&set).await.expect("a client");
        for user in ["first", "second"] {
            let create = doc! {"createUser": user, "pwd": password(user), "roles": ["root"]};
            run(&client.database("admin"), create).await;
        }
        Self(set)
    }

    pub fn pod(&self) -> String {
        self.0.pod()
    }

    /// The Secret with the connection string that pods use.
    pub fn secret(&self, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {}, namespace: {SHOP}}}\n\
             stringData: {{uri: \"{}\"}}\n---\n",
            self.0.name(),
            self.0.uri_as(user, &password(user))
        )
    }

    /// Its address, which changes with the pod.
    async fn address(&self, stage: &Stage) -> String {
        eventually("the pod has an address", async || {
            stage.cluster().address_of(&self.0).await.ok()?
        })
        .await
    }

    /// Lets its pod be made again; returns when it serves, at another address.
    pub async fn comes_back(&self, stage: &Stage) {
        let before = self.address(stage).await;
        let delete = ["delete", "pod", &self.pod(), "-n", SHOP, "--wait=true"];
        stage.kubectl(&delete).await;
        let now = self.address(stage).await;
        eprintln!("        {} was at {before}, is at {now}", self.0.name());
        assert_ne!(now, before);
        let pod = format!("pod/{}", self.pod());
        stage.wait(SHOP, &pod, "condition=Ready").await;
        let writable = stage.cluster().is_writable(&self.0).await;
        writable.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Whether it lets this user in.
    pub async fn knows(&self, stage: &Stage, user: &str) -> bool {
        let (address, password) = (self.address(stage).await, password(user));
        let uri = format!("mongodb://{user}:{password}@{address}:27017/?directConnection=true");
        let client = Client::with_uri_str(uri).await.expect("a client");
        let asked = client.database("admin").run_command(doc! {"ping": 1}).await;
        asked.is_ok()
    }

    /// A client of this machine, which knows no names of the cluster.
    pub async fn client(&self, stage: &Stage) -> Client {
        let client = stage.cluster().client_of(&self.0).await;
        client.unwrap_or_else(|error| panic!("{error}"))
    }

    pub async fn database(&self, stage: &Stage) -> Database {
        self.client(stage).await.database(DATABASE)
    }
}

/// Recognisable, so that it can be looked for.
fn password(user: &str) -> String {
    format!("canary-{user}")
}

/// A document that is written now is on the target soon.
pub async fn follows(source: &Database, target: &Database) {
    let id = bson::oid::ObjectId::new();
    let sent = source.collection::<Document>("sent");
    sent.insert_one(doc! {"_id": id}).await.expect("insert");
    let arrived = target.collection::<Document>("sent");
    eventually("a document arrives", async || {
        arrived.find_one(doc! {"_id": id}).await.ok().flatten()
    })
    .await;
}

/// Both hold the same; nobody writes to the source.
pub async fn become_equal(source: &Database, target: &Database) {
    follows(source, target).await;
    eventually("both are equal", async || {
        (hashes(source).await == hashes(target).await).then_some(())
    })
    .await;
    crate::common::assert_equal(source, target).await;
}
