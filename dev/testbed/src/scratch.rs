//! Temporary folders that are gone in the end, whichever way the process ends.

use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::LazyLock,
};

use tempfile::TempDir;

use crate::error::{Context, Result};

/// Removes the folder `$0` when its standard input ends, that is when the process that holds
/// the other end is gone. Servers that are being killed may still hold files for a moment.
/// `read` is built into the shell, so nothing but that end can start the removal.
const WATCHDOG: &str = r#"
PATH=/usr/bin:/bin:$PATH
while read -r line; do :; done
for disk in "$0"/*/member*/data; do
    [ -d "$disk" ] && umount -l -- "$disk" 2>/dev/null
done
for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    rm -rf -- "$0"
    # Cgroups of pods are named as the folder; their files are the kernel's.
    for cgroup in /sys/fs/cgroup/"${0##*/}" /sys/fs/cgroup/*/"${0##*/}"; do
        [ -d "$cgroup" ] && find "$cgroup" -depth -type d -exec rmdir {} \;
    done
    left=
    for path in "$0" /sys/fs/cgroup/"${0##*/}" /sys/fs/cgroup/*/"${0##*/}"; do
        [ -e "$path" ] && left=yes
    done
    [ "$left" ] || exit 0
    sleep 0.2
done
"#;

/// One folder per process, with everything in it. `Drop` removes what each server used; the
/// watchdog removes the rest after a `kill -9`, Ctrl-C or when servers live in a `static`.
struct Root {
    path: PathBuf,
    /// Held for its standard input, which the kernel closes when this process ends.
    _watchdog: Child,
}

static ROOT: LazyLock<io::Result<Root>> = LazyLock::new(|| {
    let prefix = format!("mongomirror-testbed-{}-", std::process::id());
    let path = tempfile::Builder::new().prefix(&prefix).tempdir()?.keep();
    let watchdog = Command::new("/bin/sh")
        .args(["-c", WATCHDOG])
        .arg(&path)
        .stdin(Stdio::piped())
        // Whoever waits for the end of our output must not wait for the watchdog.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Ctrl-C in a terminal goes to the whole group: the watchdog must survive it.
        .process_group(0)
        .spawn()?;
    Ok(Root {
        path,
        _watchdog: watchdog,
    })
});

/// The folder that holds every temporary folder of this process.
pub fn scratch_root() -> Result<&'static Path> {
    match &*ROOT {
        Ok(root) => Ok(&root.path),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string()))
            .context(|| "make a temporary folder".into()),
    }
}

/// Makes a temporary folder whose name begins with `prefix`.
pub(crate) fn folder(prefix: &str) -> Result<TempDir> {
    let root = scratch_root()?;
    tempfile::Builder::new()
        .prefix(&format!("{prefix}-"))
        .tempdir_in(root)
        .context(|| format!("make a temporary folder in {}", root.display()))
}
