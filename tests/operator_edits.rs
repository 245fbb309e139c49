//! Edits of a resource, in whatever state it is: what they bring about, and what it costs to take
//! them back.

mod common;

use bson::{Document, doc};
use common::cluster::{Cluster, mirror, secret};
use common::ddl::names;
use common::oplog::roll_over;
use common::process::checkpoint;
use common::{assert_equal_beside, eventually, fill, hashes};
use futures::TryStreamExt;
use futures::future::join_all;
use mongodb::{Client, Database};
use testbed::{ReplicaSet, Version};

const REASON: &str = r#".status.conditions[?(@.type=="Ready")].reason"#;

async fn servers() -> (ReplicaSet, Client) {
    common::start(Version::V6_0_27).await
}

/// A server, and an operator that knows ways to it.
struct Stage {
    cluster: Cluster,
    set: ReplicaSet,
    client: Client,
}

/// A state that a mirror can be brought into once it mirrors.
struct State {
    name: &'static str,
    enter: &'static str,
    /// Why it is not ready then, or why it is.
    says: &'static str,
    leave: &'static str,
}

const SOURCE: &str = r#"{"spec": {"source": {"uriSecretRef": {"name": "source"}}}}"#;

const STATES: [State; 5] = [
    State {
        name: "live",
        enter: "{}",
        says: "Mirroring",
        leave: "{}",
    },
    State {
        name: "paused",
        enter: r#"{"spec": {"enabled": false}}"#,
        says: "Suspended",
        leave: r#"{"spec": {"enabled": true}}"#,
    },
    // Two that are `Pending`.
    State {
        name: "missing",
        enter: r#"{"spec": {"source": {"uriSecretRef": {"name": "missing"}}}}"#,
        says: "SecretNotFound",
        leave: SOURCE,
    },
    State {
        name: "closed",
        enter: r#"{"spec": {"source": {"uriSecretRef": {"name": "closed"}}}}"#,
        says: "SourceUnreachable",
        leave: SOURCE,
    },
    State {
        name: "failed",
        enter: r#"{"spec": {"source": {"uriSecretRef": {"name": "wrong"}}}}"#,
        says: "AuthenticationFailed",
        leave: SOURCE,
    },
];

impl Stage {
    async fn start() -> Self {
        Self::of(servers().await).await
    }

    async fn of((set, client): (ReplicaSet, Client)) -> Self {
        let cluster = Cluster::start().await;
        let uri = impatient(&set.uri());
        let wrong = impatient(&set.uri_as("nobody", "canary-wrong"));
        let secrets = [
            secret("source", &uri),
            secret("target", &uri),
            secret(
                "closed",
                &impatient("mongodb://127.0.0.1:1/?directConnection=true"),
            ),
            secret("wrong", &wrong),
        ];
        cluster.apply(&secrets.concat()).await;
        Self {
            cluster,
            set,
            client,
        }
    }

    /// The source and the target of a mirror.
    fn databases(&self, mirror: &str) -> (Database, Database) {
        let copy = format!("{mirror}_backup");
        (self.client.database(mirror), self.client.database(&copy))
    }

    /// Makes a mirror of the database of its name.
    async fn apply(&self, name: &str, more: &str) {
        let target = "  target: {uriSecretRef: {name: target}}\n";
        let manifest = mirror(name, "source", name, &format!("{target}{more}"));
        self.cluster.apply(&manifest).await;
    }

    /// Merges this into a mirror; the operator has seen it.
    async fn edit(&self, mirror: &str, patch: &str) {
        self.patched(mirror, "merge", patch).await;
    }

