//! `make demo`: a mirror from its first document to the proof, with real servers on this machine.
//! `make demo-cluster`: the same in a real cluster of one node, with the chart.
//!
//! On a terminal everything stays up until Ctrl-C, so that one can look around; otherwise it ends
//! when the proof is done.

mod kubernetes;
mod operator;
mod release;
mod servers;
mod shop;
mod tell;

use std::{
    error::Error,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Instant,
};

use bson::{Bson, doc};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use kubernetes::Kubernetes;
use operator::Operator;
use servers::Servers;
use shop::{SOURCE, Shop, TARGET};

/// What goes wrong here is printed and ends the demo; no code looks into it.
pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// How many orders there are in the beginning.
const ORDERS: u32 = 100_000;

/// The user that the mirror connects as, and the password.
const USER: (&str, &str) = ("mongomirror", "demo-password");

/// The name of the MongoMirror.
const MIRROR: &str = "orders";

/// Shows a mirror from its first document to the proof.
#[derive(Parser)]
struct Arguments {
    /// In a real cluster of one node, which takes root, instead of as processes.
    #[arg(long)]
    cluster: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match demo(Arguments::parse().cluster).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell::failure(&*error);
            ExitCode::FAILURE
        }
    }
}

async fn demo(with_node: bool) -> Result<()> {
    let begun = Instant::now();
    tell::note(
        "MongoMirror keeps a second MongoDB database exactly equal to a first one, live.\n\
         What follows are real servers on this machine. The first time they are fetched or\n\
         built, which takes minutes.",
    );
    let stage = async {
        match with_node {
            true => Stage::in_a_cluster().await,
            false => Stage::on_this_machine().await,
        }
    };
    let Some(stage) = unless_stopped(stage).await? else {
        return Ok(());
    };
    tell::step("The operator, with the rights of its chart and no others");
    let operator = Operator::start(&stage.kubernetes);
    let Some(operator) = unless_stopped(operator).await? else {
        return Ok(());
    };
    let story = async {
        stage.show().await?;
        tell::step("What the operator logged");
        tell::output(&operator.read_log(12).await?);
        tell::note(&format!(
            "\nAll of this took {} s.",
            begun.elapsed().as_secs()
        ));
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            stage.invite(&operator).await?;
            std::future::pending::<()>().await;
        }
        Ok(())
    };
    let told = unless_stopped(operator.while_running(story)).await;
    if told.is_err() {
        // What went wrong is told below, and more important than a log that cannot be read.
        let end = operator.read_log(40).await.unwrap_or_default();
        tell::note(&format!("\nThe end of the operator's log:\n{end}"));
    }
    // Whatever happened: the mirror finishes its batch.
    operator.stop().await.and(told.map(drop))
}

/// The servers, and what is in them.
struct Stage {
    servers: Servers,
    shop: Shop,
    kubernetes: Kubernetes,
}

impl Stage {
    async fn on_this_machine() -> Result<Self> {
        tell::step("A MongoDB replica set");
        let servers = Servers::on_this_machine(USER).await?;
        servers.create_user(USER, roles()).await?;
        tell::note(&format!(
            "The mirror's user may read {SOURCE}, and write {TARGET} and its own notes."
        ));
        let shop = Shop::open(servers.client.clone());
        shop.fill(ORDERS).await?;

        tell::step("A Kubernetes control plane that knows MongoMirrors");
        let kubernetes = Kubernetes::start(false).await?;
        kubernetes
            .run(&["apply", "-f", "crds/mongomirrors.yaml"])
            .await?;
        let definition = "crd/mongomirrors.mongomirror.dev";
        kubernetes
            .run(&["wait", "--for=condition=Established", definition])
            .await?;
        Ok(Self {
            servers,
            shop,
            kubernetes,
        })
    }

    async fn in_a_cluster() -> Result<Self> {
        tell::step("A Kubernetes cluster of one node");
        let kubernetes = Kubernetes::start(true).await?;
        kubernetes.run(&["get", "nodes", "-o", "wide"]).await?;

        tell::step("A MongoDB replica set, in a pod");
        let cluster = kubernetes.cluster().ok_or("there is no node")?;
        let servers = Servers::in_a_pod(cluster, USER).await?;
        servers.create_user(USER, roles()).await?;
        kubernetes.run(&["get", "pods", "-o", "wide"]).await?;
        let shop = Shop::open(servers.client.clone());
        shop.fill(ORDERS).await?;
        Ok(Self {
            servers,
            shop,
            kubernetes,
        })
    }

    /// A mirror's life: copied, live, paused, live again, proved.
    async fn show(&self) -> Result<()> {
        let Self {
            servers,
            shop,
            kubernetes,
        } = self;
        let look = ["get", "mongomirror", MIRROR];

        tell::step("A Secret and a MongoMirror");
        kubernetes.apply(&manifests(&servers.uri_of_mirror)).await?;

        tell::step("From the first document to live");
        kubernetes
            .watch_until(MIRROR, &["Mirroring", "True"])
            .await?;

        tell::step("Changes of the source, and when they arrived");
        shop.change_one_by_one().await?;
        shop.change_many().await?;
        kubernetes
            .run(&["get", "mongomirror", MIRROR, "-o", "wide"])
            .await?;

        tell::step("Pause: one field");
        kubernetes.enable(MIRROR, false).await?;
        kubernetes.run(&look).await?;
        shop.change_while_paused().await?;

        tell::step("Go on");
        kubernetes.enable(MIRROR, true).await?;
        shop.wait_until_counts_agree().await?;
        kubernetes.run(&look).await?;

        tell::step("The proof: hashes of all documents, by the servers' own dbHash");
        shop.prove_equal().await
    }

    /// What there is to try as long as everything is up.
    async fn invite(&self, operator: &Operator<'_>) -> Result<()> {
        tell::step("Look around");
        tell::output(&format!(
            "{environment}\n\
             kubectl get mongomirror --watch\n\
             kubectl describe mongomirror {MIRROR}\n\
             kubectl explain mongomirror.spec\n\
             kubectl patch mongomirror {MIRROR} --type merge -p '{{\"spec\":{{\"enabled\":false}}}}'\n\
             curl -s http://{listen}/api/v1/mirrors\n\
             curl -s http://{listen}/metrics\n\
             {log}\n\
             mongosh '{uri}'",
            environment = self.kubernetes.environment(),
            listen = operator.listen().await?,
            log = operator.log_command(),
            uri = self.servers.uri,
        ));
        tell::note("\nEverything stays up until Ctrl-C.");
        Ok(())
    }
}

/// The least that a mirror needs, as the README lists it.
fn roles() -> [Bson; 5] {
    [
        ("read", SOURCE),
        ("clusterMonitor", "admin"),
        ("readWrite", TARGET),
        ("dbAdmin", TARGET),
        ("readWrite", "mongomirror"),
    ]
    .map(|(role, database)| doc! {"role": role, "db": database}.into())
}

fn manifests(uri: &str) -> String {
    format!(
        "apiVersion: v1
kind: Secret
metadata:
  name: orders-mongodb
stringData:
  uri: {uri}
---
apiVersion: mongomirror.dev/v1alpha1
kind: MongoMirror
metadata:
  name: {MIRROR}
spec:
  enabled: true
  source:
    uriSecretRef: {{name: orders-mongodb, key: uri}}
    database: {SOURCE}
  target:
    database: {TARGET}
"
    )
}

/// Does something unless Ctrl-C comes first, or what a service manager or a closed terminal sends.
async fn unless_stopped<T>(what: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        done = what => return done.map(Some),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    tell::note("\nStopping.");
    Ok(None)
}
