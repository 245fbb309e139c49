//! Nothing is left behind, whichever way a test ends.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testbed::{ReplicaSet, Standalone};

const PATIENCE: Duration = Duration::from_secs(10);

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The fields of a process's status after its name: state, parent, …
fn status(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split(' ').map(Into::into).collect())
}

/// Whether a process runs. A dead one may stay listed until its parent has looked at it.
fn runs(pid: u32) -> bool {
    status(pid).is_some_and(|status| status[0] != "Z" && status[0] != "X")
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| status(*pid).is_some_and(|status| status[1] == parent.to_string()))
        .collect()
}

fn folders_of(process: u32) -> Vec<PathBuf> {
    let prefix = format!("mongomirror-testbed-{process}-");
    let entries = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["mongod", "--standalone"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut uri = String::new();
    let output = command.stdout.as_mut().unwrap();
    BufReader::new(output).read_line(&mut uri).unwrap();
    assert!(uri.starts_with("mongodb://127.0.0.1:"), "{uri}");
    let children = children_of(command.id());
    // The server, and the watchdog over the folder.
    assert_eq!(children.len(), 2);
    assert_eq!(folders_of(command.id()).len(), 1);
    (command, children)
}

fn assert_nothing_is_left(process: u32, children: &[u32]) {
    wait_until("processes were left", || {
        children.iter().all(|pid| !runs(*pid))
    });
    wait_until("a folder was left", || folders_of(process).is_empty());
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
