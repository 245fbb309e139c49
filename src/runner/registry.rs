//! Which mirrors this process has, and what anyone may see of them.
//!
//! Filled by whoever runs mirrors (the operator, `run`), read by status, HTTP, metrics and the
//! terminal: all of them tell the same thing because all of them read a [`Snapshot`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};

use super::words;
use crate::engine::headroom::{Headroom, Trend};
use crate::engine::progress::{InitialSync, Phase, Problem, Progress};
use crate::engine::quarantine::Quarantined;
use crate::engine::request::Request;

/// A mirror that follows its source measures its lag every second or so. What was measured longer
/// ago than this is no longer known.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// Which mirror: `<namespace>/<name>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MirrorKey {
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's name.
    pub name: String,
}

impl MirrorKey {
    /// Of a resource's namespace and name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for MirrorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a mirror's progress comes from.
#[derive(Clone, Debug)]
pub enum Feed {
    /// The running mirror.
    Live(watch::Receiver<Progress>),
    /// No mirror runs; this is what there is to say.
    Still(Box<Progress>),
}

/// One mirror's entry.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Whether it is switched on.
    pub enabled: bool,
    /// The source database's name.
    pub source_database: String,
    /// The target database's name.
    pub target_database: String,
    /// What is wrong outside of the engine.
    pub problem: Option<Problem>,
    /// Its progress.
    pub feed: Feed,
    /// Where to ask it for something, while it runs.
    pub requests: Option<mpsc::Sender<Request>>,
}

/// All mirrors of this process. Clones share one registry.
#[derive(Clone, Default, Debug)]
pub struct Registry {
    // Never held across an await; a panic while it is held cannot leave a listing half written.
    listings: Arc<RwLock<BTreeMap<MirrorKey, Listing>>>,
}

impl Registry {
    /// Adds or replaces a mirror's entry.
    pub fn set(&self, key: MirrorKey, listing: Listing) {
        self.listings
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, listing);
    }

    /// Takes a mirror's entry out.
    pub fn remove(&self, key: &MirrorKey) {
        self.listings
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }

    /// Takes all entries out.
    pub fn clear(&self) {
        self.listings
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Where to ask a mirror for something.
    ///
    /// # Errors
    /// If it does not run; whether it is known.
    pub fn requests(&self, key: &MirrorKey) -> Result<mpsc::Sender<Request>, bool> {
        let listings = self.listings.read().unwrap_or_else(PoisonError::into_inner);
        let listing = listings.get(key).ok_or(false)?;
        listing.requests.clone().ok_or(true)
    }

    /// What is to be seen of one mirror now.
    pub fn snapshot(&self, key: &MirrorKey) -> Option<Snapshot> {
        let listing = self
            .listings
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()?;
        Some(Snapshot::new(key.clone(), listing, SystemTime::now()))
    }

    /// What is to be seen of every mirror now, sorted by namespace and name.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        let now = SystemTime::now();
        let listings = self
            .listings
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        listings
            .into_iter()
            .map(|(key, listing)| Snapshot::new(key, listing, now))
            .collect()
    }
}

/// What is to be seen of one mirror at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Snapshot {
    /// Which mirror.
    pub key: MirrorKey,
    /// Whether it is switched on.
    pub enabled: bool,
    /// The source database's name.
    pub source_database: String,
    /// The target database's name.
    pub target_database: String,
    /// What is wrong, inside or outside of the engine.
    pub problem: Option<Problem>,
    /// The progress; its lag and links are only what is still known.
    pub progress: Progress,
    /// Whether the mirror should measure itself but has not for too long.
    pub stale: bool,
    /// Whether something runs for it that can change what is shown: the mirror, or while it is paused
    /// the watch over its source's oplog.
    pub live: bool,
}

