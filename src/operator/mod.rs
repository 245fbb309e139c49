//! The control plane: Kubernetes.
//!
//! Watches (MongoMirrors; Secrets by metadata) nudge one [`controller::Keeper`] per resource.
//! A keeper looks, decides and acts; `runner` runs the mirrors, `http` and the resources' status
//! tell of them. Nothing here knows MongoDB, nothing in `engine` knows Kubernetes.
//!
//! - [`controller`]: the keeper and its stages
//! - [`watched`]: what is watched, in which namespaces
//! - [`secrets`]: Secrets, watched by metadata, read when needed
//! - [`asked`]: what users ask for by annotations
//! - [`report`], [`conditions`]: progress → status
//! - [`lease`]: which of several operators runs the mirrors
//! - [`publish`]: when and how a status is written
//! - [`events`]: what happened between two statuses
//! - [`backoff`]: when something is tried again

mod asked;
pub mod backoff;
pub mod conditions;
pub mod controller;
mod crash;
mod events;
mod lease;
pub mod publish;
pub mod report;
pub mod secrets;
pub mod watched;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};
use thiserror::Error;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::connection::shared::Clients;
use crate::resource::MongoMirror;
use crate::runner::readiness::Readiness;
use crate::runner::registry::{MirrorKey, Registry};
use crate::runner::words;
use backoff::Outage;
use controller::{Context, Ends, Keeper};
use lease::Election;
use watched::{Scopes, Watched};

/// Connecting to the API server takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Mirrors that have not stopped by then are left to their checkpoints: Kubernetes kills a pod
/// 30 s after it asked it to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);
/// So many Secrets are read at once, and so many statuses written, whatever the number of mirrors. An
/// API server that is asked for a thousand at once answers none of them in time, and then is asked
/// again.
const AT_ONCE: usize = 8;
/// A keeper that panicked is started again after this long.
const RESTART_AFTER_PANIC: Duration = Duration::from_secs(10);

/// The operator cannot start.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// Neither a service account nor a kubeconfig.
    #[error(
        "found no Kubernetes cluster to work in: run in a pod with a service account, or set \
         KUBECONFIG to a kubeconfig file ({0})"
    )]
    // In words: the error names each of its causes itself.
    Config(String),
    /// A proxy is named, whose address may hold a password.
    #[error(
        "the operator talks to the API server without a proxy: unset HTTPS_PROXY, or take \
         proxy-url out of the kubeconfig"
    )]
    Proxy,
    /// The client cannot be made.
    #[error("failed to set up the Kubernetes client: check the kubeconfig's certificates")]
    Client(#[source] Box<kube::Error>),
    /// It must not go on.
    #[error(transparent)]
    Lease(#[from] lease::LeaseError),
}

/// What the operator does.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The namespaces whose MongoMirrors it runs.
    pub scopes: Scopes,
    /// Where several operators agree on one of them.
    pub election: Option<ElectionOptions>,
}

