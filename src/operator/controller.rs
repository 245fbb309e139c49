//! One keeper per resource: a task that owns everything about it and brings it in line.
//!
//! A keeper takes no orders. It is nudged when its resource, one of its Secrets or its mirror
//! changed, and then looks at all of them again, in five stages:
//!
//! | stage       | asks the API server | hands on                                        |
//! |-------------|---------------------|-------------------------------------------------|
//! | dereference | yes, for Secrets    | [`Dereferenced`]: the resource and its Secrets   |
//! | validate    | no                  | [`Validated`]: what is asked for, or a problem   |
//! | decide      | no                  | what to start, stop or leave (`runner::decide`)  |
//! | act         | no                  | the registry's listing (`runner::slot`)          |
//! | report      | yes, for the status | when to come back                                |

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::OptionFuture;
use kube::core::DeserializeGuard;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::asked::{self, Asked, Wishes};
use super::backoff::{Backoff, Outage};
use super::publish::Publisher;
use super::report;
use super::secrets::{self, SecretError, SecretReader, SecretVersions};
use super::watched::Seen;
use crate::engine::connection::shared::Clients;
use crate::engine::progress::Problem;
use crate::reason::Reason;
use crate::resource::spec::DeletionPolicy;
use crate::resource::validation::target_database;
use crate::resource::{MongoMirror, MongoMirrorSpec, MongoMirrorStatus};
use crate::runner::decide::Desired;
use crate::runner::registry::{MirrorKey, Registry};
use crate::runner::slot::{Names, Slot};
use crate::runner::translate::{Secrets, desired, problem};
use crate::runner::words;
use crate::runner::{self, End};

/// Everything is looked at again after this long, should an event have been missed.
const RESYNC: Duration = Duration::from_secs(120);
/// A mirror's progress is looked at no more often than this.
const LOOK: Duration = Duration::from_millis(200);
/// And no less often than this: what was not measured for too long becomes unknown by time alone.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Whoever ends does not wait longer for an API server that is away: with a Lease there is little
/// time.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The annotation that confirms `spec.deletionPolicy: DeleteTarget`, with the database's name.
const DELETE_TARGET: &str = "mongomirror.dev/delete-target";

/// All MongoMirrors that are watched; one that cannot be read does not hide the others.
pub type Mirrors = Seen<DeserializeGuard<MongoMirror>>;

/// What all keepers share.
pub struct Context {
    /// To the API server.
    pub client: Client,
    /// Writes events.
    pub recorder: Recorder,
    /// Where mirrors are listed.
    pub registry: Registry,
    /// What mirrors of one connection string share.
    pub clients: Clients,
    /// The process is to end, and not only the leadership of this one.
    pub shutdown: CancellationToken,
    /// The resources as last seen.
    pub mirrors: Mirrors,
    /// The Secrets' metadata as last seen.
    pub secrets: SecretVersions,
    /// What becomes of the targets of resources that were deleted, as their last state says.
    pub ends: Ends,
    /// Whether the API server takes what is written.
    pub outage: Outage,
    /// Of all keepers, so many read Secrets at once.
    pub reads: Arc<Semaphore>,
    /// And so many write.
    pub writes: Arc<Semaphore>,
}

/// The uids of the resources, and the databases to be deleted with them, by mirror. Never held across an await.
#[derive(Default)]
pub struct Ends(Mutex<HashMap<MirrorKey, (String, Option<String>)>>);

impl Ends {
    /// A resource was deleted.
    pub fn note(&self, mirror: &DeserializeGuard<MongoMirror>) {
        if let Ok(mirror) = &mirror.0 {
            let key = MirrorKey::new(mirror.namespace().unwrap_or_default(), mirror.name_any());
            let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let uid = mirror.uid().unwrap_or_default();
            ends.insert(key, (uid, confirmed(mirror)));
        }
    }

    /// Of this very resource, if its deletion was told.
    fn take(&self, key: &MirrorKey, uid: &str) -> Option<Option<String>> {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, end) = ends.remove(key)?;
        (of == uid).then_some(end)
    }
}

/// Keeps one resource's mirror.
pub struct Keeper {
    context: Arc<Context>,
    slot: Slot,
    secrets: SecretReader,
    resource: Option<Identity>,
    publisher: Option<Publisher>,
    asked: Asked,
    backoff: Backoff,
}

/// Which resource a status belongs to.
#[derive(Clone, Debug)]
struct Identity {
    uid: String,
    version: String,
    generation: i64,
    wishes: Wishes,
    /// The target database that is to be deleted with the resource.
    deletes: Option<String>,
    status: MongoMirrorStatus,
}

