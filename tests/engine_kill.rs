//! The mirror's process is killed again and again, at random moments, while everything is
//! written: nothing is lost and nothing is applied twice.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bson::{Document, doc};
use common::workload::{Workload, fill};
use common::{PATIENCE, assert_equal, fresh_seed};
use mongodb::{Client, Database};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testbed::ReplicaSet;

/// Kills in one test; the issue asks for thirty.
const KILLS: u32 = 32;

/// A `mongomirror run` of its own, killed when dropped.
struct Process {
    child: Child,
}

impl Process {
    fn start(manifest: &Path, log: &Path) -> Self {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mongomirror"))
            .args(["run", "-f"])
            .arg(manifest)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Prints the end of the mirror's log when the test panics.
struct Log(PathBuf);

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.0).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(80);
            eprintln!(
                "--- the end of the mirror's log:\n{}",
                lines[last..].join("\n")
            );
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn manifest(folder: &Path, uri: &str) -> PathBuf {
    let file = folder.join("mirror.yaml");
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: shop}}\nstringData: {{uri: \"{uri}\"}}\n---\n\
         apiVersion: mongomirror.dev/v1alpha1\nkind: MongoMirror\nmetadata: {{name: shop}}\n\
         spec:\n  source: {{uriSecretRef: {{name: shop}}, database: shop}}\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

async fn checkpoint(state: &Database) -> Option<Document> {
    state
        .collection::<Document>("checkpoints")
        .find_one(doc! {"_id": "shop_backup"})
        .await
        .unwrap()
}

/// Waits until the checkpoint has reached what the source holds now, and the copy is complete.
async fn caught_up(client: &Client) {
    let ping = doc! {"ping": 1};
    let reply = client.database("admin").run_command(ping).await.unwrap();
    let now = reply.get_timestamp("operationTime").unwrap();
    let state = client.database("mongomirror");
    let reached = async {
        loop {
            let ranges = state.collection::<Document>("ranges");
            let left = ranges.count_documents(doc! {}).await.unwrap();
            let position = checkpoint(&state).await.and_then(|checkpoint| {
                let position = checkpoint.get_document("position").ok()?;
                position.get_timestamp("time").ok()
            });
            if left == 0
                && position.is_some_and(|at| (at.time, at.increment) >= (now.time, now.increment))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached)
        .await
        .expect("the mirror never caught up");
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_kills_during_copy_and_stream_leave_no_difference() {
    let seed = fresh_seed();
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client, "shop", seed, 4000).await;
    let folder = tempfile::tempdir().unwrap();
    let (manifest, log) = (
        manifest(folder.path(), &set.uri()),
        folder.path().join("log"),
    );
    let _shown = Log(log.clone());
    let mut random = StdRng::seed_from_u64(seed);
    let workload = Workload::start(&client, "shop", seed, 3, true);
    for _ in 0..KILLS {
        let process = Process::start(&manifest, &log);
        // From before it has connected to well into the stream.
        tokio::time::sleep(Duration::from_millis(random.random_range(50..1500))).await;
        process.kill();
    }
    let epoch = checkpoint(&client.database("mongomirror"))
        .await
        .map(|c| c.get_i64("epoch").unwrap());
    let writes = workload.stop().await;
    let process = Process::start(&manifest, &log);
    caught_up(&client).await;
    drop(process);
    eprintln!("{writes} writes, {epoch:?} take-overs");
    let logs = std::fs::read_to_string(&log).unwrap();
    eprintln!(
        "{}",
        logs.lines().rev().take(60).collect::<Vec<_>>().join("\n")
    );
    assert!(
        epoch.is_some_and(|epoch| epoch > 10),
        "most runs must have got to work"
    );
    assert!(
        !logs.contains("repaired"),
        "a document was not as the stream said"
    );
    assert!(!logs.contains("panicked"), "the mirror panicked");
    assert_equal(&client.database("shop"), &client.database("shop_backup")).await;
}
