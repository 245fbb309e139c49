//! What a machine must have to be a node, and how it gets it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

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

/// The machine can be a node, or is made to; else what it lacks. Installs Debian packages if it may.
pub(super) fn prepare() -> Result<()> {
    if !fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) {
        return Err(unusable(
            "be root: it makes namespaces, mounts and networks",
        ));
    }
    if !Path::new("/sys/fs/cgroup").is_dir() {
        return Err(unusable("mount cgroups at /sys/fs/cgroup"));
    }
    may_unshare()?;
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install {}", missing.join(" "));
    let Some(apt) = on_path("apt-get") else {
        let hint = format!("install what Debian and Ubuntu have as: {install}");
        return Err(unusable(&hint));
    };
    if install_packages(&apt, &missing).is_err() {
        // The usual reason on a machine that was just made: no list of packages yet.
        let mut update = Command::new(&apt);
        update.args(["update", "-qq"]);
        progress::run("bringing Debian's lists of packages", update)
            .and_then(|()| install_packages(&apt, &missing))
            .map_err(|error| unusable(&format!("{install} (it failed: {error})")))?;
    }
    match missing_packages() {
        left if left.is_empty() => Ok(()),
        left => Err(unusable(&format!("install {}", left.join(" ")))),
    }
}

fn unusable(hint: &str) -> Error {
    Error::Unusable {
        what: "this machine as a node".into(),
        hint: hint.into(),
    }
}

/// Containers themselves may have root without the right to make others.
fn may_unshare() -> Result<()> {
    let Some(unshare) = on_path("unshare") else {
        // It is among what is missing then.
        return Ok(());
    };
    let mut command = Command::new(unshare);
    command.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "true",
    ]);
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(unusable(&format!(
                "root may not make namespaces here: {why}"
            )))
        }
        Err(error) => Err(unusable(&format!("unshare does not start: {error}"))),
    }
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

fn install_packages(apt: &Path, packages: &[&str]) -> Result<()> {
    let mut install = Command::new(apt);
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=300", "install", "--yes", "-qq"])
        .arg("--no-install-recommends")
        .args(packages);
    let what = format!("installing {}, to run a node", packages.join(" "));
    progress::run(&what, install)
}

/// The path of a program, also where only root looks.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let system = SYSTEM_FOLDERS.map(|folder| Path::new(folder).join(name));
    on_path(name).or_else(|| system.into_iter().find(|path| is_executable(path)))
}

/// The same of a program that [`prepare`] has seen.
pub(super) fn needed(name: &str) -> Result<PathBuf> {
    program(name).ok_or_else(|| unusable(&format!("{name} is gone")))
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
