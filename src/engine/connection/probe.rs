//! What a server is and can do, found out before anything is written.

use bson::{Document, doc, oid::ObjectId};
use mongodb::Client;

use crate::engine::command::{Commands, number};
use crate::engine::error::{Error, Result, Side};
use crate::engine::position::ClusterTime;
use crate::engine::writes::Write;

/// The oldest server that announces DDL in change streams (`showExpandedEvents`).
const OLDEST: (i64, i64) = (6, 0);

/// A server that passed the probe.
#[derive(Clone, PartialEq, Debug)]
pub struct Server {
    /// Its version, as it says.
    pub version: String,
    /// The replica set's name.
    pub set_name: String,
    /// Identifies the primary's process: the same on both sides means one deployment.
    pub process: Option<ObjectId>,
    /// The replica set's own identity, where the user may read it (`clusterMonitor`).
    pub set_id: Option<ObjectId>,
}

impl Server {
    /// How the deployment is remembered in a checkpoint.
    pub fn identity(&self) -> String {
        match self.set_id {
            Some(id) => format!("{}/{id}", self.set_name),
            None => self.set_name.clone(),
        }
    }

    /// Whether two identities can be one deployment: where either lacks the id, the name decides.
    pub fn same_identity(a: &str, b: &str) -> bool {
        let (name_a, id_a) = a.split_once('/').unwrap_or((a, ""));
        let (name_b, id_b) = b.split_once('/').unwrap_or((b, ""));
        name_a == name_b && (id_a == id_b || id_a.is_empty() || id_b.is_empty())
    }
}

/// Asks a server what it is.
///
/// # Errors
/// [`Error::NotReplicaSet`], [`Error::Sharded`], [`Error::TooOld`], or what the exchange met.
pub async fn probe(client: &Client, side: Side) -> Result<Server> {
    let admin = Commands {
        side,
        db: client.database("admin"),
    };
    let hello = admin.read("connect", doc! {"hello": 1}).await?;
    if hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
        return Err(Error::Sharded(side));
    }
    let build = admin
        .read("read the version", doc! {"buildInfo": 1})
        .await?;
    let version = build.get_str("version").unwrap_or("unknown").to_owned();
    let mut parts = version
        .split('.')
        .map(|part| part.parse::<i64>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < OLDEST {
        return Err(Error::TooOld { side, version });
    }
    let Ok(set_name) = hello.get_str("setName") else {
        return Err(Error::NotReplicaSet(side));
    };
    let process = hello
        .get_document("topologyVersion")
        .and_then(|topology| topology.get_object_id("processId"))
        .ok();
    // Needs clusterMonitor, which not everybody grants; the name alone must do then.
    let set_id = admin
        .read(
            "read the replica set's identity",
            doc! {"replSetGetConfig": 1},
        )
        .await
        .ok()
        .and_then(|reply| {
            let settings = reply
                .get_document("config")
                .ok()?
                .get_document("settings")
                .ok()?;
            settings.get_object_id("replicaSetId").ok()
        });
    Ok(Server {
        version,
        set_name: set_name.to_owned(),
        process,
        set_id,
    })
}

/// A cluster time that a deployment has reached: its primary's own newest operation.
///
/// # Errors
/// What the exchange met.
pub async fn operation_time(client: &Client, side: Side) -> Result<ClusterTime> {
    let admin = Commands {
        side,
        db: client.database("admin"),
    };
    let doing = "ask for the cluster time";
    let reply = admin.read(doing, doc! {"ping": 1}).await?;
    match reply.get_timestamp("operationTime") {
        Ok(time) => Ok(time.into()),
        Err(_) => Err(Error::Reply {
            side,
            doing,
            what: "it holds no operationTime".into(),
        }),
    }
}

/// Waits until everything up to `time` is committed and visible.
///
/// A server hands times out before the operations that carry them are done: until then something
/// older than a known time can still appear (`facts` mongodb 6.1).
///
/// # Errors
/// What the exchange met.
pub async fn await_committed(source: &Commands, time: ClusterTime) -> Result<()> {
    let read = doc! {
        "find": "mongomirror.nothing",
        "limit": 1,
        "readConcern": {"level": "majority", "afterClusterTime": bson::Timestamp::from(time)},
    };
    source.read("wait for a cluster time", read).await.map(drop)
}

/// The newest majority-committed operation of the source.
///
/// # Errors
/// What the exchange met.
pub async fn majority_time(client: &Client) -> Result<ClusterTime> {
    let admin = Commands {
        side: Side::Source,
        db: client.database("admin"),
    };
    let reply = admin.read("ask for the lag", doc! {"hello": 1}).await?;
    let time = |reply: &Document| {
        let write = reply.get_document("lastWrite").ok()?;
        let optime = write.get_document("majorityOpTime").ok()?;
        optime.get_timestamp("ts").ok()
    };
    time(&reply).map(Into::into).ok_or_else(|| Error::Reply {
        side: Side::Source,
        doing: "ask for the lag",
        what: "it holds no lastWrite.majorityOpTime".into(),
    })
}

/// What the target accepts beyond the stable interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetAbilities {
    /// `$_internalApplyOplogUpdate` from an ordinary client.
    pub internal_delta: bool,
    /// `bypassEmptyTsReplacement`, which keeps a top-level zero timestamp (6.0.27 has it, 6.0.5
    /// has not; `facts` mongodb 3.2).
    pub keeps_empty_timestamps: bool,
}

impl TargetAbilities {
    /// Whether a pipeline may change a document of which nothing is known. Where a name is there
    /// twice, also further down, that ended older servers (6.0.5; `facts` mongodb 3.4). It cannot
    /// be tried; but the option above came later than the repair, so it tells.
    pub fn survives_duplicate_names(&self) -> bool {
        self.keeps_empty_timestamps
    }
}

/// Tries the target's abilities on a namespace that does not exist; nothing is written.
///
/// # Errors
/// What the exchange met, other than a refusal.
pub async fn target_abilities(state: &Commands) -> Result<TargetAbilities> {
    let delta =
        doc! {"$_internalApplyOplogUpdate": {"oplogUpdate": {"$v": 2, "diff": {"u": {"a": 1}}}}};
    let update = doc! {"update": "probe", "updates": [{"q": {"_id": 0}, "u": [delta]}]};
    let internal_delta = refused_or(state.write(Write::ProbeDeltas, update).await)?;
    let bypass = doc! {
        "update": "probe",
        "updates": [{"q": {"_id": 0}, "u": {"a": 1}}],
        "bypassEmptyTsReplacement": true,
    };
    let keeps_empty_timestamps = refused_or(state.write(Write::ProbeTimestamps, bypass).await)?;
    Ok(TargetAbilities {
        internal_delta,
        keeps_empty_timestamps,
    })
}

/// A server's refusal is an answer; a lost connection or a missing privilege is not.
fn refused_or(outcome: Result<Document>) -> Result<bool> {
    match outcome {
        Ok(reply) => Ok(number(&reply, "ok") == 1),
        Err(error) if error.is_refused_definition() => Ok(false),
        Err(error) => Err(error),
    }
}