    /// Gives a mirror this spec; the operator has seen it.
    async fn give(&self, mirror: &str, spec: &str) {
        let patch = format!(r#"[{{"op": "replace", "path": "/spec", "value": {spec}}}]"#);
        self.patched(mirror, "json", &patch).await;
    }

    async fn patched(&self, mirror: &str, kind: &str, patch: &str) {
        let kind = format!("--type={kind}");
        let generation = "jsonpath={.metadata.generation}";
        let patch = ["patch", "mongomirror", mirror, &kind, "-p", patch];
        let patch = [&patch[..], &["-o", generation]].concat();
        let generation = self.cluster.kubectl(&patch).await;
        let seen = ".status.observedGeneration";
        self.cluster.wait(mirror, seen, &generation).await;
    }

    async fn says(&self, mirror: &str, reason: &str) {
        self.cluster.wait(mirror, REASON, reason).await;
    }

    async fn begun(&self, mirror: &str) -> String {
        let begun = ".status.initialSync.startedAt";
        self.cluster.field(mirror, begun).await
    }
}

/// Soon tells that nobody answers.
fn impatient(uri: &str) -> String {
    format!("{uri}&serverSelectionTimeoutMS=1500&connectTimeoutMS=1500")
}

/// So much that a copy of a MiB a second lasts.
async fn fill_large(db: &Database, collection: &str, mebibytes: i32) {
    let large = db.collection::<Document>(collection);
    for from in (0..mebibytes).step_by(4) {
        let documents = (from..from + 4).map(|n| doc! {"_id": n, "text": "x".repeat(1 << 20)});
        large.insert_many(documents).await.unwrap();
    }
}

/// The documents of both sides become equal, but for these collections.
async fn become_equal(what: &str, source: &Database, copy: &Database, but: &[&str]) {
    let is_other = |name: &str| but.contains(&name);
    let part = async |db: &Database| -> Document {
        let all = hashes(db).await.into_iter();
        all.filter(|(name, _)| !is_other(name)).collect()
    };
    eventually(&format!("{what}: both are equal"), async || {
        (part(source).await == part(copy).await).then_some(())
    })
    .await;
    assert_equal_beside(source, copy, |name| !is_other(name), is_other).await;
}

/// Mirrors of [`EDITS_TAKEN_BACK`]: those of [`STATES`], and two that have not mirrored yet.
const OTHERS: [(&str, &str); 2] = [("copying", "Copying"), ("refused", "TargetNotEmpty")];

/// An edit, and what the mirrors of [`STATES`] and [`OTHERS`] say until it is taken back; the one
/// that is paused, once it is switched on.
type TakenBack = (&'static str, &'static str, [&'static str; 7]);

const EDITS_TAKEN_BACK: [TakenBack; 6] = [
    (
        "enabled",
        r#"{"spec": {"enabled": false}}"#,
        [
            "Suspended",
            "Mirroring",
            "Suspended",
            "Suspended",
            "Suspended",
            "Suspended",
            "Suspended",
        ],
    ),
    (
        "source.tls",
        r#"{"spec": {"source": {"tls": {"caSecretRef": {"name": "authority"}}}}}"#,
        [
            "SourceUnreachable",
            "SourceUnreachable",
            "SecretNotFound",
            "SourceUnreachable",
            "SourceUnreachable",
            "SourceUnreachable",
            "SourceUnreachable",
        ],
    ),
    (
        "target.tls",
        r#"{"spec": {"target": {"tls": {"caSecretRef": {"name": "authority"}}}}}"#,
        [
            "TargetUnreachable",
            "TargetUnreachable",
            "SecretNotFound",
            "SourceUnreachable",
            "AuthenticationFailed",
            "TargetUnreachable",
            "TargetUnreachable",
        ],
    ),
    (
        "target.tls without a certificate",
        r#"{"spec": {"target": {"tls": {"caSecretRef": {"name": "source", "key": "uri"}}}}}"#,
        [
            "InvalidCertificate",
            "InvalidCertificate",
            "SecretNotFound",
            "InvalidCertificate",
            "InvalidCertificate",
            "InvalidCertificate",
            "InvalidCertificate",
        ],
    ),
    (
        "source.uriSecretRef to another deployment",
        r#"{"spec": {"source": {"uriSecretRef": {"name": "elsewhere"}}}}"#,
        [
            "TargetBusy",
            "TargetBusy",
            "TargetBusy",
            "TargetBusy",
            "TargetBusy",
            "TargetBusy",
            "TargetNotEmpty",
        ],
    ),
    (
        "target.uriSecretRef to a Secret that is not there",
        r#"{"spec": {"target": {"uriSecretRef": {"name": "missing"}}}}"#,
        ["SecretNotFound"; 7],
    ),
];

/// What `kubectl` refuses, whatever the phase, and says.
const REFUSED: [(&str, &str); 4] = [
    (
        r#"{"spec": {"source": {"database": "other"}}}"#,
        "the source's database cannot be changed",
    ),
    (
        r#"{"spec": {"target": {"database": "other"}}}"#,
        "the target's database cannot be changed",
    ),
    (
        r#"{"spec": {"target": {"stateDatabase": "other"}}}"#,
        "the state database cannot be changed",
    ),
    (
        r#"{"spec": {"source": {"database": "other"}, "target": {"database": "other_backup"}}}"#,
        "cannot be changed",
    ),
];

/// A mirror in a state meets all edits, one after the other.
async fn meets_all_edits(stage: &Stage, place: usize, mirror: &str, state: &str) {
    for (edit, sentence) in REFUSED {
        let patch = ["patch", "mongomirror", mirror, "--type=merge", "-p", edit];
        let output = stage.cluster.plane.kubectl(&patch).await.unwrap();
        assert!(!output.success, "{mirror}: {edit} is taken");
        let said = output.stderr;
        assert!(said.contains(sentence), "{mirror}: {edit}: {said}");
    }
    stage.says(mirror, state).await;
    let spec = stage.cluster.field(mirror, ".spec").await;
    let (source, copy) = stage.databases(mirror);
    for (edit, patch, says) in EDITS_TAKEN_BACK {
        eprintln!("{mirror}: {edit}");
        let is_copied = mirror != "copying";
        let before = hashes(&copy).await;
        stage.edit(mirror, patch).await;
        if mirror == "paused" {
            stage.says(mirror, "Suspended").await;
            let on = r#"{"spec": {"enabled": true}}"#;
            stage.edit(mirror, on).await;
        }
        stage.says(mirror, says[place]).await;
        if is_copied {
            let now = hashes(&copy).await;
            assert_eq!(now, before, "{mirror}: {edit}: the target is not touched");
        }
        fill(&source, edit, 0, 1).await;
        stage.give(mirror, &spec).await;
        stage.says(mirror, state).await;
        if mirror == "live" {
            become_equal(edit, &source, &copy, &[]).await;
        }
    }
}

/// A mirror, where it is sent, and what it says there.
type Moved = (&'static str, &'static str, &'static str);

const ELSEWHERE: &str = r#"{"spec": {"target": {"uriSecretRef": {"name": "elsewhere"}}}}"#;

const MOVED: [Moved; 4] = [
    ("live", ELSEWHERE, "Mirroring"),
    ("paused", ELSEWHERE, "Mirroring"),
    ("copying", ELSEWHERE, "Copying"),
    // Its target has no connection string of its own.
    (
        "both",
        r#"{"spec": {"source": {"uriSecretRef": {"name": "elsewhere"}}}}"#,
        "Mirroring",
    ),
];

/// A mirror is sent to another target deployment, and back.
async fn moves_and_comes_back(stage: &Stage, there: &Client, (mirror, sent, says): Moved) {
    let spec = stage.cluster.field(mirror, ".spec").await;
    let (home, copy) = stage.databases(mirror);
    let other = there.database(copy.name());
    let source = match mirror {
        "both" => there.database(mirror),
        _ => home.clone(),
    };
    let begun = stage.begun(mirror).await;
    stage.edit(mirror, sent).await;
    let before = hashes(&copy).await;
    if mirror == "paused" {
        stage.says(mirror, "Suspended").await;
        assert!(names(&other).await.is_empty(), "{mirror} is paused");
        let on = r#"{"spec": {"enabled": true}}"#;
        stage.edit(mirror, on).await;
    }
    stage.says(mirror, says).await;
    let what = format!("{mirror} is copied to the other target");
    eventually(&what, async || {
        (stage.begun(mirror).await != begun).then_some(())
    })
    .await;
    if says == "Mirroring" {
        fill(&source, "moved", 0, 10).await;
        become_equal(&what, &source, &other, &[]).await;
    }
    let now = hashes(&copy).await;
    assert_eq!(now, before, "{mirror}: the old copy stays as it is");
    stage.give(mirror, &spec).await;
    let back = match mirror {
        "paused" => "Suspended",
        _ => says,
    };
    stage.says(mirror, back).await;
    if back == "Mirroring" {
        let what = format!("{mirror} is back");
        become_equal(&what, &home, &copy, &[]).await;
        assert_eq!(stage.begun(mirror).await, begun, "{what} without a copy");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_breaks_something_is_said_and_costs_no_copy_when_it_is_taken_back() {
    let stage = Stage::start().await;
    let (elsewhere, there) = servers().await;
    let authority = serde_json::json!({"ca.crt": stage.cluster.plane.authority().certificate()});
    let authority = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: authority}}\nstringData: {authority}\n"
    );
    let secrets = secret("elsewhere", &impatient(&elsewhere.uri())) + &authority;
    stage.cluster.apply(&secrets).await;
    let states = STATES.iter().map(|state| (state.name, state.says));
    let mirrors: Vec<_> = states.chain(OTHERS).collect();
    let (refused, theirs) = stage.databases("refused");
    fill(&refused, "orders", 0, 50).await;
    fill(&theirs, "theirs", 0, 1).await;
    let (copying, _) = stage.databases("copying");
    fill_large(&copying, "orders", 60).await;
    join_all(STATES.iter().map(async |state| {
        fill(&stage.client.database(state.name), "orders", 0, 50).await;
        // Others, should anybody read them.
        fill(&there.database(state.name), "orders", 1000, 10).await;
        stage.apply(state.name, "").await;
        stage.says(state.name, "Mirroring").await;
        stage.edit(state.name, state.enter).await;
        stage.says(state.name, state.says).await;
    }))
    .await;
    stage.apply("refused", "").await;
    for client in [&stage.client, &there] {
        fill(&client.database("both"), "orders", 0, 50).await;
    }
    let both = mirror("both", "source", "both", "");
    stage.cluster.apply(&both).await;
    stage.says("both", "Mirroring").await;
    let slow = "  limits: {copyMiBPerSecond: 1}\n";
    stage.apply("copying", slow).await;
    stage.says("copying", "Copying").await;
    let begun = join_all(mirrors.iter().map(|(mirror, _)| stage.begun(mirror))).await;

    let edited = mirrors.iter().enumerate();
    join_all(edited.map(|(place, (mirror, state))| meets_all_edits(&stage, place, mirror, state)))
        .await;
    join_all(MOVED.map(|moved| moves_and_comes_back(&stage, &there, moved))).await;

    let replace = r#"{"spec": {"target": {"onExistingData": "Replace"}}}"#;
    let leave = STATES.iter().map(|state| state.leave);
    let leave = leave.chain([r#"{"spec": {"limits": null}}"#, replace]);
    join_all(
        mirrors
            .iter()
            .zip(leave)
            .zip(begun)
            .map(async |(((mirror, _), leave), begun)| {
                stage.edit(mirror, leave).await;
                stage.says(mirror, "Mirroring").await;
                let (source, copy) = stage.databases(mirror);
                become_equal(mirror, &source, &copy, &[]).await;
                if *mirror != "refused" {
                    let now = stage.begun(mirror).await;
                    assert_eq!(now, begun, "{mirror} was not copied again");
                }
            }),
    )
    .await;
}

/// `out` goes out of the selection, `in` comes in.
const RESELECTED: &str = r#"{"spec": {"collections": {"exclude": ["out", "half"]}}}"#;

fn selection(policy: &str) -> String {
    format!("  collections: {{exclude: [in], onDeselected: {policy}}}\n")
}

/// What is left of what went out, by what is to become of it.
async fn has_let_go(what: &str, copy: &Database, policy: &str, before: &Document) {
    let left = hashes(copy).await;
    let wanted = match policy {
        "Retain" => before.get("out"),
        _ => None,
    };
    assert_eq!(left.get("out"), wanted, "{what}");
}

/// The selection is edited in this state.
async fn reselected(stage: &Stage, state: &State, policy: &str) {
    let name = format!("{}-{}", state.name, policy.to_lowercase());
    let (source, copy) = stage.databases(&name);
    for collection in ["in", "out", "stays"] {
        fill(&source, collection, 0, 30).await;
    }
    stage.apply(&name, &selection(policy)).await;
    stage.says(&name, "Mirroring").await;
    stage.edit(&name, state.enter).await;
    stage.says(&name, state.says).await;
    let before = hashes(&copy).await;
    stage.edit(&name, RESELECTED).await;
    stage.says(&name, state.says).await;
    if state.name != "live" {
        let now = hashes(&copy).await;
        assert_eq!(now, before, "{name}: nothing happens before it runs");
    }
    for collection in ["in", "out", "stays"] {
        fill(&source, collection, 100, 1).await;
    }
    stage.edit(&name, state.leave).await;
    stage.says(&name, "Mirroring").await;
    become_equal(&name, &source, &copy, &["out"]).await;
    has_let_go(&name, &copy, policy, &before).await;
}

/// The selection is edited while a part is copied.
async fn reselected_while_copying(stage: &Stage, policy: &str) {
    let name = format!("copying-{}", policy.to_lowercase());
    let (source, copy) = stage.databases(&name);
    for collection in ["in", "out", "stays"] {
        fill(&source, collection, 0, 30).await;
    }
    for collection in ["half", "large"] {
        fill_large(&source, collection, 16).await;
    }
    let slow = "  limits: {copyMiBPerSecond: 1}\n";
    stage.apply(&name, &(selection(policy) + slow)).await;
    let notes = stage.client.database("mongomirror");
    let notes = notes.collection::<Document>("catalog");
    let whole = doc! {"_id.t": copy.name(), "name": "out", "copied": true};
    eventually(&format!("{name}: out is copied, half is not"), async || {
        let whole = notes.find_one(whole.clone()).await.unwrap()?;
        let half = copy.collection::<Document>("half");
        half.find_one(doc! {}).await.unwrap().map(|_| whole)
    })
    .await;
    let before = hashes(&copy).await;
    stage.edit(&name, RESELECTED).await;
    // What is not whole is of no use.
    eventually(&format!("{name}: half is dropped"), async || {
        let names = names(&copy).await;
        (!names.contains(&"half".to_owned())).then_some(())
    })
    .await;
    stage.says(&name, "Copying").await;
    let fast = r#"{"spec": {"limits": null}}"#;
    stage.edit(&name, fast).await;
    stage.says(&name, "Mirroring").await;
    become_equal(&name, &source, &copy, &["out", "half"]).await;
    has_let_go(&name, &copy, policy, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selection_that_is_edited_in_any_state_is_brought_about_once_the_mirror_runs() {
    let stage = Stage::start().await;
    let policies = ["Retain", "Drop"];
    let taken_back = async {
        let (source, copy) = stage.databases("back");
        for collection in ["in", "out"] {
            fill(&source, collection, 0, 30).await;
        }
        stage.apply("back", &selection("Drop")).await;
        stage.says("back", "Mirroring").await;
        let uuid = async || {
            let listed = copy.run_command(doc! {"listCollections": 1}).await.unwrap();
            listed.get_document("cursor").unwrap().to_string()
        };
        let before = uuid().await;
        let off = r#"{"spec": {"enabled": false}}"#;
        stage.edit("back", off).await;
        stage.edit("back", RESELECTED).await;
        let back = r#"{"spec": {"enabled": true, "collections": {"exclude": ["in"]}}}"#;
        stage.edit("back", back).await;
        fill(&source, "out", 100, 1).await;
        stage.says("back", "Mirroring").await;
        become_equal("back", &source, &copy, &["in"]).await;
        assert_eq!(uuid().await, before, "it is taken back before it was done");
    };
    let in_states = policies.map(|policy| {
        let stage = &stage;
        join_all(
            STATES
                .iter()
                .map(move |state| reselected(stage, state, policy)),
        )
    });
    let copying = policies.map(|policy| reselected_while_copying(&stage, policy));
    tokio::join!(join_all(in_states), join_all(copying), taken_back);
}

/// Deletion is asked for in a state, something is edited after that; whether the target stays.
const ENDS: [(&str, &str, &str, bool); 12] = [
    ("of-live", "live", "{}", false),
    ("of-paused", "paused", "{}", false),
    ("of-missing", "missing", "{}", false),
    ("of-closed", "closed", "{}", false),
    ("of-failed", "failed", "{}", false),
    ("of-copying", "copying", "{}", false),
    // What is there is not the mirror's.
    ("of-refused", "refused", "{}", true),
    (
        "retained",
        "paused",
        r#"{"spec": {"deletionPolicy": "Retain"}}"#,
        true,
    ),
    (
        "unconfirmed",
        "failed",
        r#"{"metadata": {"annotations": {"mongomirror.dev/delete-target": null}}}"#,
        true,
    ),
    (
        "mistaken",
        "copying",
        r#"{"metadata": {"annotations": {"mongomirror.dev/delete-target": "mistaken"}}}"#,
        true,
    ),
    (
        "away",
        "paused",
        r#"{"spec": {"target": {"uriSecretRef": {"name": "closed"}}}}"#,
        true,
    ),
    (
        "lost",
        "closed",
        r#"{"spec": {"target": {"uriSecretRef": {"name": "missing"}}}}"#,
        false,
    ),
];

/// A mirror is deleted in a state.
async fn ends(stage: &Stage, (name, state, then, stays): (&str, &str, &str, bool)) {
    let (source, copy) = stage.databases(name);
    let says = match state {
        "copying" => {
            fill_large(&source, "orders", 32).await;
            let slow = "  limits: {copyMiBPerSecond: 1}\n";
            stage.apply(name, slow).await;
            "Copying"
        }
        "refused" => {
            fill(&source, "orders", 0, 30).await;
            fill(&copy, "theirs", 0, 1).await;
            stage.apply(name, "").await;
            "TargetNotEmpty"
        }
        _ => {
            fill(&source, "orders", 0, 30).await;
            let state = STATES.iter().find(|it| it.name == state).unwrap();
            stage.apply(name, "").await;
            stage.says(name, "Mirroring").await;
            stage.edit(name, state.enter).await;
            state.says
        }
    };
    stage.says(name, says).await;
    let target = copy.name();
    let annotation = format!(r#"{{"mongomirror.dev/delete-target": "{target}"}}"#);
    let confirmed = format!(
        r#"{{"metadata": {{"annotations": {annotation}}}, "spec": {{"deletionPolicy": "DeleteTarget"}}}}"#
    );
    stage.edit(name, &confirmed).await;
    stage.edit(name, then).await;
    assert!(
        !names(&copy).await.is_empty(),
        "{name}: nothing is deleted yet"
    );
    let delete = ["delete", "mongomirror", name, "--timeout=20s"];
    stage.cluster.kubectl(&delete).await;
    eventually(&format!("{name} has ended"), async || {
        let log = stage.cluster.log();
        let of_this = format!("default/{name}");
        let is_end = |line: &str| {
            line.contains("ended for good") || line.contains("the target could not be")
        };
        let mut lines = log.lines();
        lines.find(|line| is_end(line) && line.contains(&of_this))?;
        Some(())
    })
    .await;
    assert_eq!(!names(&copy).await.is_empty(), stays, "{name}");
    assert_eq!(names(&source).await, ["orders"], "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_last_of_a_targets_deletion_counts_in_whatever_state_the_mirror_is_deleted() {
    let stage = Stage::start().await;
    join_all(ENDS.map(|row| ends(&stage, row))).await;
}

/// Waits until the changes of a database are read from this member, and from no other.
async fn is_read_from(members: &[Client], member: usize, database: &str) {
    let all = doc! {"$currentOp": {"allUsers": true}};
    let namespace = format!("{database}.$cmd");
    let stream = doc! {"$match": {"appName": "mongomirror", "op": "getmore", "ns": namespace}};
    let what = format!("{database} is read from member {member} alone");
    eventually(&what, async || {
        for (place, client) in members.iter().enumerate() {
            let list = [all.clone(), stream.clone()];
            let found = client.database("admin").aggregate(list).await.unwrap();
            let found: Vec<Document> = found.try_collect().await.unwrap();
            if found.is_empty() == (place == member) {
                return None;
            }
        }
        Some(())
    })
    .await;
}

async fn other_members_are_read_from(stage: &Stage) {
    let primary = stage.set.wait_until_settled().await.unwrap();
    let mut members = Vec::new();
    for node in stage.set.nodes() {
        members.push(node.client().await.unwrap());
    }
    let (source, copy) = stage.databases("members");
    fill(&source, "orders", 0, 50).await;
    stage.apply("members", "").await;
    stage.says("members", "Mirroring").await;
    is_read_from(&members, primary, "members").await;
    for (preference, member) in [("Secondary", 1 - primary), ("Primary", primary)] {
        let edit = format!(r#"{{"spec": {{"source": {{"readPreference": "{preference}"}}}}}}"#);
        stage.edit("members", &edit).await;
        is_read_from(&members, member, "members").await;
        fill(&source, preference, 0, 10).await;
        become_equal(preference, &source, &copy, &[]).await;
    }
}

/// How often a mirror was started.
async fn epoch(stage: &Stage, mirror: &str) -> i64 {
    let checkpoint = checkpoint(&stage.client, mirror).await.unwrap();
    checkpoint.get_i64("epoch").unwrap()
}

/// How many transactions each lane of a mirror has had.
async fn lanes(stage: &Stage, copy: &Database) -> Vec<i64> {
    let fences = stage.client.database("mongomirror");
    let fences = fences.collection::<Document>("fences");
    let of_it = doc! {"_id.t": copy.name(), "batches": {"$gt": 0}};
    let found = fences.find(of_it).sort(doc! {"_id": 1}).await.unwrap();
    let found: Vec<Document> = found.try_collect().await.unwrap();
    let batches = found.iter().map(|lane| lane.get_i64("batches"));
    batches.map(Result::unwrap).collect()
}

async fn batches_are_written_in_lanes(stage: &Stage) {
    let (source, copy) = stage.databases("lanes");
    fill(&source, "orders", 0, 50).await;
    stage.apply("lanes", "").await;
    stage.says("lanes", "Mirroring").await;
    fill(&source, "orders", 1000, 2000).await;
    become_equal("in one", &source, &copy, &[]).await;
    assert!(lanes(stage, &copy).await.is_empty());
    let edit = async |edit: &str| {
        let before = epoch(stage, "lanes").await;
        stage.edit("lanes", edit).await;
        eventually("it is started again", async || {
            (epoch(stage, "lanes").await > before).then_some(())
        })
        .await;
    };
    edit(r#"{"spec": {"apply": {"mode": "Parallel"}}}"#).await;
    let mut from = 10_000;
    eventually("all lanes are used", async || {
        fill(&source, "orders", from, 1000).await;
        from += 1000;
        (lanes(stage, &copy).await.len() == 4).then_some(())
    })
    .await;
    become_equal("in lanes", &source, &copy, &[]).await;
    edit(r#"{"spec": {"apply": null}}"#).await;
    let before = lanes(stage, &copy).await;
    fill(&source, "orders", 1_000_000, 2000).await;
    become_equal("again in one", &source, &copy, &[]).await;
    assert_eq!(lanes(stage, &copy).await, before);
}

async fn lost_history_is_no_longer_waited_with(stage: &Stage) {
    let forgetful = ReplicaSet::builder().oplog_mb(10);
    let forgetful = forgetful.arg("--syncdelay", "2").start().await.unwrap();
    let client = forgetful.client().await.unwrap();
    let (source, copy) = (client.database("lost"), client.database("lost_backup"));
    fill(&source, "orders", 0, 50).await;
    let stop = "  onHistoryLost: Stop\n";
    let manifest = mirror("lost", "forgetful", "lost", stop);
    let uri = impatient(&forgetful.uri());
    let manifest = secret("forgetful", &uri) + &manifest;
    stage.cluster.apply(&manifest).await;
    stage.says("lost", "Mirroring").await;
    let edit = async |edit: &str| stage.edit("lost", edit).await;
    edit(r#"{"spec": {"enabled": false}}"#).await;
    stage.says("lost", "Suspended").await;
    fill(&source, "orders", 1000, 50).await;
    roll_over(&client).await;
    edit(r#"{"spec": {"enabled": true}}"#).await;
    stage.says("lost", "HistoryLost").await;
    let left = copy.collection::<Document>("orders");
    assert_eq!(left.count_documents(doc! {}).await.unwrap(), 50);
    edit(r#"{"spec": {"onHistoryLost": "Resync"}}"#).await;
    stage.says("lost", "Mirroring").await;
    become_equal("lost", &source, &copy, &[]).await;
}

async fn verifications_come_more_often(stage: &Stage) {
    let (source, _) = stage.databases("verified");
    fill(&source, "orders", 0, 50).await;
    stage.apply("verified", "").await;
    let notes = stage.client.database("mongomirror");
    let notes = notes.collection::<Document>("verifications");
    let of_it = doc! {"_id": "verified_backup"};
    let last = async |what: &str, before: Option<bson::DateTime>| {
        eventually(what, async || {
            let found = notes.find_one(of_it.clone()).await.unwrap()?;
            let time = *found.get_datetime("time").unwrap();
            (Some(time) != before).then_some(time)
        })
        .await
    };
    let first = last("it is verified", None).await;
    let edit = r#"{"spec": {"verification": {"interval": "1m"}}}"#;
    stage.edit("verified", edit).await;
    let second = last("it is verified again", Some(first)).await;
    let between = second.timestamp_millis() - first.timestamp_millis();
    assert!(between >= 60_000, "after {between} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_mirror_works_is_edited_while_it_runs() {
    let set = ReplicaSet::builder().nodes(2).start().await.unwrap();
    let client = set.client().await.unwrap();
    let stage = Stage::of((set, client)).await;
    tokio::join!(
        other_members_are_read_from(&stage),
        batches_are_written_in_lanes(&stage),
        lost_history_is_no_longer_waited_with(&stage),
        verifications_come_more_often(&stage),
    );
}