impl Snapshot {
    /// Takes a snapshot.
    pub fn new(key: MirrorKey, listing: Listing, now: SystemTime) -> Self {
        let (live, mut progress) = match listing.feed {
            Feed::Live(progress) => (true, progress.borrow().clone()),
            Feed::Still(progress) => (false, *progress),
        };
        let works = matches!(
            progress.phase,
            Phase::Copying | Phase::CatchingUp | Phase::Mirroring
        );
        // A clock that was set back makes a measurement look as if it came from the future; it is
        // not old then.
        let stale = works
            && progress
                .measured_at
                .and_then(|measured| now.duration_since(measured).ok())
                .is_some_and(|age| age > STALE_AFTER);
        if stale {
            progress.lag = None;
        }
        Self {
            key,
            enabled: listing.enabled,
            source_database: listing.source_database,
            target_database: listing.target_database,
            problem: listing.problem.or_else(|| progress.problem.clone()),
            progress,
            stale,
            live,
        }
    }

    /// Where the mirror is in its life.
    pub fn phase(&self) -> Phase {
        self.progress.phase
    }

    /// Whether both sides answer, as far as is known.
    pub fn connected(&self) -> bool {
        !self.stale && self.progress.connected()
    }

    /// Neither a copy nor the stream has shown that there is anything.
    fn has_seen_nothing(&self) -> bool {
        let copied = self.progress.initial_sync.as_ref();
        copied.is_some_and(|copied| copied.collections_total == 0)
            && self.progress.totals.events_applied == 0
            && self.progress.totals.commands == 0
    }

    /// When a mirror that could not go on is tried again.
    pub fn next_attempt(&self) -> Option<SystemTime> {
        // The engine tries again also if something outside of it is wrong, too.
        let all = [&self.problem, &self.progress.problem];
        all.into_iter().flatten().find_map(|it| it.next_attempt)
    }

    /// The lag for people, never empty.
    pub fn lag(&self) -> String {
        self.progress
            .lag
            .map_or_else(|| "unknown".to_owned(), words::duration)
    }

    /// The lag in milliseconds, if it is known.
    pub fn lag_milliseconds(&self) -> Option<u64> {
        self.progress
            .lag
            .map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX))
    }

    /// How long the source's oplog still holds the position, in a sentence, if that is known.
    pub fn headroom(&self) -> Option<String> {
        let Some(Headroom::Measured { left, trend, .. }) = &self.progress.headroom else {
            return None;
        };
        let time = words::rough(left.time);
        let advice = if left.is_low() {
            ": let the mirror go on, or give the source a larger oplog, before that is used up"
        } else {
            ""
        };
        let trend = match trend {
            Trend::Shrinking { .. } => format!(" ({})", words::trend(*trend)),
            Trend::Unknown | Trend::Steady => String::new(),
        };
        Some(format!(
            "The source's oplog holds what is missing for {time} more{trend}{advice}."
        ))
    }

    /// What the mirror does, or what is wrong and what to do about it.
    pub fn message(&self) -> String {
        if let Some(problem) = &self.problem {
            return problem.message.clone();
        }
        if self.stale {
            return format!(
                "Nothing was measured for more than {}; what is shown is old.",
                words::duration(STALE_AFTER)
            );
        }
        let progress = &self.progress;
        for (side, link) in [("source", &progress.source), ("target", &progress.target)] {
            if link.connected == Some(false) {
                return format!("No connection to the {side}: {}", link.message);
            }
        }
        match self.phase() {
            Phase::Pending => "Connecting and looking at both databases.".to_owned(),
            Phase::Copying => progress
                .initial_sync
                .as_ref()
                .map_or_else(|| "Planning the copy.".to_owned(), copying),
            Phase::CatchingUp => {
                "Everything is copied; applying the changes made meanwhile.".to_owned()
            }
            Phase::Mirroring if !progress.quarantine.is_empty() => refused(&progress.quarantine),
            Phase::Mirroring => {
                let exact = "The target is exactly the source as of the time in consistentAt.";
                match self.has_seen_nothing() {
                    true => format!(
                        "{exact} The source has no collection that is selected: see that \
                         spec.source.database, \"{}\", and spec.collections are right.",
                        self.source_database
                    ),
                    false => exact.to_owned(),
                }
            }
            Phase::Paused => match self.headroom() {
                Some(headroom) => format!("Paused. Set spec.enabled to true to go on. {headroom}"),
                None => "Paused. Set spec.enabled to true to go on.".to_owned(),
            },
            Phase::Failed => "Stopped; the log says why.".to_owned(),
        }
    }
}

