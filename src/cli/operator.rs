//! `mongomirror operator`

use std::error::Error;
use std::net::SocketAddr;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::http::Server;
use crate::operator;
use crate::runner::journal;
use crate::runner::registry::Registry;

/// Run the mirrors that a Kubernetes cluster's MongoMirror resources ask for.
///
/// In a pod, the cluster is that of the pod's service account; elsewhere it is that of KUBECONFIG
/// or ~/.kube/config. Ends on SIGTERM: every mirror finishes its batch in hand and keeps its
/// position.
#[derive(clap::Args)]
pub struct Arguments {
    /// Watch this namespace only. Without it, all of them.
    #[arg(long, short, env = "MONGOMIRROR_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Where to serve the status API, health and metrics.
    #[arg(
        long,
        default_value = "0.0.0.0:8080",
        env = "MONGOMIRROR_LISTEN",
        value_name = "ADDRESS"
    )]
    listen: SocketAddr,
}

pub async fn execute(arguments: Arguments, stop: CancellationToken) -> Result<(), Box<dyn Error>> {
    let registry = Registry::default();
    let (ready, is_ready) = watch::channel(false);
    let server = Server::bind(arguments.listen, registry.clone(), is_ready).await?;
    tracing::info!(
        address = server.address().map(tracing::field::display),
        "serving the status API"
    );
    tokio::spawn(journal::run(registry.clone(), stop.clone()));

    // The chart leaves the variable empty for "all namespaces".
    let namespace = arguments
        .namespace
        .filter(|namespace| !namespace.is_empty());
    // The status API is there as long as a mirror is, also while mirrors stop.
    let served = CancellationToken::new();
    let serve = tokio::spawn(server.serve(served.clone()));
    let outcome = operator::run(namespace, registry, ready, stop).await;
    served.cancel();
    serve.await??;
    Ok(outcome?)
}
