//! The cache of servers, shared by every test process of this user.

use std::{
    env, fs,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    error::{Context, Error, Result},
    progress::{Reminder, say},
};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The cache folder: `$XDG_CACHE_HOME/mongomirror-testbed`, else `~/.cache/mongomirror-testbed`.
pub fn cache_folder() -> Result<PathBuf> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            // The XDG specification: a relative path is to be ignored.
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("mongomirror-testbed"))
        .ok_or_else(|| Error::Unusable {
            what: "the cache of servers".into(),
            hint: "set HOME or XDG_CACHE_HOME".into(),
        })
}

/// The path in the cache of `tool` (a name with its version), or of a file in it. If it is not
/// there, `make` makes it at the path it is given. Of several processes only one does so, and
/// nobody ever sees a half-made item.
pub(crate) fn item(
    tool: &str,
    file: Option<&str>,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    item_in(&cache_folder()?, tool, file, make)
}

fn item_in(
    cache: &Path,
    tool: &str,
    file: Option<&str>,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let path = match file {
        Some(file) => cache.join(tool).join(file),
        None => cache.join(tool),
    };
    if path.exists() {
        return Ok(path);
    }
    let parent = path.parent().unwrap_or(cache);
    fs::create_dir_all(parent).context(|| format!("make {}", parent.display()))?;
    let _lock = lock(cache, tool)?;
    if path.exists() {
        return Ok(path);
    }
    let unfinished = format!(".unfinished-{tool}-");
    // Whoever made these held the lock, which is ours now: they died on the way.
    remove_stale(cache, &unfinished);
    let work = tempfile::Builder::new()
        .prefix(&unfinished)
        .tempdir_in(cache)
        .context(|| format!("make a folder in {}", cache.display()))?;
    let made = work.path().join(file.unwrap_or(tool));
    make(&made)?;
    fs::rename(&made, &path).context(|| format!("make {}", path.display()))?;
    Ok(path)
}

fn lock(cache: &Path, tool: &str) -> Result<File> {
    let path = cache.join(format!(".{tool}.lock"));
    let file = File::create(&path).context(|| format!("make {}", path.display()))?;
    let mut reminder = Reminder::new(format!("waiting for another process to bring {tool}"));
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    say(&format!(
                        "another process is bringing {tool}: waiting for it"
                    ));
                    told = true;
                }
                reminder.tick();
                thread::sleep(LOOK_EVERY);
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context(|| format!("lock {}", path.display()));
            }
        }
    }
}

fn remove_stale(cache: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            // Only tidying up: what stays costs space, nothing else.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn broken() -> Error {
        Error::NotRunning("it".into())
    }

    #[test]
    fn of_several_who_want_an_item_one_makes_it() {
        let cache = tempfile::tempdir().unwrap();
        let made = AtomicUsize::new(0);
        let want = || {
            let path = item_in(cache.path(), "tool-1", Some("program"), |path| {
                made.fetch_add(1, Ordering::SeqCst);
                fs::write(path, "half").unwrap();
                thread::sleep(Duration::from_millis(50));
                fs::write(path, "whole").unwrap();
                Ok(())
            });
            assert_eq!(fs::read_to_string(path.unwrap()).unwrap(), "whole");
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(want);
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn what_failed_half_way_is_not_in_the_cache_and_is_made_anew() {
        let cache = tempfile::tempdir().unwrap();
        let failed = item_in(cache.path(), "tool-1", None, |path| {
            fs::create_dir(path).unwrap();
            Err(broken())
        });
        assert!(failed.is_err());
        assert!(!cache.path().join("tool-1").exists());
        let path = item_in(cache.path(), "tool-1", None, |path| {
            fs::create_dir(path).context(|| "make it".into())
        });
        assert!(path.unwrap().is_dir());
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let cache = tempfile::tempdir().unwrap();
        let left = cache.path().join(".unfinished-tool-1-x");
        let others = cache.path().join(".unfinished-tool-2-x");
        fs::create_dir(&left).unwrap();
        fs::create_dir(&others).unwrap();
        item_in(cache.path(), "tool-1", Some("program"), |path| {
            fs::write(path, "").context(|| "make it".into())
        })
        .unwrap();
        assert!(!left.exists());
        assert!(others.exists());
    }
}
