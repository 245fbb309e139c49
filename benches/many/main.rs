//! What one operator needs for many mirrors: most of them idle, some busy, all of one source and one
//! target, with a real API server.
//!
//! `cargo bench --bench many` (or `make many`); `-- --idle 1000 --busy 0` for other numbers, `-- --quick`
//! for a smoke run. Nothing fails because it was slow: the table says what was reached. It does fail
//! if a mirror does not become live, or if what was written does not arrive.
//!
//! - `operator.rs`: the operator's process, and what it tells
//! - `../common/usage.rs`: its CPU time and memory
//! - `load.rs`: the databases, and who writes to them

mod load;
mod operator;
#[path = "../common/usage.rs"]
mod usage;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use testbed::{ControlPlane, ReplicaSet, Version};

use load::Databases;
use operator::Operator;
use usage::Usage;

/// Anything that makes a measurement impossible.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// WiredTiger's cache of each server.
const CACHE_GB: f64 = 1.0;

/// Measures what one operator needs for many mirrors.
#[derive(Parser, Debug)]
#[command(name = "many")]
struct Arguments {
    /// A smoke run of some seconds, with few mirrors. Its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Mirrors of databases that nobody writes to.
    #[arg(long, value_name = "N", default_value_t = 500)]
    idle: usize,
    /// Mirrors of databases that are written to.
    #[arg(long, value_name = "N", default_value_t = 20)]
    busy: usize,
    /// Updates in a second of each of them.
    #[arg(long, value_name = "N", default_value_t = 10)]
    rate: u32,
    /// Seconds that are measured.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Seconds after each start, for what is left of it (verifications, new connections) to end.
    #[arg(long, value_name = "N", default_value_t = 20)]
    settle: u64,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn read() -> Self {
        let all = Self::parse();
        if !all.quick {
            return all;
        }
        Self {
            idle: 3,
            busy: 1,
            seconds: 2,
            settle: 0,
            ..all
        }
    }
}

/// Everything that takes part.
struct Bench {
    plane: ControlPlane,
    source: ReplicaSet,
    target: ReplicaSet,
    databases: Databases,
}

/// What was used in some time.
struct Spent {
    name: &'static str,
    seconds: f64,
    usage: Usage,
    cores: f64,
    connections: (u32, u32),
    reads: usize,
    writes: usize,
    lag: Option<Duration>,
}

/// Prints what is going on, so that nobody thinks it hangs.
fn say(line: &str) {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let begun = BEGUN.get_or_init(Instant::now);
    eprintln!("bench {:>5.1}s: {line}", begun.elapsed().as_secs_f64());
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::read();
    let all = arguments.idle + arguments.busy;
    let settle = Duration::from_secs(arguments.settle);
    say("starting the servers");
    let server = || {
        ReplicaSet::builder()
            .version(Version::V6_0_27)
            .cache_gb(CACHE_GB)
            .start()
    };
    let plane = ControlPlane::builder().audit(true).start();
    let (plane, source, target) = tokio::try_join!(plane, server(), server())?;
    let databases = Databases::fill(source.client().await?, arguments.idle, arguments.busy).await?;
    let bench = Bench {
        plane,
        source,
        target,
        databases,
    };
    let kubeconfig = bench.prepare().await?;
    say(&format!("{all} resources are there; starting the operator"));

    let operator = Operator::start(&kubeconfig)?;
    let empty = operator.usage()?;
    let first = operator.all_live(all).await?;
    say(&format!(
        "all are live and copied after {:.1} s",
        first.as_secs_f64()
    ));
    tokio::time::sleep(settle).await;
    operator.stop().await?;

    let operator = Operator::start(&kubeconfig)?;
    let again = operator.all_live(all).await?;
    say(&format!(
        "live again {:.1} s after a restart",
        again.as_secs_f64()
    ));
    let ready = bench.all_ready(&operator).await?;
    say(&format!(
        "all are Ready {:.1} s after it",
        ready.as_secs_f64()
    ));
    tokio::time::sleep(settle).await;

    let seconds = Duration::from_secs(arguments.seconds);
    let idle = bench.spend("idle", &operator, None, seconds).await?;
    let mut spent = vec![idle];
    if arguments.busy > 0 {
        spent.push(
            bench
                .spend("busy", &operator, Some(arguments.rate), seconds)
                .await?,
        );
        bench
            .databases
            .arrived(&bench.target.client().await?)
            .await?;
    }
    operator.stop().await?;

    println!(
        "{} idle mirrors, {} busy with {} updates/s each",
        arguments.idle, arguments.busy, arguments.rate
    );
    println!(
        "  first start, until all are copied and live  {:>8.1} s",
        first.as_secs_f64()
    );
    println!(
        "  restart, until all are live                 {:>8.1} s",
        again.as_secs_f64()
    );
    println!(
        "  restart, until all resources say Ready      {:>8.1} s",
        ready.as_secs_f64()
    );
    println!(
        "  memory with nothing to do yet               {:>8.1} MiB",
        mib(empty.resident)
    );
    for spent in &spent {
        spent.print(all, empty);
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "memory is far below 2^52 bytes")]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}

