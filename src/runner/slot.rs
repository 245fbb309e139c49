//! The place of one mirror in this process: brings what runs in line with what is asked for.

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::MirrorHandle;
use super::decide::{Current, Decision, Desired, Why, decide};
use super::registry::{Feed, Listing, MirrorKey, Registry};
use crate::engine::config::MirrorConfig;
use crate::engine::connection::shared::Clients;
use crate::engine::headroom;
use crate::engine::progress::{Link, Phase, Problem, Progress};
use crate::resource::MongoMirrorSpec;
use crate::resource::validation::{ValidSpec, target_database};

/// One mirror's place. At most one mirror runs in it.
///
/// Dropping it asks the mirror to stop but does not wait; [`Slot::close`] does.
pub struct Slot {
    key: MirrorKey,
    registry: Registry,
    clients: Clients,
    running: Option<Running>,
    /// What the last mirror in this place came to.
    last: Progress,
    /// Under which names that was.
    names: Option<Names>,
    /// What the last mirror in this place was started with, or would be if it was not paused.
    config: Option<MirrorConfig>,
    /// Watches over the source's oplog while the mirror is paused.
    watch: Option<Watch>,
}

/// Measures how long the position of a paused mirror is still held.
struct Watch {
    config: MirrorConfig,
    progress: watch::Receiver<Progress>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    fn start(config: MirrorConfig, clients: Clients, last: Progress) -> Self {
        let (publish, progress) = watch::channel(last);
        let task = headroom::watch_over(config.clone(), clients, None, publish);
        Self {
            config,
            progress,
            _task: task,
        }
    }
}

struct Running {
    spec: ValidSpec,
    handle: MirrorHandle,
}

/// The names under which a mirror is listed.
#[derive(Clone, Debug)]
pub struct Names {
    /// Whether it is switched on.
    pub enabled: bool,
    /// The source database's name.
    pub source_database: String,
    /// The target database's name.
    pub target_database: String,
}

/// Of any spec, be it valid or not.
impl From<&MongoMirrorSpec> for Names {
    fn from(spec: &MongoMirrorSpec) -> Self {
        Self {
            enabled: spec.enabled,
            source_database: spec.source.database.clone(),
            target_database: target_database(spec),
        }
    }
}

impl Slot {
    /// An empty place.
    pub fn new(key: MirrorKey, registry: Registry, clients: Clients) -> Self {
        Self {
            key,
            registry,
            clients,
            running: None,
            last: Progress::default(),
            names: None,
            config: None,
            watch: None,
        }
    }

    /// Which mirror this place is for.
    pub fn key(&self) -> &MirrorKey {
        &self.key
    }

    /// The running mirror's progress.
    pub fn progress(&self) -> Option<watch::Receiver<Progress>> {
        self.running
            .as_ref()
            .map(|running| running.handle.progress())
    }

    /// What is to be seen of the mirror, running or paused, as far as it can change.
    pub fn changes(&self) -> Option<watch::Receiver<Progress>> {
        let paused = self.watch.as_ref().map(|watch| watch.progress.clone());
        self.progress().or(paused)
    }

    /// Starts, replaces, stops or leaves the mirror, and lists the outcome in the registry under
    /// `names`. Returns why.
    ///
    /// # Cancel-Safety
    /// Not cancellation-safe while a mirror is being stopped: it would stop unobserved.
    pub async fn settle(&mut self, desired: Desired, names: Names) -> Why {
        let current = self.running.as_ref().map(|running| Current {
            spec: &running.spec,
            config: running.handle.config(),
        });
        let why = match decide(&desired, current) {
            Decision::Keep(why) => why,
            Decision::Start(why) => {
                tracing::info!(mirror = %self.key, %why, "starting the mirror");
                why
            }
            Decision::Replace(why) => {
                tracing::info!(mirror = %self.key, %why, "restarting the mirror");
                self.stop().await;
                why
            }
            Decision::Stop(why) => {
                tracing::info!(mirror = %self.key, %why, "stopping the mirror");
                self.stop().await;
                why
            }
        };
        match &desired {
            Desired::Running { spec, config } => {
                let spec = spec.clone();
                match &mut self.running {
                    // The same mirror may be asked for in other words, as by another Secret with
                    // the same content.
                    Some(running) => running.spec = spec,
                    None => {
                        let handle = MirrorHandle::start_among((**config).clone(), &self.clients);
                        self.config = Some((**config).clone());
                        self.running = Some(Running { spec, handle });
                    }
                }
            }
            Desired::Paused {
                config: Some(config),
                ..
            } => self.config = Some((**config).clone()),
            _ => {}
        }
        self.list(desired, names);
        why
    }

    /// What the last mirror in this place was started with, or would be if it was not paused: it
    /// may have run in an earlier process.
    pub fn config(&self) -> Option<&MirrorConfig> {
        self.config.as_ref()
    }

    /// Stops the mirror and takes it out of the registry.
    pub async fn close(mut self) {
        self.stop().await;
        self.registry.remove(&self.key);
    }

    async fn stop(&mut self) {
        self.watch = None;
        if let Some(running) = self.running.take() {
            self.last = running.handle.stop().await;
        }
    }

