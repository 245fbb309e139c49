//! The test bed by hand: fills the cache, or runs servers until Ctrl-C.

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use testbed::{
    Cluster, ControlPlane, Image, Program, ReplicaSet, Result, Standalone, Version, chart,
};
use tokio::signal::unix::{SignalKind, signal};

/// Real MongoDB servers, a real Kubernetes control plane and Helm, for development.
///
/// Programs that are already here come first (MONGOMIRROR_TEST_MONGOD, KUBEBUILDER_ASSETS, PATH);
/// what is missing is fetched or built once and kept in ~/.cache/mongomirror-testbed.
#[derive(Parser)]
#[command(name = "testbed", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch or build everything that tests need, so that they need no network later.
    Fetch {
        /// What to bring.
        #[arg(value_enum, default_value_t = What::All)]
        what: What,
    },
    /// Run MongoDB until Ctrl-C. Prints its URI on stdout.
    Mongod(Mongod),
    /// Run a Kubernetes control plane until Ctrl-C. Prints the path of a kubeconfig on stdout.
    ControlPlane {
        /// Run kube-controller-manager too (garbage collection, Deployments).
        #[arg(long)]
        controller_manager: bool,
        /// Print a second kubeconfig, for an operator with the rights in this manifest
        /// (ClusterRoles and Roles).
        #[arg(long, value_name = "FILE")]
        operator_roles: Option<PathBuf>,
    },
    /// See whether this machine can be a node, and install the Debian packages that it lacks for it.
    /// Ends with 3, and prints why, where nothing that could be installed would help.
    Prepare,
    /// Run a cluster of one node until Ctrl-C. Prints the path of a kubeconfig on stdout.
    Cluster {
        /// Programs to make images of: `testbed.local/NAME:test` has the program NAME, and the
        /// libraries that it needs.
        #[arg(long = "image", value_name = "PROGRAM")]
        images: Vec<PathBuf>,
    },
    /// Print what is made from the Helm chart.
    Chart {
        /// What to print.
        #[arg(value_enum)]
        what: OfChart,
        /// The chart's folder.
        #[arg(default_value = "charts/mongomirror", value_name = "FOLDER")]
        folder: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum OfChart {
    /// Its README, with tables of its values.
    Readme,
    /// A manifest for `kubectl apply`.
    Manifest,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// All versions of MongoDB.
    Mongod,
    /// The control plane, kubectl and Helm.
    Kubernetes,
    /// Both.
    All,
}

#[derive(Args)]
struct Mongod {
    /// A version to fetch (6.0.5, 6.0.27). Without it, the mongod of this machine if there is one.
    #[arg(long, value_name = "VERSION")]
    version: Option<Version>,
    /// The number of members of the replica set.
    #[arg(long, default_value_t = 1, value_name = "N")]
    nodes: usize,
    /// Run a server without a replica set.
    #[arg(long, conflicts_with = "nodes")]
    standalone: bool,
    /// Turn authentication on. The URI then carries the root user.
    #[arg(long)]
    auth: bool,
    /// The size of the oplog, in MB.
    #[arg(long, value_name = "MB")]
    oplog_mb: Option<u32>,
    /// The size of WiredTiger's cache, in GB.
    #[arg(long, default_value_t = 0.25, value_name = "GB")]
    cache_gb: f64,
    /// A server parameter; may be given several times.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = name_and_value)]
    params: Vec<(String, String)>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.into(), value.into())),
        None => Err("expected NAME=VALUE".into()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Fetch { what } => fetch(what).await,
        Command::Mongod(wanted) if wanted.standalone => standalone(wanted).await,
        Command::Mongod(wanted) => replica_set(wanted).await,
        Command::ControlPlane {
            controller_manager,
            operator_roles,
        } => control_plane(controller_manager, operator_roles).await,
        Command::Prepare => Cluster::prepare().await,
        Command::Cluster { images } => cluster(images).await,
        Command::Chart { what, folder } => of_chart(what, &folder).await,
    };
    let error = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error @ testbed::Error::NoNode(_)) => {
            println!("{error}");
            return ExitCode::from(3);
        }
        Err(error) => error,
    };
    eprintln!("testbed: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}

async fn fetch(what: What) -> Result<()> {
    if what != What::Kubernetes {
        for version in Version::ALL {
            let path = version.fetch().await?;
            println!("mongod {version}: {}", path.display());
        }
    }
    if what != What::Mongod {
        for program in Program::ALL {
            let path = program.fetch().await?;
            println!("{}: {}", program.name(), path.display());
        }
    }
    Ok(())
}

async fn of_chart(what: OfChart, folder: &Path) -> Result<()> {
    let text = match what {
        OfChart::Readme => chart::readme(folder)?,
        OfChart::Manifest => chart::manifest(folder).await?,
    };
    print!("{text}");
    Ok(())
}

async fn replica_set(wanted: Mongod) -> Result<()> {
    let nodes = wanted.nodes;
    let set = wanted
        .apply(ReplicaSet::builder())
        .nodes(nodes)
        .start()
        .await?;
    println!("{}", set.uri());
    until_stopped().await
}

async fn standalone(wanted: Mongod) -> Result<()> {
    let server = wanted.apply(Standalone::builder()).start().await?;
    println!("{}", server.uri());
    until_stopped().await
}

impl Mongod {
    fn apply<T>(self, builder: testbed::Builder<T>) -> testbed::Builder<T> {
        let mut builder = builder.auth(self.auth).cache_gb(self.cache_gb);
        if let Some(version) = self.version {
            builder = builder.version(version);
        }
        if let Some(megabytes) = self.oplog_mb {
            builder = builder.oplog_mb(megabytes);
        }
        self.params
            .into_iter()
            .fold(builder, |builder, (name, value)| builder.param(name, value))
    }
}

async fn control_plane(controllers: bool, roles: Option<PathBuf>) -> Result<()> {
    let plane = ControlPlane::builder()
        .controller_manager(controllers)
        .start()
        .await?;
    println!("{}", plane.admin_kubeconfig().display());
    if let Some(roles) = roles {
        let operator = plane.operator_kubeconfig(&roles).await?;
        println!("{}", operator.display());
    }
    until_stopped().await
}

async fn cluster(programs: Vec<PathBuf>) -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster
        .import(&Image::of_mongod("testbed.local/mongod:test", None)?)
        .await?;
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let image = Image::of(format!("testbed.local/{name}:test"), &program)?;
        cluster.import(&image).await?;
    }
    println!("{}", cluster.plane().admin_kubeconfig().display());
    until_stopped().await
}

/// Waits for Ctrl-C, or for what a service manager or a closed terminal sends.
async fn until_stopped() -> Result<()> {
    let listen = |kind| {
        signal(kind).map_err(|source| testbed::Error::Io {
            what: "listen for signals".into(),
            source,
        })
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    eprintln!("testbed: running until Ctrl-C");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}