impl Spent {
    fn print(&self, mirrors: usize, empty: Usage) {
        let each = mib(self.usage.resident.saturating_sub(empty.resident))
            / f64::from(u32::try_from(mirrors.max(1)).unwrap_or(u32::MAX));
        let minutes = self.seconds / 60.0;
        let per_minute =
            |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / minutes;
        println!("  {}:", self.name);
        println!(
            "    memory, resident                          {:>8.1} MiB, {each:.2} of each mirror",
            mib(self.usage.resident)
        );
        println!(
            "    CPU                                       {:>8.3} cores",
            self.cores
        );
        println!(
            "    connections to the source, the target     {:>8} {:>6}",
            self.connections.0, self.connections.1
        );
        println!(
            "    reads of the API server a minute          {:>8.1}",
            per_minute(self.reads)
        );
        println!(
            "    writes to it a minute                     {:>8.1}",
            per_minute(self.writes)
        );
        if let Some(lag) = self.lag {
            println!(
                "    longest lag of a busy mirror              {:>8.0} ms",
                lag.as_secs_f64() * 1000.0
            );
        }
    }
}

impl Bench {
    /// The CRD, the operator's rights, the Secrets and the resources; returns the operator's
    /// kubeconfig.
    async fn prepare(&self) -> Result<std::path::PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let crd = root.join("crds/mongomirrors.yaml");
        let crd = crd.to_string_lossy();
        self.plane
            .kubectl(&["apply", "-f", &crd])
            .await?
            .checked()?;
        let established = [
            "wait",
            "--for=condition=Established",
            "crd/mongomirrors.mongomirror.dev",
        ];
        self.plane.kubectl(&established).await?.checked()?;
        let roles = root.join("charts/mongomirror/files/clusterrole.yaml");
        let kubeconfig = self.plane.operator_kubeconfig(&roles).await?;
        let secret = |name: &str, uri: String| {
            json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": "default"},
                "stringData": {"uri": uri},
            })
        };
        let mut items = vec![
            secret("source", self.source.uri()),
            secret("target", self.target.uri()),
        ];
        for name in self.databases.names() {
            items.push(json!({
                "apiVersion": "mongomirror.dev/v1alpha1",
                "kind": "MongoMirror",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "source": {"uriSecretRef": {"name": "source"}, "database": name},
                    "target": {"uriSecretRef": {"name": "target"}},
                },
            }));
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let apply = ["apply", "-f", "-"];
        self.plane
            .kubectl_stdin(&apply, &list.to_string())
            .await?
            .checked()?;
        Ok(kubeconfig)
    }

    /// Since the operator's start, until every resource says so.
    async fn all_ready(&self, operator: &Operator) -> Result<Duration> {
        // Asking for all of them again and again would be most of what the API server has to do.
        let get = [
            "get",
            "mongomirrors",
            "--namespace=default",
            "--field-selector=status.phase!=Mirroring",
            "--output=name",
        ];
        loop {
            let others = self.plane.kubectl(&get).await?.checked()?;
            operator.still_hoped_for()?;
            if others.trim().is_empty() && self.is_ready().await? {
                return Ok(operator.since_start());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Whether the condition `Ready` of all resources is true.
    async fn is_ready(&self) -> Result<bool> {
        let ready = "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].status}\
                     {\"\\n\"}{end}";
        let get = ["get", "mongomirrors", "--namespace=default", "-o", ready];
        let all = self.plane.kubectl(&get).await?.checked()?;
        Ok(all.lines().all(|status| status == "True"))
    }

    async fn spend(
        &self,
        name: &'static str,
        operator: &Operator,
        rate: Option<u32>,
        time: Duration,
    ) -> Result<Spent> {
        say(&format!("measuring {} s: {name}", time.as_secs()));
        let (from, asked) = (operator.usage()?, self.plane.operator_requests()?.len());
        let begun = Instant::now();
        let mut lag = None;
        match rate {
            None => tokio::time::sleep(time).await,
            Some(rate) => {
                let look = async {
                    loop {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        lag = lag.max(operator.longest_lag("busy").await.unwrap_or_default());
                    }
                };
                tokio::select! {
                    written = self.databases.write(rate, time) => written?,
                    () = look => {}
                }
            }
        }
        let elapsed = begun.elapsed();
        let usage = operator.usage()?;
        let requests = self.plane.operator_requests()?;
        let is_read = |verb: &str| matches!(verb, "get" | "list" | "watch");
        let (reads, writes): (Vec<_>, Vec<_>) = requests[asked..]
            .iter()
            .partition(|request| is_read(&request.verb));
        let cpu = usage.cpu.saturating_sub(from.cpu);
        Ok(Spent {
            name,
            seconds: elapsed.as_secs_f64(),
            usage,
            cores: cpu.as_secs_f64() / elapsed.as_secs_f64(),
            connections: (
                load::connections(&self.source.client().await?).await?,
                load::connections(&self.target.client().await?).await?,
            ),
            reads: reads.len(),
            writes: writes.len(),
            lag,
        })
    }
}