    /// Stops the mirror, if one runs; it stays listed with `problem`.
    pub async fn rest(&mut self, problem: Problem) {
        self.stop().await;
        if let Some(names) = self.names.clone() {
            self.list(Desired::Refused { problem }, names);
        }
    }

    /// Watches over the oplog of a paused mirror's source, and of no other.
    fn watch_over(&mut self, paused: Option<Box<MirrorConfig>>) {
        let watched = self.watch.as_ref().map(|watch| &watch.config);
        if watched == paused.as_deref() {
            return;
        }
        let last = at_rest(self.last.clone(), Phase::Paused);
        self.watch = paused.map(|config| Watch::start(*config, self.clients.clone(), last));
    }

    fn list(&mut self, desired: Desired, names: Names) {
        let paused = match &desired {
            Desired::Paused { config, .. } => config.clone(),
            _ => None,
        };
        let (still, problem) = match desired {
            Desired::Running { .. } => (Phase::Pending, None),
            Desired::Paused { .. } => (Phase::Paused, None),
            Desired::Unavailable { spec, mut problem } => {
                if let Some(running) = &self.running {
                    problem.message += ". Meanwhile the mirror goes on with the credentials it has";
                    if spec != running.spec {
                        problem.message += ", and what was edited waits";
                    }
                }
                (phase_of(&problem), Some(problem))
            }
            Desired::Refused { problem } => (phase_of(&problem), Some(problem)),
            Desired::Absent => {
                self.registry.remove(&self.key);
                return;
            }
        };
        let is_same_pair = self.names.as_ref().is_some_and(|last| {
            last.source_database == names.source_database
                && last.target_database == names.target_database
        });
        if !is_same_pair {
            self.last = Progress::default();
        }
        self.names = Some(names.clone());
        self.watch_over(paused);
        let feed = match (&self.running, &self.watch) {
            (Some(running), _) => Feed::Live(running.handle.progress()),
            (None, Some(watch)) => Feed::Live(watch.progress.clone()),
            (None, None) => Feed::Still(Box::new(at_rest(self.last.clone(), still))),
        };
        self.registry.set(
            self.key.clone(),
            Listing {
                enabled: names.enabled,
                source_database: names.source_database,
                target_database: names.target_database,
                problem,
                feed,
                requests: self
                    .running
                    .as_ref()
                    .map(|running| running.handle.requests()),
            },
        );
    }
}

/// The phase of a mirror that this keeps from running.
fn phase_of(problem: &Problem) -> Phase {
    if problem.needs_human {
        Phase::Failed
    } else {
        Phase::Pending
    }
}

/// What is still true of a progress once its mirror has stopped.
pub fn at_rest(progress: Progress, phase: Phase) -> Progress {
    Progress {
        phase,
        source: Link::default(),
        target: Link::default(),
        lag: None,
        measured_at: None,
        problem: None,
        headroom: None,
        ..progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;
    use crate::resource::MongoMirrorSpec;
    use crate::runner::translate::{SecretValues, Secrets, desired};

    /// Nothing listens there: the mirror tries, and can be stopped at any time.
    const NOWHERE: &str = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300";

    fn key() -> MirrorKey {
        MirrorKey::new("n", "m")
    }

    async fn settle(slot: &mut Slot, yaml: &str, uri: Option<&str>) -> (Why, Phase) {
        let spec: MongoMirrorSpec = serde_saphyr::from_str(yaml).unwrap();
        let values = uri.map(|uri| SecretValues([("uri".to_owned(), uri.into())].into()));
        let secrets = Secrets::from([("a".into(), values)]);
        let desired = desired(&key(), None, &spec, Ok(secrets));
        let why = slot.settle(desired, Names::from(&spec)).await;
        let listed = slot.registry.snapshot(&key()).expect("it is listed");
        (why, listed.phase())
    }

    #[tokio::test]
    async fn a_mirror_starts_pauses_and_ends_and_is_listed_all_the_while() {
        const ON: &str = "source: {uriSecretRef: {name: a}, database: x}";
        const OFF: &str = "{enabled: false, source: {uriSecretRef: {name: a}, database: x}}";
        const WRONG: &str = "source: {uriSecretRef: {name: a}, database: admin}";
        let registry = Registry::default();
        let mut slot = Slot::new(key(), registry.clone(), Clients::default());

        let waits = settle(&mut slot, ON, None).await;
        assert_eq!(
            waits,
            (Why::Problem(Reason::SecretNotFound), Phase::Pending)
        );
        assert!(slot.progress().is_none());

        let (why, _) = settle(&mut slot, ON, Some(NOWHERE)).await;
        assert_eq!(why, Why::Wanted);
        assert!(slot.progress().is_some());

        let (why, _) = settle(&mut slot, ON, None).await;
        assert_eq!(why, Why::RunsOn(Reason::SecretNotFound));
        let message = registry.snapshot(&key()).unwrap().message();
        assert!(message.contains("goes on"), "{message}");

        let paused = settle(&mut slot, OFF, None).await;
        assert_eq!(paused, (Why::Paused, Phase::Paused));
        assert!(slot.progress().is_none());

        let wrong = settle(&mut slot, WRONG, Some(NOWHERE)).await;
        assert_eq!(
            wrong,
            (Why::Problem(Reason::SourceForbidden), Phase::Failed)
        );

        slot.close().await;
        assert!(registry.snapshot(&key()).is_none());
    }
}
