//! Notices that a file changed, however it is changed: written in place, replaced by another one
//! as editors do, or moved below a symbolic link as Kubernetes does.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the file is read without being told: not every file system tells.
const POLL: Duration = Duration::from_secs(2);
/// A writer gets this long to finish.
const SETTLE: Duration = Duration::from_millis(100);

/// Follows one file.
pub struct Follower {
    path: PathBuf,
    /// What it held last.
    text: String,
    /// Why it could not be read last, so that it is told once.
    trouble: Option<io::ErrorKind>,
    events: mpsc::Receiver<()>,
    poll: Interval,
    /// Sends the events as long as it lives.
    _watcher: Option<RecommendedWatcher>,
}

impl Follower {
    /// Follows a file that holds `text` now.
    pub fn new(path: &Path, text: String) -> Self {
        let (send, events) = mpsc::channel(1);
        let watcher = watch(path, send)
            .inspect_err(|error| {
                tracing::debug!(%error, "the file is not watched, only read every few seconds");
            })
            .ok();
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            path: path.to_owned(),
            text,
            trouble: None,
            events,
            poll,
            _watcher: watcher,
        }
    }

    /// Waits until the file holds something new and returns that.
    ///
    /// # Errors
    /// Once, if the file cannot be read; it is followed on.
    ///
    /// # Cancel-Safety
    /// Cancellation-safe: what was read counts as known only when it is returned.
    pub async fn changed(&mut self) -> io::Result<String> {
        loop {
            tokio::select! {
                Some(()) = self.events.recv() => tokio::time::sleep(SETTLE).await,
                _ = self.poll.tick() => {}
            }
            match tokio::fs::read_to_string(&self.path).await {
                Ok(text) => {
                    self.trouble = None;
                    if text != self.text {
                        self.text.clone_from(&text);
                        return Ok(text);
                    }
                }
                // Between the two steps of a replacement there is no file.
                Err(error) if self.trouble != Some(error.kind()) => {
                    self.trouble = Some(error.kind());
                    return Err(error);
                }
                Err(_) => {}
            }
        }
    }
}

/// Watches the folder: a file that is replaced is another file, and a watch on the first one would
/// stay with that.
fn watch(path: &Path, send: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file is an event, too.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // A full channel holds an event that is not yet looked at.
            let _ = send.try_send(());
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(follower: &mut Follower) -> io::Result<String> {
        tokio::time::timeout(Duration::from_secs(10), follower.changed())
            .await
            .expect("the change is noticed")
    }

    #[tokio::test]
    async fn writing_replacing_and_removing_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mirrors.yaml");
        std::fs::write(&path, "one").unwrap();
        let mut follower = Follower::new(&path, "one".into());

        std::fs::write(&path, "two").unwrap();
        assert_eq!(next(&mut follower).await.unwrap(), "two");

        let other = folder.path().join(".mirrors.yaml.swp");
        std::fs::write(&other, "three").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(next(&mut follower).await.unwrap(), "three");

        std::fs::remove_file(&path).unwrap();
        let error = next(&mut follower).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);

        std::fs::write(&path, "four").unwrap();
        assert_eq!(next(&mut follower).await.unwrap(), "four");
    }

    #[tokio::test]
    async fn the_same_content_is_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mirrors.yaml");
        std::fs::write(&path, "one").unwrap();
        let mut follower = Follower::new(&path, "one".into());
        std::fs::write(&path, "one").unwrap();
        let wait = tokio::time::timeout(Duration::from_millis(2500), follower.changed());
        assert!(wait.await.is_err());
    }
}
