//! MongoDB in a pod.

use std::time::Duration;

use bson::doc;
use mongodb::{Client, options::ClientOptions};
use tokio::time::sleep;

use super::{Cluster, Image};
use crate::{
    error::{Context, Result},
    process::Deadline,
};

/// As long as a pod takes on a machine where much else runs.
const PATIENCE: Duration = Duration::from_secs(120);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Short, so that a driver notices soon that a pod is gone.
const NOTICE: Duration = Duration::from_secs(3);

/// A replica set of one member: a StatefulSet with a volume. It is gone with the cluster.
///
/// Who says to be a user is not let in with a wrong password; who says nothing may do everything.
#[derive(Debug, Clone)]
pub struct PodSet {
    name: String,
    namespace: String,
}

impl PodSet {
    /// Its name, and that of its StatefulSet and Service.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its pod, while there is one.
    pub fn pod(&self) -> String {
        format!("{}-0", self.name)
    }

    fn host(&self) -> String {
        let Self { name, namespace } = self;
        format!("{name}-0.{name}.{namespace}.svc.cluster.local:27017")
    }

    /// The connection string that pods use.
    pub fn uri_as(&self, user: &str, password: &str) -> String {
        let (name, host) = (&self.name, self.host());
        format!("mongodb://{user}:{password}@{host}/?replicaSet={name}&authSource=admin")
    }

    fn manifest(&self, image: &str, volume: &str) -> String {
        let Self { name, namespace } = self;
        format!(
            "
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  storageClassName: of-the-node
  claimRef: {{namespace: {namespace}, name: data-{name}-0}}
  hostPath: {{path: {volume}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {{app: {name}}}
  ports: [{{port: 27017}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}, namespace: {namespace}}}
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
        )
    }
}

impl Cluster {
    /// Starts one; returns when it is writable. The namespace must be there, and the image known
    /// to the node.
    pub async fn replica_set(&self, name: &str, namespace: &str, image: &Image) -> Result<PodSet> {
        let set = PodSet {
            name: name.into(),
            namespace: namespace.into(),
        };
        let volume = self.volume(name)?;
        let manifest = set.manifest(image.name(), &volume.to_string_lossy());
        let apply = ["apply", "-f", "-"];
        let applied = self.plane.kubectl_stdin(&apply, &manifest).await?;
        applied.checked()?;
        self.is_ready(&set).await?;
        let client = self.client_of(&set).await?;
        let member = doc! {"_id": 0, "host": set.host()};
        let config = doc! {"_id": name, "members": [member]};
        let initiate = doc! {"replSetInitiate": config};
        let initiated = client.database("admin").run_command(initiate).await;
        initiated.context(|| format!("initiate the replica set {name}"))?;
        self.is_writable(&set).await?;
        Ok(set)
    }

    /// Waits until the pod of a set is ready, whichever it is by now.
    async fn is_ready(&self, set: &PodSet) -> Result<()> {
        let rollout = format!("statefulset/{}", set.name);
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        let status = ["rollout", "status", &rollout, "-n", &set.namespace];
        let wait = [&status[..], &[&patience]].concat();
        self.plane.kubectl(&wait).await?.checked().map(drop)
    }

    /// Waits until a set takes writes.
    pub async fn is_writable(&self, set: &PodSet) -> Result<()> {
        let admin = self.client_of(set).await?.database("admin");
        let deadline = Deadline::after(PATIENCE);
        loop {
            let hello = admin.run_command(doc! {"hello": 1});
            let reason = match hello.await {
                Ok(hello) if hello.get_bool("isWritablePrimary").is_ok_and(|it| it) => {
                    return Ok(());
                }
                Ok(_) => "it is not the primary".into(),
                Err(error) => error.to_string(),
            };
            if deadline.is_over() {
                return Err(deadline.error(set.pod(), reason, self.log_tail()));
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// The address of a set's pod, which changes with the pod; none while there is none.
    pub async fn address_of(&self, set: &PodSet) -> Result<Option<String>> {
        let pod = set.pod();
        let pod = ["get", "pod", &pod, "-n", &set.namespace];
        let path = ["--ignore-not-found", "-o", "jsonpath={.status.podIP}"];
        let get = [&pod[..], &path].concat();
        let address = self.plane.kubectl(&get).await?.checked()?;
        Ok(Some(address).filter(|it| !it.is_empty()))
    }

    /// A client of this machine, which knows no names of the cluster.
    pub async fn client_of(&self, set: &PodSet) -> Result<Client> {
        let deadline = Deadline::after(PATIENCE);
        let address = loop {
            if let Some(address) = self.address_of(set).await? {
                break address;
            }
            if deadline.is_over() {
                let reason = "the pod has no address".into();
                return Err(deadline.error(set.pod(), reason, self.log_tail()));
            }
            sleep(ASK_EVERY).await;
        };
        let what = || format!("connect to {}", set.pod());
        let uri = format!("mongodb://{address}:27017/?directConnection=true");
        let mut options = ClientOptions::parse(uri).await.context(what)?;
        options.connect_timeout = Some(NOTICE);
        options.server_selection_timeout = Some(NOTICE);
        Client::with_options(options).context(what)
    }
}
