//! `mongomirror run`

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::display::Display;
use super::follow::Follower;
use super::manifest::{Manifest, ManifestError};
use super::printer::Printer;
use crate::engine::connection::shared::Clients;
use crate::http::Server;
use crate::runner::readiness::Readiness;
use crate::runner::registry::{MirrorKey, Registry};
use crate::runner::slot::Slot;
use crate::runner::{self, End, journal};

/// Mirrors that have not stopped by then are left to their checkpoints.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often live lines are drawn.
const DRAW: Duration = Duration::from_millis(250);

/// Run the mirrors of a file, without Kubernetes.
///
/// The file holds YAML documents as one would apply them to a cluster: MongoMirrors, and the
/// Secrets they refer to, with stringData or data. It is read again whenever it changes: changed
/// mirrors are restarted, new ones started, missing ones stopped. A version with a mistake in it
/// changes nothing. Ends on Ctrl-C or SIGTERM; every mirror finishes its batch in hand and keeps
/// its position.
#[derive(clap::Args)]
pub struct Arguments {
    /// The file with the manifests; - reads standard input, once.
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,

    /// Where to serve the status API, health and metrics. Without it, they are not served.
    #[arg(long, env = "MONGOMIRROR_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

pub async fn execute(
    arguments: Arguments,
    printer: &Printer,
    stop: CancellationToken,
) -> Result<(), Box<dyn Error>> {
    let text = read(&arguments.file)?;
    let manifest = Manifest::parse(&text)?;
    let registry = Registry::default();
    let (ready, is_ready) = watch::channel(Readiness::Starting);
    if let Some(address) = arguments.listen {
        let server = Server::bind(address, registry.clone(), is_ready).await?;
        tracing::info!(
            address = server.address().map(tracing::field::display),
            "serving the status API"
        );
        tokio::spawn(server.serve(CancellationToken::new()));
    }
    tokio::spawn(journal::run(registry.clone(), stop.clone()));

    let mut mirrors = Mirrors {
        registry: registry.clone(),
        clients: Clients::default(),
        slots: BTreeMap::new(),
        ending: BTreeMap::new(),
    };
    mirrors.settle(manifest).await;
    ready.send_replace(Readiness::Ready);

    let mut follower =
        (!is_standard_input(&arguments.file)).then(|| Follower::new(&arguments.file, text));
    let mut display = printer
        .is_terminal()
        .then(|| Display::new(printer.live().clone()));
    let mut draw = tokio::time::interval(DRAW);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = changed(&mut follower) => {
                let manifest = changed
                    .map_err(|source| unreadable(&arguments.file, source))
                    .and_then(|text| Manifest::parse(&text));
                match manifest {
                    Ok(manifest) => {
                        tracing::info!("the file changed");
                        tokio::select! {
                            () = stop.cancelled() => break,
                            () = mirrors.ended(&manifest) => {}
                        }
                        mirrors.settle(manifest).await;
                    }
                    Err(error) => tracing::error!(
                        error = &error as &dyn Error,
                        "the file changed and cannot be used; what runs goes on"
                    ),
                }
            }
            _ = draw.tick(), if display.is_some() => {
                if let Some(display) = &mut display {
                    display.show(&registry.snapshots());
                }
            }
        }
    }
    if let Some(display) = &display {
        display.clear();
    }
    mirrors.stop().await;
    Ok(())
}

/// The mirrors of the file.
struct Mirrors {
    registry: Registry,
    clients: Clients,
    slots: BTreeMap<MirrorKey, Slot>,
    /// Mirrors that are no longer in the file: their targets are being armed.
    ending: BTreeMap<MirrorKey, JoinHandle<()>>,
}

impl Mirrors {
    /// Brings what runs in line with the file.
    async fn settle(&mut self, mut manifest: Manifest) {
        for document in &manifest.skipped {
            tracing::warn!("left out {document}: only MongoMirrors and Secrets are used");
        }
        let kept = |key: &MirrorKey| manifest.mirrors.contains_key(key);
        let gone: Vec<_> = self.slots.extract_if(.., |key, _| !kept(key)).collect();
        for (key, slot) in gone {
            tracing::info!(mirror = %key, "stopping the mirror: it is no longer in the file");
            let ending = tokio::spawn(end(slot));
            self.ending.insert(key, ending);
        }
        self.ending.retain(|_, ending| !ending.is_finished());
        for key in manifest.mirrors.keys() {
            self.slots.entry(key.clone()).or_insert_with(|| {
                Slot::new(key.clone(), self.registry.clone(), self.clients.clone())
            });
        }
        // All at once: a mirror that takes its time to stop does not hold up the others.
        join_all(self.slots.iter_mut().filter_map(|(key, slot)| {
            let (desired, names) = manifest.mirrors.remove(key)?;
            Some(slot.settle(desired, names))
        }))
        .await;
    }

    /// Waits for the end of mirrors that come back: they must not be armed while they run.
    async fn ended(&mut self, manifest: &Manifest) {
        for key in manifest.mirrors.keys() {
            if let Some(ending) = self.ending.get_mut(key) {
                let _ = ending.await;
                self.ending.remove(key);
            }
        }
    }

    async fn stop(self) {
        let all = join_all(self.slots.into_values().map(Slot::close));
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
            tracing::warn!("some mirrors did not stop in time; they go on from their checkpoints");
        }
    }
}

/// Ends a mirror for good. Takes a bounded time.
async fn end(slot: Slot) {
    let config = slot.config().cloned();
    slot.close().await;
    if let Some(config) = config {
        runner::finish(config, End::Arm).await;
    }
}

/// The file's next version; never, if it is not followed.
async fn changed(follower: &mut Option<Follower>) -> std::io::Result<String> {
    match follower {
        Some(follower) => follower.changed().await,
        None => std::future::pending().await,
    }
}

fn read(file: &Path) -> Result<String, ManifestError> {
    if is_standard_input(file) {
        let mut text = String::new();
        return std::io::stdin()
            .read_to_string(&mut text)
            .map(|_| text)
            .map_err(|source| unreadable(file, source));
    }
    std::fs::read_to_string(file).map_err(|source| unreadable(file, source))
}

fn is_standard_input(file: &Path) -> bool {
    file == Path::new("-")
}

fn unreadable(file: &Path, source: std::io::Error) -> ManifestError {
    ManifestError::Read {
        path: file.display().to_string(),
        source,
    }
}
