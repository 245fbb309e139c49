//! Replica sets of one or more members.

use std::{fmt::Write, fs::File, io::Read, path::Path};

use bson::{Bson, Document, doc};
use mongodb::Client;
use tempfile::TempDir;
use tokio::time::sleep;

use super::{
    access::{self, SharedAccess},
    builder::{Builder, Options},
    node::{self, ASK_EVERY, Node, PATIENCE, Probe},
};
use crate::{
    certificates::{Authority, write_secret},
    error::{Context, Error, Result},
    port::Port,
    process::Deadline,
    scratch,
};

/// How long the primary of several members stays away from elections after a step-down.
const STEP_DOWN_SECONDS: i32 = 30;
/// How long it waits before for a secondary to catch up.
const CATCH_UP_SECONDS: i32 = 10;

/// A running replica set.
pub struct ReplicaSet {
    // Before the folder: servers are ended first, then their files are removed.
    nodes: Vec<Node>,
    access: SharedAccess,
    name: String,
    version: String,
    _folder: TempDir,
}

impl ReplicaSet {
    /// Collects what is wanted.
    pub fn builder() -> Builder<Self> {
        Builder::new()
    }

    /// The URI of the whole set, with credentials if it wants them.
    pub fn uri(&self) -> String {
        self.uri_of(self.access.root())
    }

    /// The URI of the whole set for another user.
    pub fn uri_as(&self, user: &str, password: &str) -> String {
        self.uri_of(Some((user, password)))
    }