/// The Lease by which several operators agree on one of them.
#[derive(Clone, Debug)]
pub struct ElectionOptions {
    /// Its namespace; without it, that of the operator's service account or kubeconfig.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// Runs the operator until `stop`, then stops all mirrors. It is ready when all resources have been
/// seen once.
///
/// # Errors
/// If there is no cluster to connect to; a cluster that is away is waited for. Or if leadership is
/// lost and mirrors do not stop.
pub async fn run(
    options: Options,
    registry: Registry,
    readiness: watch::Sender<Readiness>,
    stop: CancellationToken,
) -> Result<(), OperatorError> {
    let scopes = &options.scopes;
    let mut config = kube::Config::infer()
        .await
        .map_err(|error| OperatorError::Config(error.to_string()))?;
    if config.proxy_url.is_some() {
        return Err(OperatorError::Proxy);
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Every caller here has a backoff of its own; the client's would hide an outage for minutes.
    config.default_retry = false;
    tracing::info!(
        cluster = %config.cluster_url,
        namespace = scopes.describe(),
        "watching MongoMirrors"
    );
    let client =
        Client::try_from(config).map_err(|error| OperatorError::Client(Box::new(error)))?;
    let work = async |term: CancellationToken| {
        Operator::new(
            client.clone(),
            registry.clone(),
            stop.clone(),
            scopes.clone(),
        )
        .run(&readiness, term)
        .await;
    };
    let Some(election) = options.election else {
        work(stop.clone()).await;
        return Ok(());
    };
    let election = Election::new(client.clone(), election.namespace, election.name);
    let work = async |term: CancellationToken| {
        work(term).await;
        // They are the next leader's.
        registry.clear();
    };
    Ok(election.lead(&readiness, &stop, work).await?)
}

/// Hands events to keepers.
struct Operator {
    scopes: Scopes,
    context: Arc<Context>,
    mirrors: Watched<DeserializeGuard<MongoMirror>>,
    secrets: Watched<PartialObjectMeta<Secret>>,
    keepers: JoinSet<MirrorKey>,
    nudges: HashMap<MirrorKey, Arc<Notify>>,
}

impl Operator {
    fn new(
        client: Client,
        registry: Registry,
        shutdown: CancellationToken,
        scopes: Scopes,
    ) -> Self {
        let (mirrors_seen, mirrors) = Watched::new(&scopes);
        let (secrets_seen, secrets) = Watched::new(&scopes);
        Self {
            scopes,
            context: Arc::new(Context {
                recorder: Recorder::new(client.clone(), reporter()),
                client,
                registry,
                clients: Clients::default(),
                shutdown,
                mirrors: mirrors_seen,
                secrets: secrets_seen,
                ends: Ends::default(),
                outage: Outage::default(),
                reads: Arc::new(Semaphore::new(AT_ONCE)),
                writes: Arc::new(Semaphore::new(AT_ONCE)),
            }),
            mirrors,
            secrets,
            keepers: JoinSet::new(),
            nudges: HashMap::new(),
        }
    }

    async fn run(mut self, readiness: &watch::Sender<Readiness>, stop: CancellationToken) {
        let client = self.context.client.clone();
        let mut mirrors = pin!(self.scopes.watch(&client));
        let mut secrets = pin!(self.scopes.watch(&client));
        loop {
            tokio::select! {
                // Whoever has lost the Lease must not say that it is ready any more.
                biased;
                () = stop.cancelled() => break,
                Some((which, event)) = mirrors.next() => match event {
                    Ok(event) => self.mirror_event(which, event, &stop),
                    Err(error) => tell("MongoMirrors", self.scopes.of(which), &error),
                },
                Some((which, event)) = secrets.next() => match event {
                    Ok(event) => self.secret_event(which, event, &stop),
                    Err(error) => tell("Secrets", self.scopes.of(which), &error),
                },
                Some(ended) = self.keepers.join_next() => self.keeper_ended(ended, &stop),
            }
            if self.mirrors.is_complete() && self.secrets.is_complete() {
                readiness.send_if_modified(|now| {
                    std::mem::replace(now, Readiness::Ready) != Readiness::Ready
                });
            }
        }
        let all = async { while self.keepers.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
            tracing::warn!("some mirrors did not stop in time; they go on from their checkpoints");
        }
    }

    fn mirror_event(
        &mut self,
        which: usize,
        event: Event<DeserializeGuard<MongoMirror>>,
        stop: &CancellationToken,
    ) {
        self.mirrors.apply(which, &event);
        if let Event::Delete(mirror) = &event {
            self.context.ends.note(mirror);
        }
        match event {
            Event::Apply(mirror) | Event::Delete(mirror) => self.nudge(key_of(&mirror), stop),
            Event::InitDone => self.nudge_all(which, stop),
            Event::Init | Event::InitApply(_) => {}
        }
    }

    fn secret_event(
        &mut self,
        which: usize,
        event: Event<PartialObjectMeta<Secret>>,
        stop: &CancellationToken,
    ) {
        self.secrets.apply(which, &event);
        match event {
            Event::Apply(secret) | Event::Delete(secret) => {
                let namespace = secret.metadata.namespace.as_deref();
                let Some(name) = secret.metadata.name.as_deref() else {
                    return;
                };
                let refers = |mirror: &MongoMirror| {
                    mirror.metadata.namespace.as_deref() == namespace
                        && secrets::names(&mirror.spec).contains(name)
                };
                let all = self.context.mirrors.all();
                let concerned: Vec<_> = all
                    .filter(|mirror| mirror.0.as_ref().is_ok_and(refers))
                    .collect();
                for mirror in concerned {
                    self.nudge(key_of(&*mirror), stop);
                }
            }
            Event::InitDone => self.nudge_all(which, stop),
            Event::Init | Event::InitApply(_) => {}
        }
    }

    /// Nudges the keepers of all resources that exist where this watch looks, and of those that
    /// existed: after a lost watch nobody tells which resources were deleted meanwhile.
    fn nudge_all(&mut self, which: usize, stop: &CancellationToken) {
        let there = self.context.mirrors.all();
        let there = there.map(|mirror| key_of(&*mirror));
        let all = there.chain(self.nudges.keys().cloned());
        let scope = self.scopes.of(which);
        let concerned: Vec<_> = all
            .filter(|key| scope.is_none_or(|scope| key.namespace == scope))
            .collect();
        for key in concerned {
            self.nudge(key, stop);
        }
    }

    /// Makes the keeper look again; starts it if there is none.
    fn nudge(&mut self, key: MirrorKey, stop: &CancellationToken) {
        if let Some(nudge) = self.nudges.get(&key) {
            nudge.notify_one();
            return;
        }
        let nudge = Arc::new(Notify::new());
        self.nudges.insert(key.clone(), nudge.clone());
        let keeper = Keeper::new(self.context.clone(), key.clone()).run(nudge, stop.clone());
        let stop = stop.clone();
        let supervised = async move {
            // In a task of its own, so that a panic ends neither the operator nor this one.
            if let Err(panic) = tokio::spawn(keeper).await {
                tracing::error!(mirror = %key, error = %panic, "the keeper panicked; starting it again");
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(RESTART_AFTER_PANIC) => {}
                }
            }
            key
        };
        self.keepers.spawn(supervised);
    }

    /// A keeper ends when its resource is gone; but the resource may have come back by now, or the
    /// keeper may have panicked.
    fn keeper_ended(
        &mut self,
        ended: Result<MirrorKey, tokio::task::JoinError>,
        stop: &CancellationToken,
    ) {
        let Ok(key) = ended else {
            return;
        };
        self.nudges.remove(&key);
        let resource = ObjectRef::new(&key.name).within(&key.namespace);
        if self.context.mirrors.get(&resource).is_some() {
            self.nudge(key, stop);
        } else {
            self.context.registry.remove(&key);
        }
    }
}

/// Who reports events: the operator, and which of its pods.
fn reporter() -> Reporter {
    Reporter {
        controller: "mongomirror".to_owned(),
        instance: std::env::var("HOSTNAME").ok(),
    }
}

fn key_of<K: Resource>(object: &K) -> MirrorKey {
    let meta = object.meta();
    MirrorKey::new(
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// Logs an interrupted watch, which is reopened by itself, with what may help.
fn tell(what: &'static str, namespace: Option<&str>, error: &watcher::Error) {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    };
    let hint = match status {
        // An API server that never heard of the group answers with plain text.
        Some(status) if status.code == 404 => {
            "the API server does not know them: apply the CustomResourceDefinition \
             (`mongomirror crd | kubectl apply -f -`)"
        }
        Some(status) if status.is_forbidden() => {
            "the operator's service account may not list and watch them: see its ClusterRole, or \
             its Role in that namespace"
        }
        _ => "mirrors that run go on",
    };
    tracing::warn!(
        error = words::root_cause(error),
        hint,
        namespace = namespace.unwrap_or("all"),
        "the watch of {what} was interrupted and will be opened again"
    );
}
