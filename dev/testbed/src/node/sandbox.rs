//! Namespaces in which a whole node lives: its processes, mounts and networks vanish with them.
//!
//! Their first process dies with this one, by whatever it ends, and the kernel then ends every
//! process within, unmounts what they mounted, and removes bridges, addresses and iptables rules.
//! What is left are folders of cgroups, which [`Drop`] removes, or the watchdog of `scratch`.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::Command;

use super::machine;
use crate::{
    control_plane::{Output, run_to_its_end},
    error::{Context, Error, Result},
    process::{Deadline, Recipe, Server},
    scratch,
};

const LOOK_EVERY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// The first process. `$1` is a file to make when all is set up.
///
/// Programs of a node write to places of the whole machine. They get their own /run, and see
/// others as they are, but write beside them. The kubelet also wants some settings of the kernel
/// to be its way: it is shown that they are. At the end it only waits, also for orphans.
const INIT: &str = r#"
set -e
mount --make-rshared /
mount -t tmpfs tmpfs /run
for place in /opt /var/lib /var/log; do
    mkdir -p "/run/beside$place/changed" "/run/beside$place/work"
    mount -t overlay overlay "$place" \
        -o "lowerdir=$place,upperdir=/run/beside$place/changed,workdir=/run/beside$place/work"
done
mkdir /run/settings
while read -r file value; do
    shown=/run/settings/${file##*/}
    echo "$value" >"$shown"
    mount --bind "$shown" "/proc/sys/$file"
done <<'END'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || :
: >"$1"
while :; do
    sleep 3600 &
    wait $!
done
"#;

/// The namespaces of a node.
pub(super) struct Sandbox {
    init: Server,
    /// Of the first process, as the machine sees it.
    pid: u32,
    nsenter: PathBuf,
    cgroup: Cgroup,
}

impl Sandbox {
    /// Makes them. Files go into `folder`.
    pub(super) async fn start(folder: &Path) -> Result<Self> {
        let cgroup = Cgroup::make()?;
        let ready = folder.join("ready");
        let mut arguments: Vec<OsString> = [
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child=SIGKILL",
            "--mount-proc",
            "sh",
            "-c",
            INIT,
            "init",
        ]
        .map(OsString::from)
        .into();
        arguments.push(ready.clone().into());
        let init = Server::new(Recipe {
            name: "the node's namespaces".into(),
            program: machine::needed("unshare")?,
            arguments,
            environment: vec![("PATH".into(), machine::search_path())],
            log: folder.join("init.log"),
        });
        init.start()?;
        let deadline = Deadline::after(PATIENCE);
        while !ready.exists() {
            init.check_alive()?;
            if deadline.is_over() {
                let reason = "it does not say that it is ready".into();
                return Err(deadline.error(init.name(), reason, init.log_tail()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let pid = only_child(&init)?;
        Ok(Self {
            init,
            pid,
            nsenter: machine::needed("nsenter")?,
            cgroup,
        })
    }

    /// The first process, as the machine sees it.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// The name of the cgroup for all pods.
    pub(super) fn cgroup(&self) -> &str {
        &self.cgroup.name
    }

    /// A file of the node, as the machine sees it.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    fn arguments<A: AsRef<OsStr>>(&self, program: &Path, arguments: &[A]) -> Vec<OsString> {
        let enter = format!("--target={}", self.pid);
        let mut all: Vec<OsString> = [&enter, "--mount", "--net", "--pid", "--"]
            .map(OsString::from)
            .into();
        all.push(program.into());
        all.extend(arguments.iter().map(|it| it.as_ref().to_owned()));
        all
    }

    /// A server on the node, not started yet. It ends with the node.
    pub(super) fn server<A: AsRef<OsStr>>(
        &self,
        name: &str,
        program: &Path,
        arguments: &[A],
        folder: &Path,
    ) -> Server {
        Server::new(Recipe {
            name: name.into(),
            program: self.nsenter.clone(),
            arguments: self.arguments(program, arguments),
            environment: vec![("PATH".into(), machine::search_path())],
            log: folder.join(format!("{name}.log")),
        })
    }

    /// Runs a program on the node, to its end.
    pub(super) async fn run<A: AsRef<OsStr>>(
        &self,
        program: &Path,
        arguments: &[A],
    ) -> Result<Output> {
        let mut command = Command::new(&self.nsenter);
        command.args(self.arguments(program, arguments));
        command.env("PATH", machine::search_path());
        let what = program.file_name().unwrap_or_default().to_string_lossy();
        run_to_its_end(format!("{what} on the node"), command, None).await
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Process ids of Linux are below 2^22. Its parent waits for it, so the id is still its own;
        // and it is gone only when all others in its namespace are.
        let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        let deadline = Deadline::after(PATIENCE);
        while self.init.check_alive().is_ok() && !deadline.is_over() {
            thread::sleep(LOOK_EVERY);
        }
    }
}

fn only_child(server: &Server) -> Result<u32> {
    let parent = server.pid().unwrap_or_default();
    let file = format!("/proc/{parent}/task/{parent}/children");
    let children = fs::read_to_string(&file).context(|| format!("read {file}"))?;
    let child = children.split_whitespace().next();
    child
        .and_then(|pid| pid.parse().ok())
        .ok_or_else(|| Error::NotRunning(server.name().to_owned()))
}

/// A cgroup of each hierarchy, for all pods.
pub(super) struct Cgroup {
    name: String,
    folders: Vec<PathBuf>,
}

impl Cgroup {
    /// Named as the folder of this process, so that its watchdog knows it.
    pub(super) fn make() -> Result<Self> {
        let root = scratch::scratch_root()?;
        let name = root.file_name().unwrap_or_default().to_string_lossy();
        let mut cgroup = Self {
            name: name.clone().into_owned(),
            folders: Vec::new(),
        };
        for hierarchy in hierarchies()? {
            let folder = hierarchy.join(&*name);
            if !folder.is_dir() {
                fs::create_dir(&folder).context(|| format!("make {}", folder.display()))?;
            }
            // A new one has no CPUs and no memory, so nothing could run in it.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (hierarchy.join(file), folder.join(file));
                if let (Ok(value), true) = (fs::read_to_string(&from), to.exists()) {
                    fs::write(&to, value.trim()).context(|| format!("write {}", to.display()))?;
                }
            }
            cgroup.folders.push(folder);
        }
        Ok(cgroup)
    }
}

/// The folders of all hierarchies: one with version 2, one for each controller with version 1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.into()]);
    }
    let entries = fs::read_dir(root).context(|| "read /sys/fs/cgroup".into())?;
    let folders = entries.flatten().map(|entry| entry.path());
    // Links name two controllers of one hierarchy; some folders are no hierarchy at all.
    Ok(folders
        .filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists())
        .collect())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Deadline::after(PATIENCE);
        // Processes that are being killed are in it for a moment.
        while !self.folders.iter().all(|folder| remove(folder)) && !deadline.is_over() {
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// Removes a cgroup with those below it; their files are the kernel's.
fn remove(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return !folder.exists();
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    fs::remove_dir(folder).is_ok()
}
