//! What a machine must have to be a node, and how it gets it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::sandbox::Cgroup;
use crate::{
    error::{Error, Result},
    progress,
    tools::{is_executable, on_path},
};

/// Programs that are needed, with the Debian package that has them.
const PROGRAMS: [(&str, &str); 9] = [
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables-restore", "iptables"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
];

/// Where distributions, and those who install them by hand, put CNI plugins.
const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
const PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];
const PLUGIN_PACKAGE: &str = "containernetworking-plugins";

/// Where programs are that only root runs, if its `PATH` does not name it.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// What the first process of a node does at first, tried out: root may be kept from it.
const TRY_MOUNTS: &str = r#"
mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir /run/changed /run/work
mount -t overlay overlay /opt -o lowerdir=/opt,upperdir=/run/changed,workdir=/run/work
"#;

/// The same of what its network is made of.
const TRY_NETWORK: &str = r#"
ip link add bridge type bridge
ip link add one type veth peer name other
iptables-restore </dev/null
iptables --table nat --list
"#;

/// The longest that apt-get may take to bring what it is asked for, in seconds.
const APT_LIMIT: &str = "300";
/// Mirrors that do not answer are given up soon, and so are others who hold dpkg's lock.
const APT_OPTIONS: [&str; 4] = [
    "-qq",
    "-oAcquire::http::Timeout=20",
    "-oAcquire::Retries=2",
    "-oDPkg::Lock::Timeout=120",
];

/// The machine can be a node, or is made to; else what it lacks. Installs Debian packages if it
/// may. Where nothing that could be installed would help, that is [`Error::NoNode`].
pub(super) fn prepare() -> Result<()> {
    if !fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) {
        return Err(no_node("only root makes namespaces, mounts and networks"));
    }
    try_out("mounts", TRY_MOUNTS)?;
    Cgroup::make().map_err(|error| match error {
        Error::Io { what, source } => no_node(&format!("root could not {what} ({source})")),
        other => other,
    })?;
    let missing = missing_packages();
    if !missing.is_empty() {
        install(&missing)?;
    }
    try_out("networks", TRY_NETWORK)
}

/// Containers themselves may have root without the right to make others.
fn try_out(what: &str, script: &str) -> Result<()> {
    let mut command = Command::new("unshare");
    let namespaces = ["--mount", "--net", "--pid", "--fork", "--mount-proc"];
    command
        .args(namespaces)
        .args(["sh", "-e", "-c", script])
        .env("PATH", search_path());
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr);
            Err(no_node(&format!(
                "root may not make {what} of its own here: {}",
                why.trim()
            )))
        }
        Err(error) => Err(lacks(&["util-linux"], &error.to_string())),
    }
}

fn no_node(why: &str) -> Error {
    Error::NoNode(why.into())
}

fn lacks(packages: &[&str], why: &str) -> Error {
    Error::MissingTool {
        tool: packages.join(", "),
        purpose: "run a node".into(),
        hint: format!(
            "apt-get install --no-install-recommends {} ({why})",
            packages.join(" ")
        ),
    }
}

fn install(missing: &[&str]) -> Result<()> {
    let Some(apt) = on_path("apt-get") else {
        let why = "what Debian and Ubuntu call so; this machine has no apt-get";
        return Err(lacks(missing, why));
    };
    let what = format!("installing {}, to run a node", missing.join(" "));
    let arguments = [&["install", "--yes", "--no-install-recommends"], missing].concat();
    if run_apt(&apt, &what, &arguments).is_err() {
        // The usual reason on a machine that was just made: no list of packages yet.
        run_apt(&apt, "bringing the lists of packages", &["update"])
            .and_then(|()| run_apt(&apt, &what, &arguments))
            .map_err(|error| lacks(missing, &format!("it failed here: {error}")))?;
    }
    match missing_packages() {
        left if left.is_empty() => Ok(()),
        left => Err(lacks(&left, "apt-get brought other programs than these")),
    }
}

fn run_apt(apt: &Path, what: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("timeout");
    command
        .arg(APT_LIMIT)
        .arg(apt)
        .args(APT_OPTIONS)
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    progress::run(what, command)
}

fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<&str> = Vec::new();
    for (name, package) in PROGRAMS {
        if program(name).is_none() && !missing.contains(&package) {
            missing.push(package);
        }
    }
    if plugins().is_none() {
        missing.push(PLUGIN_PACKAGE);
    }
    missing
}

/// The path of a program, also where only root looks.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let system = SYSTEM_FOLDERS.map(|folder| Path::new(folder).join(name));
    on_path(name).or_else(|| system.into_iter().find(|path| is_executable(path)))
}

/// The same of a program that [`prepare`] has seen.
pub(super) fn needed(name: &str) -> Result<PathBuf> {
    program(name).ok_or_else(|| lacks(&[name], "it was there a moment ago"))
}

/// The folder with the CNI plugins.
pub(super) fn plugins() -> Option<&'static Path> {
    let mut folders = PLUGIN_FOLDERS.into_iter().map(Path::new);
    folders.find(|folder| PLUGINS.iter().all(|it| is_executable(&folder.join(it))))
}

/// `PATH` for what runs on the node: containerd looks for runc, kube-proxy for iptables.
pub(super) fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for folder in SYSTEM_FOLDERS {
        path.push(":");
        path.push(folder);
    }
    path
}
