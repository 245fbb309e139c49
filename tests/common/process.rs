//! `mongomirror run` as a process of its own.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use testbed::Process;

/// How often a mirror's state is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A file of mirrors, and where the processes that run it log.
pub struct Manifest {
    folder: tempfile::TempDir,
    secrets: String,
}

impl Manifest {
    /// Mirrors of `databases` of a source into `<database>_backup` of a target.
    pub fn new(source: &str, target: &str, databases: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut secrets = String::new();
        for (name, uri) in [("source", source), ("target", target)] {
            writeln!(
                secrets,
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\n\
                 stringData: {{uri: \"{uri}\"}}\n---"
            )
            .expect("text");
        }
        let manifest = Self { folder, secrets };
        manifest.hold(databases, "");
        manifest
    }

    /// Lets the file hold mirrors of these databases alone, with `more` in each of their specs.
    pub fn hold(&self, databases: &[&str], more: &str) {
        let mut text = self.secrets.clone();
        for database in databases {
            let mirror = database.replace('_', "-");
            writeln!(
                text,
                "apiVersion: mongomirror.dev/v1alpha1\nkind: MongoMirror\n\
                 metadata: {{name: {mirror}}}\nspec:\n  \
                 source: {{uriSecretRef: {{name: source}}, database: {database}}}\n  \
                 target: {{uriSecretRef: {{name: target}}, database: {database}_backup}}\n{more}---"
            )
            .expect("text");
        }
        self.write(&text);
    }

    /// Lets the file be this.
    pub fn write(&self, text: &str) {
        // In one step: a process may read it at any moment.
        let new = self.folder.path().join("new.yaml");
        std::fs::write(&new, text).expect("the manifest");
        std::fs::rename(new, self.path()).expect("the manifest");
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("mirrors.yaml")
    }

    /// Where all processes of this file log.
    pub fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What they logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Adds a line to the log.
    pub fn note(&self, line: &str) {
        let mut options = std::fs::OpenOptions::new();
        let log = options.create(true).append(true).open(self.log_path());
        let noted = log.and_then(|mut log| {
            std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes())
        });
        noted.expect("the log");
    }

    /// Starts `mongomirror run` with more of an environment.
    pub fn run(&self, environment: &[(&str, &str)]) -> Process {
        self.run_by(
            Path::new(env!("CARGO_BIN_EXE_mongomirror")),
            &[],
            environment,
        )
    }

    /// The same by way of another program, which gets it behind its own arguments.
    pub fn run_by(&self, program: &Path, before: &[&str], environment: &[(&str, &str)]) -> Process {
        let mut arguments: Vec<OsString> = before.iter().map(Into::into).collect();
        if !before.is_empty() {
            arguments.push(env!("CARGO_BIN_EXE_mongomirror").into());
        }
        arguments.extend(["run".into(), "-f".into(), self.path().into_os_string()]);
        let environment = environment
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        Process::start(
            "mongomirror run",
            program,
            arguments,
            environment,
            self.log_path(),
        )
        .expect("the mirror's process")
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            super::canary::assert_none("the log of mongomirror run", self.log());
        }
    }
}

/// The checkpoint of the mirror of `database`, as a majority has it.
pub async fn checkpoint(target: &Client, database: &str) -> Option<Document> {
    let checkpoints = target
        .database("mongomirror")
        .collection::<Document>("checkpoints");
    let read = checkpoints
        .find_one(doc! {"_id": format!("{database}_backup")})
        .read_concern(mongodb::options::ReadConcern::majority());
    read.await.expect("the target answers")
}

/// Whether the first copy is complete and nothing is left of its plan.
pub async fn is_copied(target: &Client, database: &str) -> bool {
    let completed = checkpoint(target, database)
        .await
        .is_some_and(|checkpoint| {
            let copy = checkpoint.get_document("copy");
            copy.is_ok_and(|copy| copy.get_datetime("completedAt").is_ok())
        });
    completed && {
        let ranges = target
            .database("mongomirror")
            .collection::<Document>("ranges");
        let of_it = doc! {"_id.t": format!("{database}_backup")};
        ranges
            .count_documents(of_it)
            .await
            .expect("the target answers")
            == 0
    }
}

/// Waits until something holds; the caller bounds it.
pub async fn until(mut holds: impl AsyncFnMut() -> bool) {
    while !holds().await {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