    fn uri_of(&self, user: Option<(&str, &str)>) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(Node::announced).collect();
        let topology = format!("replicaSet={}", self.name);
        self.access.uri(&hosts.join(","), user, &topology)
    }

    /// A client of the whole set.
    pub async fn client(&self) -> Result<Client> {
        self.client_for(&self.uri()).await
    }

    /// A client for a URI of this set, with the right certificates if it wants TLS.
    pub async fn client_for(&self, uri: &str) -> Result<Client> {
        self.access.client(uri, None).await
    }

    /// Runs a command on the database `admin` of the primary.
    pub async fn admin(&self, command: Document) -> Result<Document> {
        let database = self.client().await?.database("admin");
        let what = || format!("run {command}");
        database.run_command(command.clone()).await.context(what)
    }

    /// Creates a user with roles as `createUser` takes them.
    pub async fn create_user(
        &self,
        name: &str,
        password: &str,
        roles: impl IntoIterator<Item = Bson>,
    ) -> Result<()> {
        let roles: Vec<Bson> = roles.into_iter().collect();
        let command = doc! {"createUser": name, "pwd": password, "roles": roles};
        self.admin(command).await.map(drop)
    }

    /// Who signed the servers' first certificates, if they have TLS.
    pub fn authority(&self) -> Option<&Authority> {
        self.access.tls.as_ref().map(|tls| &tls.authority)
    }

    /// Gives the servers certificates of another authority, which is the only one that they trust
    /// from now on. Nothing is restarted: connections stay, and new ones are by the new
    /// certificates, as are those of clients made from now on.
    ///
    /// # Panics
    /// If the set has no TLS.
    pub async fn certify_by(&self, authority: &Authority) -> Result<()> {
        let files = self.access.tls.as_ref().expect("a set with TLS");
        let mut connected = Vec::new();
        for node in &self.nodes {
            let admin = node.client().await?.database("admin");
            // While the certificates are still those of the server.
            let ping = admin.run_command(doc! {"ping": 1}).await;
            ping.context(|| format!("connect to {}", node.address()))?;
            connected.push(admin);
        }
        files.write(authority)?;
        for admin in connected {
            let rotated = admin.run_command(doc! {"rotateCertificates": 1}).await;
            rotated.context(|| "rotate the certificates".into())?;
        }
        Ok(())
    }

    /// The members.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One member, counted from 0. Panics if there are not so many.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The name of the set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version of MongoDB that runs.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Which member is the primary right now.
    pub async fn primary(&self) -> Result<usize> {
        primary(&self.states(&mut self.probes()).await).ok_or(Error::NoPrimary)
    }

    /// Which members are secondaries right now.
    pub async fn secondaries(&self) -> Vec<usize> {
        let states = self.states(&mut self.probes()).await;
        let secondaries = states
            .into_iter()
            .filter(|(_, hello)| node::is_secondary(hello));
        secondaries.map(|(index, _)| index).collect()
    }

    fn probes(&self) -> Vec<Probe> {
        self.nodes.iter().map(|_| Probe::default()).collect()
    }

    /// What every member that answers says of itself.
    async fn states(&self, probes: &mut [Probe]) -> Vec<(usize, Document)> {
        let mut states = Vec::new();
        for (index, (node, probe)) in self.nodes.iter().zip(probes).enumerate() {
            if let Ok(hello) = probe.hello(node).await {
                states.push((index, hello));
            }
        }
        states
    }

    /// Waits until there is a primary.
    pub async fn wait_for_primary(&self) -> Result<usize> {
        self.wait_for_primary_other_than(None).await
    }

    async fn wait_for_primary_other_than(&self, old: Option<usize>) -> Result<usize> {
        let deadline = Deadline::after(PATIENCE);
        let mut probes = self.probes();
        loop {
            match primary(&self.states(&mut probes).await) {
                Some(index) if Some(index) != old => return Ok(index),
                _ => {
                    self.go_on_waiting(&deadline, "no primary was elected")
                        .await?
                }
            }
        }
    }

    /// Waits until every member that runs is the primary or a secondary. Returns the primary.
    pub async fn wait_until_settled(&self) -> Result<usize> {
        let deadline = Deadline::after(PATIENCE);
        let mut probes = self.probes();
        loop {
            let running = self.nodes.iter().filter(|node| node.is_running()).count();
            let mut states = self.states(&mut probes).await;
            states.retain(|(_, hello)| node::is_primary(hello) || node::is_secondary(hello));
            if let Some(primary) = primary(&states)
                && states.len() == running
            {
                return Ok(primary);
            }
            let reason = "not every member is primary or secondary";
            self.go_on_waiting(&deadline, reason).await?;
        }
    }

    async fn go_on_waiting(&self, deadline: &Deadline, reason: &str) -> Result<()> {
        // A member that a test has ended is no reason to give up; one that crashed is.
        for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
            node.check_alive()?;
        }
        if deadline.is_over() {
            return Err(deadline.error(self.title(), reason.into(), self.log_tail()));
        }
        sleep(ASK_EVERY).await;
        Ok(())
    }

    /// Makes the primary step down, and returns the next one. A set of one member has the same
    /// primary again after a second.
    pub async fn step_down(&self) -> Result<usize> {
        let old = self.wait_for_primary().await?;
        let alone = self.nodes.len() == 1;
        let command = if alone {
            doc! {"replSetStepDown": 1, "secondaryCatchUpPeriodSecs": 0, "force": true}
        } else {
            doc! {
                "replSetStepDown": STEP_DOWN_SECONDS,
                "secondaryCatchUpPeriodSecs": CATCH_UP_SECONDS,
            }
        };
        let client = self.nodes[old].client().await?;
        let stepped_down = client.database("admin").run_command(command).await;
        stepped_down.context(|| format!("make member {old} step down"))?;
        self.wait_for_primary_other_than((!alone).then_some(old))
            .await
    }

    /// Takes the nodes that are no members yet into the set, one by one, and waits until all
    /// have settled.
    pub async fn grow(&self) -> Result<()> {
        let known = members(&self.config().await?).len();
        for index in known..self.nodes.len() {
            let deadline = Deadline::after(PATIENCE);
            // The set changes its configuration by itself when a new member has its data.
            while let Err(error) = self.add(index).await {
                if deadline.is_over() {
                    return Err(error);
                }
                sleep(ASK_EVERY).await;
            }
            self.wait_until_member(index).await?;
        }
        self.wait_until_settled().await.map(drop)
    }

    async fn config(&self) -> Result<Document> {
        let reply = self.admin(doc! {"replSetGetConfig": 1}).await?;
        Ok(reply.get_document("config").cloned().unwrap_or_default())
    }

    async fn add(&self, index: usize) -> Result<()> {
        let mut config = self.config().await?;
        let mut members = members(&config);
        // A handful of members: the index fits.
        members.push(doc! {"_id": index as i32, "host": self.nodes[index].announced()}.into());
        config.insert("members", members);
        config.insert("version", config.get_i32("version").unwrap_or(1) + 1);
        self.admin(doc! {"replSetReconfig": config}).await.map(drop)
    }

    async fn wait_until_member(&self, index: usize) -> Result<()> {
        let deadline = Deadline::after(PATIENCE);
        let mut probe = Probe::default();
        loop {
            if probe
                .hello(&self.nodes[index])
                .await
                .is_ok_and(|hello| node::is_secondary(&hello))
            {
                return Ok(());
            }
            self.go_on_waiting(&deadline, "a new member does not join")
                .await?;
        }
    }

    fn title(&self) -> String {
        format!("the replica set {}", self.name)
    }

    /// The ends of the logs of all members.
    pub fn log_tail(&self) -> String {
        let mut text = String::new();
        for (index, node) in self.nodes.iter().enumerate() {
            // Writing to a String does not fail.
            let _ = writeln!(text, "--- member {index}\n{}", node.log_tail());
        }
        text
    }
}

