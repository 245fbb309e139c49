//! MongoDB, as the demo and the mirror reach it.

use bson::{Bson, doc};
use mongodb::Client;
use testbed::{Cluster, Image, ReplicaSet};

use crate::{Result, tell};

/// A replica set: a process of this machine, or in a pod.
pub struct Servers {
    /// May do everything.
    pub client: Client,
    /// The same for a shell on this machine.
    pub uri: String,
    /// What the mirror is told.
    pub uri_of_mirror: String,
    _process: Option<ReplicaSet>,
}

impl Servers {
    /// The mirror connects as this user, with this password.
    pub async fn on_this_machine((user, password): (&str, &str)) -> Result<Self> {
        let set = ReplicaSet::builder()
            .auth(true)
            .cache_gb(0.5)
            .start()
            .await?;
        Ok(Self {
            client: set.client().await?,
            uri: set.uri(),
            uri_of_mirror: set.uri_as(user, password),
            _process: Some(set),
        })
    }

    /// The same in a cluster.
    pub async fn in_a_pod(cluster: &Cluster, (user, password): (&str, &str)) -> Result<Self> {
        let image = Image::of_mongod("testbed.local/mongod:demo", None)?;
        cluster.import(&image).await?;
        let set = cluster.replica_set("mongodb", "default", &image).await?;
        let address = cluster.address_of(&set).await?;
        let address = address.ok_or("MongoDB's pod is gone")?;
        Ok(Self {
            client: cluster.client_of(&set).await?,
            uri: format!("mongodb://{address}/?directConnection=true"),
            uri_of_mirror: set.uri_as(user, password),
            _process: None,
        })
    }

    /// Creates the mirror's user, and says which server this is.
    pub async fn create_user<const N: usize>(
        &self,
        (user, password): (&str, &str),
        roles: [Bson; N],
    ) -> Result<()> {
        let admin = self.client.database("admin");
        let about = admin.run_command(doc! {"buildInfo": 1}).await?;
        tell::note(&format!("mongod {} runs.", about.get_str("version")?));
        let create = doc! {"createUser": user, "pwd": password, "roles": roles.to_vec()};
        admin.run_command(create).await?;
        Ok(())
    }
}
