//! Every version of a MongoMirror, as the API server tells whoever watches it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::StreamExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, Resource};
use mongomirror::resource::{MongoMirror, MongoMirrorStatus};
use testbed::ControlPlane;
use tokio_util::task::AbortOnDropHandle;

/// What a resource was, from when on.
#[derive(Clone, Debug)]
pub struct Version {
    /// When the watch told of it.
    pub at: Instant,
    /// Of its spec.
    pub generation: i64,
    /// `spec.enabled`.
    pub enabled: bool,
    /// Its status.
    pub status: MongoMirrorStatus,
}

/// What a resource has been since this was started.
pub struct History {
    versions: Arc<Mutex<Vec<Version>>>,
    _task: AbortOnDropHandle<()>,
}

impl History {
    /// Of a mirror in the namespace `default`.
    pub async fn of(plane: &ControlPlane, mirror: &str) -> Self {
        let kubeconfig = Kubeconfig::read_from(plane.admin_kubeconfig()).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let client = Client::try_from(config.expect("a configuration")).expect("a client");
        let api = Api::<MongoMirror>::namespaced(client, "default");
        let config = Config::default().fields(&format!("metadata.name={mirror}"));
        let versions = Arc::new(Mutex::new(Vec::new()));
        let list = versions.clone();
        let watch = async move {
            let mut events = std::pin::pin!(watcher(api, config).default_backoff());
            while let Some(event) = events.next().await {
                if let Ok(Event::Apply(mirror) | Event::InitApply(mirror)) = event {
                    let version = Version {
                        at: Instant::now(),
                        generation: mirror.meta().generation.unwrap_or_default(),
                        enabled: mirror.spec.enabled,
                        status: mirror.status.unwrap_or_default(),
                    };
                    list.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(version);
                }
            }
        };
        let history = Self {
            versions,
            _task: AbortOnDropHandle::new(tokio::spawn(watch)),
        };
        super::eventually("the watch has begun", async || {
            (!history.versions().is_empty()).then_some(())
        })
        .await;
        history
    }

    /// All of them so far.
    pub fn versions(&self) -> Vec<Version> {
        let versions = self.versions.lock();
        versions.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those since then.
    pub fn since(&self, begun: Instant) -> Vec<Version> {
        let mut versions = self.versions();
        versions.retain(|version| version.at >= begun);
        versions
    }
}