impl Builder<ReplicaSet> {
    /// The number of members; 1 by default. Three elect, step down and roll back.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.options.nodes = nodes;
        self
    }

    /// Begins the set with so many of its nodes; the others run, and join it by
    /// [`ReplicaSet::grow`].
    pub fn begin_with(mut self, members: usize) -> Self {
        self.options.initiated = Some(members);
        self
    }

    /// Puts a proxy in front of each member. The members announce their proxies' addresses, so
    /// everybody connects through them: clients of the set, and the members among themselves.
    /// [`Node::client`] and [`Node::uri`] do not.
    pub fn behind_proxies(mut self) -> Self {
        self.options.proxies = true;
        self
    }

    /// Gives each member a disk of its own of so many megabytes, see [`Node::disk`]. Needs the right
    /// to mount.
    pub fn disk_mb(mut self, megabytes: u32) -> Self {
        self.options.disk_mb = Some(megabytes);
        self
    }

    /// The name of the set; `rs0` by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// Adds to the `settings` of the set's configuration.
    pub fn settings(mut self, settings: Document) -> Self {
        self.options.settings.extend(settings);
        self
    }

    /// Adds to the configuration of a member, for example `doc! {"priority": 0}`.
    pub fn member(mut self, index: usize, fields: Document) -> Self {
        self.options.members.push((index, fields));
        self
    }

    /// Starts the set, and returns when it can be written to and every member has settled.
    pub async fn start(self) -> Result<ReplicaSet> {
        let options = self.options;
        let mongod = options.mongod().await?;
        let folder = scratch::folder(&options.name)?;
        let access = options.access(folder.path())?;
        let key_file = if access.auth {
            Some(write_secret(folder.path(), "key", &random_key()?)?)
        } else {
            None
        };
        let mut nodes = Vec::new();
        for index in 0..options.nodes.max(1) {
            let home = folder.path().join(format!("member{index}"));
            let port = Port::reserve()?;
            let name = format!("mongod {index} of {}", options.name);
            let set = Some((options.name.as_str(), key_file.as_deref()));
            let server = options.server(name, &mongod, &access, &home, &port, set);
            let mut node = Node::new(server, access.clone(), port);
            if options.proxies {
                node.hide().await?;
            }
            if let Some(megabytes) = options.disk_mb {
                node.give_disk(megabytes)?;
            }
            nodes.push(node);
        }
        let set = ReplicaSet {
            nodes,
            access,
            name: options.name.clone(),
            version: mongod.version,
            _folder: folder,
        };
        set.bring_up(&options).await?;
        Ok(set)
    }
}

impl ReplicaSet {
    async fn bring_up(&self, options: &Options) -> Result<()> {
        for node in &self.nodes {
            node.launch()?;
        }
        for node in &self.nodes {
            node.wait_until_it_answers().await?;
        }
        let first = self.nodes[0].anonymous().await?;
        let initiate = doc! {"replSetInitiate": self.configuration(options)};
        let initiated = first.database("admin").run_command(initiate).await;
        initiated.context(|| format!("initiate {}", self.title()))?;
        let primary = match options.initiated {
            Some(_) => self.wait_for_primary().await?,
            None => self.wait_until_settled().await?,
        };
        if self.access.auth {
            access::create_root(&self.nodes[primary].anonymous().await?).await?;
        }
        Ok(())
    }

    fn configuration(&self, options: &Options) -> Document {
        let initiated = options.initiated.unwrap_or(self.nodes.len());
        let nodes = self.nodes.iter().take(initiated).enumerate();
        let members = nodes.map(|(index, node)| {
            // A handful of members: the index fits.
            let mut member = doc! {"_id": index as i32, "host": node.announced()};
            for (_, fields) in options.members.iter().filter(|(of, _)| *of == index) {
                member.extend(fields.clone());
            }
            member
        });
        // Elections within a few seconds, where the server's defaults would take ten and more.
        let mut settings = doc! {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500};
        settings.extend(options.settings.clone());
        doc! {
            "_id": &self.name,
            "members": members.collect::<Vec<_>>(),
            "settings": settings,
        }
    }
}

fn members(config: &Document) -> Vec<Bson> {
    config.get_array("members").cloned().unwrap_or_default()
}

/// The primary among members that say what they are. A former one that was paused may not know
/// yet that it is none any more: the latest election counts.
fn primary(states: &[(usize, Document)]) -> Option<usize> {
    states
        .iter()
        .filter(|(_, hello)| node::is_primary(hello))
        .max_by_key(|(_, hello)| hello.get_object_id("electionId").map(|id| id.bytes()).ok())
        .map(|(index, _)| *index)
}

/// What the members of a set with authentication share.
fn random_key() -> Result<String> {
    let mut bytes = [0; 48];
    File::open(Path::new("/dev/urandom"))
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context(|| "read random bytes".into())?;
    Ok(crate::tools::hex(&bytes))
}
