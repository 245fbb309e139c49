//! What tests of the end share: a command of the test bed, and what is left of it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// `testbed` as somebody runs it, with the line that it prints when all is up.
pub fn testbed(arguments: &[&str]) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = command.stdout.as_mut().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    (command, line.trim_end().to_owned())
}

/// The fields of a process's status after its name: state, parent, …
pub fn status(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split(' ').map(Into::into).collect())
}

pub fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| status(*pid).is_some_and(|status| status[1] == parent.to_string()))
        .collect()
}

/// What in a folder belongs to a process of the test bed, by its name.
pub fn entries_of(process: u32, folder: impl Into<PathBuf>) -> Vec<PathBuf> {
    let prefix = format!("mongomirror-testbed-{process}-");
    let entries = fs::read_dir(folder.into()).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

pub fn folders_of(process: u32) -> Vec<PathBuf> {
    entries_of(process, std::env::temp_dir())
}

/// Waits as long as there is something left; it says what.
pub fn nothing_is_left(patience: Duration, left: impl Fn() -> Option<String>) {
    let begun = Instant::now();
    while let Some(left) = left() {
        assert!(begun.elapsed() < patience, "{left}");
        thread::sleep(Duration::from_millis(20));
    }
}
