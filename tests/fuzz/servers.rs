//! The servers that rounds run on. They are kept from round to round; databases are not.

use bson::{Bson, doc};
use mongodb::{Client, Database};
use testbed::{Builder, ReplicaSet, Version};

use crate::Result;
use crate::plan::{DATABASE, ELSEWHERE, Layout, Plan, Side};

/// Source and target of a round.
pub struct Servers {
    layout: Layout,
    version: Version,
    source: ReplicaSet,
    target: Option<(Version, ReplicaSet)>,
}

fn set(version: Version) -> Builder<ReplicaSet> {
    ReplicaSet::builder()
        .version(version)
        // Large transactions need room, and so does the wide document: a server whose cache is small
        // beside the index keys of one document may hang in writing it, whoever does
        // (`docs/limits.md`).
        .cache_gb(1.5)
        // TTL indexes of the source shall delete while a round lasts.
        .param("ttlMonitorSleepSecs", 1)
}

impl Servers {
    /// Those at hand if they will do, else others.
    pub async fn get(now: Option<Self>, plan: &Plan) -> Result<Self> {
        let (version, layout) = (plan.version, plan.layout);
        let fits = |now: &Self| now.version == version && now.alike(layout) && now.is_whole();
        let mut servers = match now.filter(fits) {
            Some(now) => now,
            None => {
                let source = match layout {
                    Layout::Elections => set(version).nodes(3),
                    // The oplog is cut when a checkpoint is made, which is once a minute else.
                    Layout::Forgetful => set(version).oplog_mb(10).arg("--syncdelay", "2"),
                    Layout::Together | Layout::Apart => set(version),
                };
                Self {
                    layout,
                    version,
                    source: source.start().await?,
                    target: None,
                }
            }
        };
        servers.layout = layout;
        let wanted = plan.target_version;
        let there = servers
            .target
            .as_ref()
            .is_some_and(|(version, _)| *version == wanted);
        if layout != Layout::Together && !there {
            servers.target = None;
            servers.target = Some((wanted, set(wanted).start().await?));
        }
        Ok(servers)
    }

    fn alike(&self, layout: Layout) -> bool {
        let is_plain = |layout| matches!(layout, Layout::Together | Layout::Apart);
        self.layout == layout || (is_plain(self.layout) && is_plain(layout))
    }

    /// Whether all members run: one that has died by itself is a finding.
    pub fn is_whole(&self) -> bool {
        let mut nodes = self.source.nodes().iter().chain(self.target().nodes());
        nodes.all(testbed::Node::is_running)
    }

    /// The ends of the servers' logs.
    pub fn logs(&self) -> String {
        let target = self.target.as_ref().map(|(_, set)| set.log_tail());
        format!(
            "source:\n{}target:\n{}",
            self.source.log_tail(),
            target.unwrap_or_default()
        )
    }

    /// The source's deployment.
    pub fn source(&self) -> &ReplicaSet {
        &self.source
    }

    /// The target's deployment, which may be the source's.
    pub fn target(&self) -> &ReplicaSet {
        match (&self.target, self.layout) {
            (Some((_, target)), Layout::Apart | Layout::Elections | Layout::Forgetful) => target,
            _ => &self.source,
        }
    }

    /// One of both.
    pub fn side(&self, side: Side) -> &ReplicaSet {
        match side {
            Side::Source => &self.source,
            Side::Target => self.target(),
        }
    }

    /// Forgets all databases of earlier rounds.
    pub async fn clear(&self, databases: &Databases) -> Result<()> {
        let both = [databases.source.client(), databases.target.client()];
        for client in both {
            let backup = format!("{DATABASE}_backup");
            for name in [DATABASE, ELSEWHERE, &backup, "mongomirror"] {
                client.database(name).drop().await?;
            }
        }
        Ok(())
    }
}

/// Source and target as databases, with clients of their own.
#[derive(Clone)]
pub struct Databases {
    /// What is mirrored.
    pub source: Database,
    /// Its copy.
    pub target: Database,
}

impl Databases {
    /// Connects.
    pub async fn connect(servers: &Servers) -> Result<Self> {
        let source = servers.source().client().await?;
        let target = servers.target().client().await?;
        Ok(Self {
            source: source.database(DATABASE),
            target: target.database(&format!("{DATABASE}_backup")),
        })
    }

    /// One of both.
    pub fn side(&self, side: Side) -> &Database {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// Lets TTL indexes of the source delete, or not.
    pub async fn let_ttl_delete(&self, on: bool) -> Result<()> {
        self.set("ttlMonitorEnabled", on).await
    }

    /// How many seconds of its past the source keeps for reads.
    pub async fn keep_past(&self, seconds: i32) -> Result<()> {
        self.set("minSnapshotHistoryWindowInSeconds", seconds).await
    }

    async fn set(&self, parameter: &str, value: impl Into<Bson>) -> Result<()> {
        admin(self.source.client())
            .run_command(doc! {"setParameter": 1, parameter: value.into()})
            .await?;
        Ok(())
    }
}

/// The database `admin`.
pub fn admin(client: &Client) -> Database {
    client.database("admin")
}