/// What is wrong with a target that refuses documents, and what to do about it.
pub fn refused(documents: &[Quarantined]) -> String {
    let Some(first) = documents.first() else {
        return String::new();
    };
    let count = words::count(documents.len() as u64, "document", "documents");
    format!(
        "The target refuses {count} of the source ({}: {}); everything else is mirrored. They are \
         tried again and again: remove the cause, as an index that only the target has.",
        first.collection, first.reason
    )
}

fn copying(sync: &InitialSync) -> String {
    format!(
        "Copying: {}%, {} of {}, {} of {} collections done.",
        sync.percent(),
        words::bytes(sync.bytes_copied),
        words::bytes(sync.bytes_total),
        sync.collections_done,
        sync.collections_total,
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::reason::Reason;

    /// A mirror that follows its source without trouble.
    pub(crate) fn mirroring(now: SystemTime) -> Progress {
        let mut progress = Progress {
            phase: Phase::Mirroring,
            lag: Some(Duration::from_millis(38)),
            measured_at: Some(now),
            ..Progress::default()
        };
        progress.source.set(true, "");
        progress.target.set(true, "");
        progress
    }

    pub(crate) fn listing(progress: Progress) -> Listing {
        Listing {
            enabled: true,
            source_database: "orders".into(),
            target_database: "orders_backup".into(),
            problem: None,
            feed: Feed::Still(Box::new(progress)),
            requests: None,
        }
    }

    fn snapshot(progress: Progress, now: SystemTime) -> Snapshot {
        Snapshot::new(MirrorKey::new("n", "m"), listing(progress), now)
    }

    #[test]
    fn an_old_measurement_is_not_shown_as_a_fresh_one() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let fresh = snapshot(mirroring(then), then + Duration::from_secs(29));
        assert_eq!((fresh.lag().as_str(), fresh.connected()), ("38ms", true));

        let old = snapshot(mirroring(then), then + Duration::from_secs(31));
        assert_eq!((old.lag().as_str(), old.connected()), ("unknown", false));
        assert!(old.message().contains("30s"), "{}", old.message());

        let from_the_future = snapshot(mirroring(then), then - Duration::from_secs(9));
        assert!(from_the_future.connected());
    }

    #[test]
    fn a_problem_outside_of_the_engine_comes_first() {
        let problem = |message: &str| Problem {
            reason: Reason::SourceError,
            message: message.into(),
            needs_human: true,
            since: SystemTime::UNIX_EPOCH,
            next_attempt: None,
        };
        let progress = Progress {
            problem: Some(problem("inside")),
            ..Progress::default()
        };
        let mut listing = listing(progress);
        let key = MirrorKey::new("n", "m");
        let inside = Snapshot::new(key.clone(), listing.clone(), SystemTime::now());
        assert_eq!(inside.message(), "inside");
        listing.problem = Some(problem("outside"));
        let outside = Snapshot::new(key, listing, SystemTime::now());
        assert_eq!(outside.message(), "outside");
    }

    #[test]
    fn a_lost_connection_is_told() {
        let now = SystemTime::now();
        let mut progress = mirroring(now);
        progress.target.set(false, "h:27017 refused the connection");
        let lost = snapshot(progress, now);
        assert!(!lost.connected());
        assert_eq!(
            lost.message(),
            "No connection to the target: h:27017 refused the connection"
        );
    }

    #[test]
    fn mirrors_are_listed_in_order_and_shared_between_clones() {
        let registry = Registry::default();
        for name in ["b", "a"] {
            registry
                .clone()
                .set(MirrorKey::new("n", name), listing(Progress::default()));
        }
        let names: Vec<_> = registry
            .snapshots()
            .into_iter()
            .map(|snapshot| snapshot.key.name)
            .collect();
        assert_eq!(names, ["a", "b"]);
        registry.remove(&MirrorKey::new("n", "a"));
        assert!(registry.snapshot(&MirrorKey::new("n", "a")).is_none());
    }
}
