//! Live lines on a terminal: one for each mirror, a bar while it copies.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::engine::headroom::Headroom;
use crate::engine::progress::{InitialSync, Phase};
use crate::runner::registry::{MirrorKey, Snapshot};
use crate::runner::words;

/// The live lines.
pub struct Display {
    live: MultiProgress,
    lines: BTreeMap<MirrorKey, Line>,
}

struct Line {
    bar: ProgressBar,
    is_copying: bool,
}

impl Display {
    /// Draws into `live`.
    pub fn new(live: MultiProgress) -> Self {
        Self {
            live,
            lines: BTreeMap::new(),
        }
    }

    /// Shows the mirrors as they are now.
    pub fn show(&mut self, snapshots: &[Snapshot]) {
        self.lines.retain(|key, line| {
            let stays = snapshots.iter().any(|snapshot| snapshot.key == *key);
            if !stays {
                line.bar.finish_and_clear();
                self.live.remove(&line.bar);
            }
            stays
        });
        for snapshot in snapshots {
            let line = self.lines.entry(snapshot.key.clone()).or_insert_with(|| {
                let bar = self.live.add(ProgressBar::no_length());
                bar.set_style(plain());
                Line {
                    bar,
                    is_copying: false,
                }
            });
            line.show(snapshot);
        }
    }

    /// Takes the lines away.
    pub fn clear(&self) {
        for line in self.lines.values() {
            line.bar.finish_and_clear();
        }
    }
}

impl Line {
    fn show(&mut self, snapshot: &Snapshot) {
        let copy = snapshot
            .progress
            .initial_sync
            .as_ref()
            .filter(|_| snapshot.phase() == Phase::Copying && snapshot.problem.is_none());
        if self.is_copying != copy.is_some() {
            self.is_copying = copy.is_some();
            self.bar
                .set_style(if self.is_copying { bar() } else { plain() });
        }
        self.bar.set_prefix(snapshot.key.to_string());
        if let Some(copy) = copy {
            self.bar.set_length(copy.bytes_total.max(copy.bytes_copied));
            self.bar.set_position(copy.bytes_copied);
            self.bar.set_message(copy_text(copy));
        } else {
            self.bar.set_message(text(snapshot));
        }
    }
}

fn copy_text(copy: &InitialSync) -> String {
    format!(
        "{} documents, {} of {} collections",
        copy.documents_copied, copy.collections_done, copy.collections_total
    )
}

fn text(snapshot: &Snapshot) -> String {
    let phase = snapshot.phase();
    if phase == Phase::Mirroring && snapshot.problem.is_none() && snapshot.connected() {
        let progress = &snapshot.progress;
        let consistent_at = progress.consistent_at.map_or_else(String::new, |time| {
            format!(", exact as of {}", words::rfc3339(time.as_system_time()))
        });
        let is_low = |headroom: &Headroom| headroom.left().is_some_and(|left| left.is_low());
        let low = match snapshot.headroom() {
            Some(headroom) if progress.headroom.as_ref().is_some_and(is_low) => {
                format!(". {headroom}")
            }
            _ => String::new(),
        };
        return format!(
            "Mirroring {} to {}: lag {}{consistent_at}, {} events applied",
            snapshot.source_database,
            snapshot.target_database,
            snapshot.lag(),
            progress.totals.events_applied,
        ) + &low;
    }
    format!("{phase:?}: {}", snapshot.message())
}

fn plain() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:.bold} {wide_msg}")
        .expect("the template is a constant and was tried")
}

fn bar() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix:.bold} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} \
         {eta} {wide_msg}",
    )
    .expect("the template is a constant and was tried")
    .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use indicatif::ProgressDrawTarget;

    use super::*;
    use crate::runner::registry::tests::{listing, mirroring};

    fn line(phase: Phase) -> ProgressBar {
        let now = SystemTime::now();
        let mut progress = mirroring(now);
        progress.phase = phase;
        progress.initial_sync = Some(InitialSync {
            documents_copied: 42,
            bytes_total: 4 << 20,
            bytes_copied: 1 << 20,
            collections_total: 7,
            ..InitialSync::default()
        });
        let key = MirrorKey::new("shop", "orders");
        let snapshot = Snapshot::new(key.clone(), listing(progress), now);
        let nowhere = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let mut display = Display::new(nowhere);
        display.show(std::slice::from_ref(&snapshot));
        display.lines[&key].bar.clone()
    }

    #[test]
    fn a_copy_is_a_bar_and_a_mirror_is_a_line() {
        let copying = line(Phase::Copying);
        assert_eq!(copying.prefix(), "shop/orders");
        assert_eq!(copying.length(), Some(4 << 20));
        assert_eq!(copying.position(), 1 << 20);
        assert_eq!(copying.message(), "42 documents, 0 of 7 collections");
        assert_eq!(
            line(Phase::Mirroring).message(),
            "Mirroring orders to orders_backup: lag 38ms, 0 events applied"
        );
    }
}
