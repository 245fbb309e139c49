//! A mongod of the cluster: a StatefulSet with a volume.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};

use crate::common::{eventually, hashes, run};
use crate::stage::{SHOP, Stage};

pub const DATABASE: &str = "orders";

/// Short, so that a driver notices soon that a pod is gone.
const NOTICE: Duration = Duration::from_secs(3);

/// A replica set of one member.
pub struct Mongo {
    pub name: &'static str,
}

impl Mongo {
    pub fn new(name: &'static str) -> Self {
        Self { name }
    }

    pub fn pod(&self) -> String {
        format!("{}-0", self.name)
    }

    fn host(&self) -> String {
        let name = self.name;
        format!("{name}-0.{name}.{SHOP}.svc.cluster.local:27017")
    }

    /// The connection string that pods use.
    pub fn uri(&self, user: &str) -> String {
        let (name, host) = (self.name, self.host());
        format!(
            "mongodb://{user}:{}@{host}/?replicaSet={name}&authSource=admin",
            password(user)
        )
    }

    /// The Secret with it.
    pub fn secret(&self, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {}, namespace: {SHOP}}}\n\
             stringData: {{uri: \"{}\"}}\n---\n",
            self.name,
            self.uri(user)
        )
    }

    pub async fn start(&self, stage: &Stage, image: &str) {
        let volume = stage.cluster().volume(self.name).expect("a folder");
        let (name, volume) = (self.name, volume.display());
        let manifest = format!(
            "
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  storageClassName: of-the-node
  claimRef: {{namespace: {SHOP}, name: data-{name}-0}}
  hostPath: {{path: {volume}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {SHOP}}}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {{app: {name}}}
  ports: [{{port: 27017}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}, namespace: {SHOP}}}
spec:
  serviceName: {name}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 20
      securityContext:
        runAsNonRoot: true
        seccompProfile: {{type: RuntimeDefault}}
      containers:
        - name: mongod
          image: {image}
          imagePullPolicy: Never
          args:
            - --replSet={name}
            - --dbpath=/data
            - --bind_ip_all
            - --nounixsocket
            - --wiredTigerCacheSizeGB=0.25
            - --setParameter=diagnosticDataCollectionEnabled=false
            # Else it waits for clients for most of its time to end.
            - --setParameter=shutdownTimeoutMillisForSignaledShutdown=100
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{drop: [ALL]}}
          readinessProbe: {{tcpSocket: {{port: 27017}}, periodSeconds: 1}}
          volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: of-the-node
        resources: {{requests: {{storage: 1Gi}}}}
"
        );
        stage.apply(&manifest).await;
    }

    /// Makes it a replica set, with users. Who says to be one is not let in with a wrong password;
    /// who says nothing may do everything, as the test does.
    pub async fn initiate(&self, stage: &Stage) {
        self.is_ready(stage).await;
        let admin = self.client(stage).await.database("admin");
        let members = [doc! {"_id": 0, "host": self.host()}];
        let config = doc! {"_id": self.name, "members": members.to_vec()};
        run(&admin, doc! {"replSetInitiate": config}).await;
        self.is_writable(stage).await;
        for user in ["first", "second"] {
            let create = doc! {"createUser": user, "pwd": password(user), "roles": ["root"]};
            run(&admin, create).await;
        }
    }

    /// Waits until the pod is ready, whichever it is by now.
    pub async fn is_ready(&self, stage: &Stage) {
        let rollout = format!("statefulset/{}", self.name);
        let status = ["rollout", "status", &rollout, "-n", SHOP, "--timeout=120s"];
        stage.kubectl(&status).await;
    }

    pub async fn is_writable(&self, stage: &Stage) {
        let client = self.client(stage).await;
        eventually("it is writable", async || {
            let hello = client
                .database("admin")
                .run_command(doc! {"hello": 1})
                .await;
            hello
                .ok()?
                .get_bool("isWritablePrimary")
                .ok()?
                .then_some(())
        })
        .await;
    }

    /// Its address, which changes with the pod.
    pub async fn address(&self, stage: &Stage) -> String {
        let pod = format!("pod/{}", self.pod());
        let get = ["get", &pod, "-n", SHOP, "-o", "jsonpath={.status.podIP}"];
        eventually("the pod has an address", async || {
            let address = stage.try_kubectl(&get).await.ok()?;
            (!address.is_empty()).then_some(address)
        })
        .await
    }

    /// Lets its pod be made again; returns when it serves, at another address.
    pub async fn comes_back(&self, stage: &Stage) {
        let before = self.address(stage).await;
        let delete = ["delete", "pod", &self.pod(), "-n", SHOP, "--wait=true"];
        stage.kubectl(&delete).await;
        let now = self.address(stage).await;
        eprintln!("        {} was at {before}, is at {now}", self.name);
        assert_ne!(now, before);
        let pod = format!("pod/{}", self.pod());
        stage.wait(SHOP, &pod, "condition=Ready").await;
        self.is_writable(stage).await;
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
        let address = self.address(stage).await;
        let uri = format!("mongodb://{address}:27017/?directConnection=true");
        let mut options = ClientOptions::parse(uri).await.expect("a URI");
        options.connect_timeout = Some(NOTICE);
        options.server_selection_timeout = Some(NOTICE);
        Client::with_options(options).expect("a client")
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