/// A resource and the Secrets it refers to.
enum Dereferenced {
    /// There is no such resource.
    Gone,
    /// There is one that cannot be read.
    Unreadable(Identity),
    /// There is one.
    Found {
        identity: Identity,
        spec: Box<MongoMirrorSpec>,
        secrets: Result<Secrets, Problem>,
    },
}

/// What a resource asks for.
struct Validated {
    identity: Identity,
    desired: Desired,
    names: Names,
}

impl Keeper {
    /// A keeper with nothing running.
    pub fn new(context: Arc<Context>, key: MirrorKey) -> Self {
        let secrets = SecretReader::new(
            context.client.clone(),
            &key.namespace,
            context.secrets.clone(),
            context.reads.clone(),
        );
        Self {
            slot: Slot::new(key, context.registry.clone(), context.clients.clone()),
            secrets,
            context,
            resource: None,
            publisher: None,
            asked: Asked::default(),
            backoff: Backoff::away(),
        }
    }

    /// Keeps the mirror until its resource is gone or `stop` is asked for; then stops the mirror
    /// and returns.
    pub async fn run(mut self, nudge: Arc<Notify>, stop: CancellationToken) {
        let mut reconcile_at = Instant::now();
        let mut turn = None;
        loop {
            if reconcile_at <= Instant::now() {
                // Whoever does something else must not stand in the others' way.
                turn = None;
                let wait = match self.reconcile(&stop).await {
                    Ok(Found::Gone) => {
                        let key = self.slot.key().clone();
                        tokio::select! {
                            () = stop.cancelled() => tracing::warn!(
                                mirror = %key,
                                "the operator ends before the target was left as it should be: see \
                                 docs/troubleshooting.md"
                            ),
                            () = self.end() => {}
                        }
                        return;
                    }
                    Ok(Found::Resource) => {
                        self.backoff.succeeded();
                        RESYNC.mul_f64(rand::random_range(0.75..=1.25))
                    }
                    Err(error) => {
                        tracing::warn!(
                            mirror = %self.slot.key(),
                            cause = words::root_cause(&error),
                            "{error}; it will be tried again"
                        );
                        self.backoff.failed()
                    }
                };
                reconcile_at = Instant::now() + wait;
            }
            let now = Instant::now();
            let due = self.due(now);
            // Whoever waits for a turn keeps the place while the mirror moves on.
            if due.is_some_and(|due| due <= now) {
                let writes = &self.context.writes;
                turn.get_or_insert_with(|| Box::pin(writes.clone().acquire_owned()));
            } else {
                turn = None;
            }
            let look_at = due.filter(|due| *due > now).unwrap_or(now + LOOK_AGAIN);
            let look_at = look_at.min(now + LOOK_AGAIN).min(reconcile_at);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = nudge.notified() => reconcile_at = Instant::now(),
                _permit = OptionFuture::from(turn.as_mut()), if turn.is_some() => {
                    turn = None;
                    // The API server may be slow to answer, and leadership ends without it.
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = self.report() => {}
                    }
                }
                () = self.next_progress() => {}
                () = tokio::time::sleep_until(look_at) => {}
            }
        }
        drop(turn);
        self.retire().await;
    }

    /// Looks at everything and brings the mirror in line.
    async fn reconcile(&mut self, stop: &CancellationToken) -> Result<Found, SecretError> {
        let dereferenced = tokio::select! {
            () = stop.cancelled() => return Ok(Found::Resource),
            dereferenced = self.dereference() => dereferenced?,
        };
        let Some(validated) = validated(self.slot.key(), dereferenced) else {
            return Ok(Found::Gone);
        };
        let Validated {
            identity,
            desired,
            names,
        } = validated;
        // Deciding and acting.
        let why = self.slot.settle(desired, names).await;
        tracing::debug!(mirror = %self.slot.key(), %why, "settled");
        self.resource = Some(identity);
        Ok(Found::Resource)
    }

    /// Stage 1: the resource and the Secrets it refers to.
    async fn dereference(&mut self) -> Result<Dereferenced, SecretError> {
        let Some(object) = self.context.mirrors.get(&reference(self.slot.key())) else {
            return Ok(Dereferenced::Gone);
        };
        let meta = object.meta();
        let identity = Identity {
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            wishes: asked::wishes(meta.annotations.as_ref()),
            deletes: object.0.as_ref().ok().and_then(confirmed),
            status: object
                .0
                .as_ref()
                .ok()
                .and_then(|mirror| mirror.status.clone())
                .unwrap_or_default(),
        };
        let Ok(mirror) = &object.0 else {
            return Ok(Dereferenced::Unreadable(identity));
        };
        let secrets = match self.secrets.read(secrets::names(&mirror.spec)).await {
            Ok(secrets) => Ok(secrets),
            // Without them only the source's oplog cannot be watched.
            Err(_) if !mirror.spec.enabled => Ok(Default::default()),
            Err(error) if error.is_transient() => return Err(error),
            // Nobody tells of rights that are given.
            Err(error) => Err(Problem {
                next_attempt: Some(SystemTime::now() + RESYNC),
                ..problem(Reason::SecretForbidden, true, &error)
            }),
        };
        Ok(Dereferenced::Found {
            identity,
            spec: Box::new(mirror.spec.clone()),
            secrets,
        })
    }

    /// What the status should say now, and who writes it.
    fn status(&mut self) -> Option<(&mut Publisher, MongoMirrorStatus)> {
        let resource = self.resource.as_ref()?;
        let snapshot = self.context.registry.snapshot(self.slot.key())?;
        // The same name may meanwhile belong to another resource, with a status of its own.
        let before = self.publisher.take();
        let before = before.filter(|publisher| publisher.uid() == resource.uid);
        let publisher = self.publisher.insert(before.unwrap_or_else(|| {
            Publisher::new(
                Api::namespaced(self.context.client.clone(), &self.slot.key().namespace),
                self.context.recorder.clone(),
                self.slot.key(),
                resource.uid.clone(),
                resource.version.clone(),
                resource.status.clone(),
            )
        }));
        if let Some(seen) = self.context.mirrors.get(&reference(self.slot.key())) {
            publisher.saw(&seen);
        }
        let mirror = self.context.registry.requests(self.slot.key()).ok();
        let written = publisher.written();
        let requests = self.asked.attend(
            &resource.wishes,
            &written.requests,
            mirror.as_ref(),
            Instant::now(),
        );
        let now = SystemTime::now();
        let status = report::status(&snapshot, resource.generation, written, requests, now);
        Some((publisher, status))
    }

    /// Stage 5: writes the status if there is something to tell, as it is by now.
    async fn report(&mut self) {
        let context = self.context.clone();
        if let Some((publisher, status)) = self.status() {
            publisher.publish(status, &context.outage).await;
        }
    }

    /// Writes what is to be written last, and tries again for a moment if the API server is busy.
    async fn report_in_turn(&mut self) {
        let mut failed = None;
        loop {
            {
                let writes = self.context.writes.clone();
                let _turn = writes.acquire_owned().await;
                self.report().await;
            }
            let now = Instant::now();
            let Some(due) = self.due(now) else { return };
            let failed = *failed.get_or_insert(now);
            // What was refused would be refused again.
            if !self.context.outage.is_on() || due > failed + LAST_WORD {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }

    /// When there is something to tell.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        let (publisher, status) = self.status()?;
        publisher.due(&status, now)
    }

    /// The resource is gone: ends the mirror for good. Nobody waits for it, and it takes a bounded
    /// time; the same resource applied again is looked at when it is over.
    async fn end(self) {
        let config = self.slot.config().cloned();
        // A watch that was lost tells of no deletion; what was last seen decides then.
        let deletes = self.resource.and_then(|resource| {
            let told = self.context.ends.take(self.slot.key(), &resource.uid);
            told.unwrap_or(resource.deletes)
        });
        self.slot.close().await;
        if let Some(config) = config {
            // What was mirrored last may be another database than what the spec says now.
            let end = match deletes {
                Some(name) if name == config.target.database => End::Delete,
                _ => End::Arm,
            };
            runner::finish(config, end).await;
        }
    }

    /// The operator ends: stops the mirror and says so, so that no status looks alive that is not.
    /// If leadership is lost, that is for the next leader to say.
    async fn retire(mut self) {
        if self.slot.progress().is_some() && self.context.shutdown.is_cancelled() {
            self.slot
                .rest(Problem {
                    reason: Reason::OperatorStopped,
                    message: "The operator was stopped. The mirror goes on from its checkpoint as \
                              soon as the operator runs again."
                        .to_owned(),
                    needs_human: false,
                    since: SystemTime::now(),
                    next_attempt: None,
                })
                .await;
            if let Some(publisher) = &mut self.publisher {
                publisher.insist();
            }
            self.report_in_turn().await;
        }
        self.slot.close().await;
    }

    /// Returns when the mirror's progress changed, but not at once: it may change with every
    /// batch.
    ///
    /// # Cancel-Safety
    /// Cancellation-safe: the keeper looks at the progress after every wait, whatever ended it.
    async fn next_progress(&self) {
        let changed = match self.slot.changes() {
            Some(mut progress) => progress.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn reference(key: &MirrorKey) -> ObjectRef<DeserializeGuard<MongoMirror>> {
    ObjectRef::new(&key.name).within(&key.namespace)
}

/// The target database, if it is to be deleted with the resource: both the spec and an annotation say
/// so.
fn confirmed(mirror: &MongoMirror) -> Option<String> {
    let target = target_database(&mirror.spec);
    let named = mirror.annotations().get(DELETE_TARGET);
    let is_confirmed = named.is_some_and(|name| name.trim() == target);
    let is_asked = mirror.spec.deletion_policy == DeletionPolicy::DeleteTarget;
    (is_asked && is_confirmed).then_some(target)
}

/// Whether there is still something to keep.
enum Found {
    Resource,
    Gone,
}

/// Stage 2: what the resource asks for; `None` if there is no resource.
fn validated(key: &MirrorKey, dereferenced: Dereferenced) -> Option<Validated> {
    let (identity, spec, secrets) = match dereferenced {
        Dereferenced::Gone => return None,
        Dereferenced::Unreadable(identity) => {
            // The reader's own message may repeat what is in the resource.
            let problem = Problem {
                reason: Reason::InvalidSpec,
                message: "The resource cannot be read by this version of the operator: compare it \
                          with `kubectl explain mongomirror.spec`, and apply the operator's own \
                          CustomResourceDefinition."
                    .to_owned(),
                needs_human: true,
                since: SystemTime::now(),
                next_attempt: None,
            };
            return Some(Validated {
                identity,
                desired: Desired::Refused { problem },
                names: Names {
                    enabled: true,
                    source_database: String::new(),
                    target_database: String::new(),
                },
            });
        }
        Dereferenced::Found {
            identity,
            spec,
            secrets,
        } => (identity, spec, secrets),
    };
    Some(Validated {
        names: Names::from(&*spec),
        desired: desired(key, Some(&identity.uid), &spec, secrets),
        identity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            uid: "u".into(),
            version: "1".into(),
            generation: 1,
            wishes: Wishes::new(),
            deletes: None,
            status: MongoMirrorStatus::default(),
        }
    }

    fn found(yaml: &str, secrets: Result<Secrets, Problem>) -> Dereferenced {
        Dereferenced::Found {
            identity: identity(),
            spec: serde_saphyr::from_str(yaml).unwrap(),
            secrets,
        }
    }

    fn desired_of(dereferenced: Dereferenced) -> Option<Desired> {
        let key = MirrorKey::new("n", "m");
        validated(&key, dereferenced).map(|validated| validated.desired)
    }

    #[test]
    fn a_resource_that_is_gone_asks_for_nothing() {
        assert_eq!(desired_of(Dereferenced::Gone), None);
    }

    #[test]
    fn a_resource_that_cannot_be_read_is_refused_and_needs_a_human() {
        let Some(Desired::Refused { problem }) = desired_of(Dereferenced::Unreadable(identity()))
        else {
            panic!("not refused");
        };
        assert_eq!(problem.reason, "InvalidSpec");
        assert!(problem.needs_human);
    }

    #[test]
    fn a_secret_that_may_not_be_read_is_told_by_its_own_reason() {
        let error = SecretError::Forbidden {
            namespace: "n".into(),
            secret: "a".into(),
        };
        let spec = "source: {uriSecretRef: {name: a}, database: x}";
        let forbidden = Err(problem(Reason::SecretForbidden, true, &error));
        let Some(Desired::Unavailable { problem, .. }) = desired_of(found(spec, forbidden)) else {
            panic!("not unavailable");
        };
        assert_eq!(problem.reason, "SecretForbidden");
        assert!(problem.message.contains("get, list and watch"));
    }

    #[test]
    fn what_is_wrong_with_the_spec_comes_before_what_is_wrong_with_its_secrets() {
        let spec = "source: {uriSecretRef: {name: a}, database: admin}";
        let missing = Ok(Secrets::from([("a".into(), None)]));
        let Some(Desired::Refused { problem }) = desired_of(found(spec, missing)) else {
            panic!("not refused");
        };
        assert_eq!(problem.reason, "SourceForbidden");
    }
}
