//! `mongomirror operator`

use std::error::Error;
use std::net::SocketAddr;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::http::Server;
use crate::operator::watched::Scopes;
use crate::operator::{self, ElectionOptions, Options};
use crate::runner::journal;
use crate::runner::readiness::Readiness;
use crate::runner::registry::Registry;

/// Run the mirrors that a Kubernetes cluster's MongoMirror resources ask for.
///
/// In a pod, the cluster is that of the pod's service account; elsewhere it is that of KUBECONFIG
/// or ~/.kube/config. Ends on SIGTERM: every mirror finishes its batch in hand and keeps its
/// position.
#[derive(clap::Args)]
pub struct Arguments {
    /// Watch this namespace only; may be given more than once, or as a list with commas. Without
    /// it, all of them.
    #[arg(
        long,
        short,
        env = "MONGOMIRROR_NAMESPACE",
        value_delimiter = ',',
        value_parser = namespace,
        value_name = "NAMESPACE"
    )]
    namespace: Vec<String>,

    /// Where to serve the status API, health and metrics.
    #[arg(
        long,
        default_value = "0.0.0.0:8080",
        env = "MONGOMIRROR_LISTEN",
        value_name = "ADDRESS"
    )]
    listen: SocketAddr,

    /// Run mirrors only while this process holds a Lease, so that other operators can stand by and
    /// take over. Without it, this must be the only one.
    #[arg(long, env = "MONGOMIRROR_LEADER_ELECTION")]
    leader_election: bool,

    /// The Lease's namespace. Without it, that of the service account or of the kubeconfig.
    #[arg(long, env = "MONGOMIRROR_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<String>,

    /// The Lease's name: operators that stand by for each other name the same one.
    #[arg(
        long,
        default_value = "mongomirror",
        env = "MONGOMIRROR_LEASE_NAME",
        value_name = "NAME"
    )]
    lease_name: String,
}

/// A namespace's name, or nothing, as in a variable that is empty. One that cannot exist would be
/// watched in vain.
fn namespace(text: &str) -> Result<String, &'static str> {
    let is_inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let is_name = text.len() <= 63
        && text.bytes().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    let text = is_name.then(|| text.to_owned());
    text.ok_or("a namespace's name has at most 63 letters a to z, digits and dashes between them")
}

pub async fn execute(arguments: Arguments, stop: CancellationToken) -> Result<(), Box<dyn Error>> {
    let registry = Registry::default();
    let (ready, is_ready) = watch::channel(Readiness::Starting);
    let server = Server::bind(arguments.listen, registry.clone(), is_ready).await?;
    tracing::info!(
        address = server.address().map(tracing::field::display),
        "serving the status API"
    );
    tokio::spawn(journal::run(registry.clone(), stop.clone()));

    let options = Options {
        scopes: Scopes::new(arguments.namespace),
        election: arguments.leader_election.then(|| ElectionOptions {
            // An empty variable is none.
            namespace: arguments.lease_namespace.filter(|name| !name.is_empty()),
            name: arguments.lease_name,
        }),
    };
    // The status API is there as long as a mirror is, also while mirrors stop.
    let served = CancellationToken::new();
    let serve = tokio::spawn(server.serve(served.clone()));
    let outcome = operator::run(options, registry, ready, stop).await;
    served.cancel();
    serve.await??;
    Ok(outcome?)
}
