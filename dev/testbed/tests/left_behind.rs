//! Nothing is left behind, whichever way a test ends.

mod common;

use std::{
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::Duration,
};

use common::{children_of, folders_of, nothing_is_left, status};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testbed::{ReplicaSet, Standalone};

const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a process runs. A dead one may stay listed until its parent has looked at it.
fn runs(pid: u32) -> bool {
    status(pid).is_some_and(|status| status[0] != "Z" && status[0] != "X")
}

fn folder_of(log: &Path) -> PathBuf {
    log.ancestors().nth(2).unwrap().into()
}

#[test]
fn a_panicking_thread_leaves_no_process_and_no_folder() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let test = thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let set = ReplicaSet::builder().start().await.unwrap();
            // A paused server cannot end in its own way.
            set.node(0).pause().unwrap();
            let node = set.node(0);
            let seen = (node.pid().unwrap(), folder_of(node.log_path()));
            sender.send(seen).unwrap();
            panic!("on purpose: the end of mongod's log follows");
        })
    });
    let (pid, folder) = receiver.recv().unwrap();
    assert!(test.join().is_err());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!folder.exists(), "{}", folder.display());
}

#[tokio::test]
async fn servers_outlive_the_thread_that_started_them() {
    let start = || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(Standalone::builder().start()).unwrap()
    };
    let server = thread::spawn(start).join().unwrap();
    let pong = server.admin(bson::doc! {"ping": 1}).await;
    assert!(pong.is_ok(), "{pong:?}");
}

/// `testbed mongod` as somebody runs it, with its server up.
fn running_command() -> (Child, Vec<u32>) {
    let (command, uri) = common::testbed(&["mongod", "--standalone"]);
    assert!(uri.starts_with("mongodb://127.0.0.1:"), "{uri}");
    let children = children_of(command.id());
    // The server, and the watchdog over the folder.
    assert_eq!(children.len(), 2);
    assert_eq!(folders_of(command.id()).len(), 1);
    (command, children)
}

fn assert_nothing_is_left(process: u32, children: &[u32]) {
    nothing_is_left(PATIENCE, || {
        let is_left = children.iter().any(|pid| runs(*pid));
        is_left.then(|| "processes were left".to_owned())
    });
    nothing_is_left(PATIENCE, || {
        let is_left = !folders_of(process).is_empty();
        is_left.then(|| "a folder was left".to_owned())
    });
}

#[test]
fn a_killed_process_leaves_no_server_and_no_folder() {
    let (mut command, children) = running_command();
    command.kill().unwrap();
    command.wait().unwrap();
    assert_nothing_is_left(command.id(), &children);
}

#[test]
fn an_interrupted_command_ends_well_and_leaves_nothing() {
    let (mut command, children) = running_command();
    kill(Pid::from_raw(command.id() as i32), Signal::SIGINT).unwrap();
    assert!(command.wait().unwrap().success());
    assert_nothing_is_left(command.id(), &children);
}
