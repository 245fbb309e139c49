//! Real MongoDB servers and a real Kubernetes control plane for tests, benches and the demo.
//!
//! ```no_run
//! # async fn example() -> testbed::Result<()> {
//! let set = testbed::ReplicaSet::builder().nodes(3).auth(true).start().await?;
//! let client = set.client().await?;
//! set.step_down().await?;
//! # Ok(()) }
//! ```
//!
//! The map:
//!
//! - `mongod/`: MongoDB, as [`ReplicaSet`] or [`Standalone`], made of [`Node`]s
//! - `control_plane/`: Kubernetes, as [`ControlPlane`], and [`Helm`]
//! - `node/`: a node for it that runs pods, as [`Cluster`]
//! - `chart.rs`: what is made from the Helm chart
//! - `certificates.rs`: certificates made on the spot by an [`Authority`]
//! - `tools/`: where the servers' programs come from
//! - `cache.rs`: the cache of programs, shared by all processes of a user
//! - `proxy.rs`: a network that can be cut, as [`Proxy`]
//! - `disk.rs`: a disk that can be full, as [`Disk`]
//! - `dns.rs`: names that only chosen processes see, as [`Dns`]
//! - `process.rs`, `spawn.rs`, `scratch.rs`, `port.rs`: processes, temporary folders and ports
//!   that are gone in the end, whichever way a test ends

mod cache;
mod certificates;
pub mod chart;
mod control_plane;
mod disk;
mod dns;
mod error;
mod mongod;
mod node;
mod port;
mod process;
mod progress;
mod proxy;
mod scratch;
mod spawn;
mod tools;

pub use cache::cache_folder;
pub use certificates::{Authority, Certificate};
pub use control_plane::{ControlPlane, ControlPlaneBuilder, Helm, Output, Request};
pub use disk::Disk;
pub use dns::{Dns, Entry};
pub use error::{Error, Result};
pub use mongod::{Builder, Node, ROOT_PASSWORD, ROOT_USER, ReplicaSet, Standalone};
pub use node::{Cluster, Image, PodSet};
pub use process::Process;
pub use proxy::{Connection, Direction, Proxy};
pub use scratch::scratch_root;
pub use tools::{kubernetes::Program, mongod::Version};
