//! One server of each version, shared by the tests of a file; each test has a database of its own.

use std::sync::Arc;

use testbed::{ReplicaSet, Version};
use tokio::sync::Mutex;

/// Servers live as long as the process: the test bed ends them with it.
static SERVERS: Mutex<Vec<(Version, Arc<ReplicaSet>)>> = Mutex::const_new(Vec::new());

/// The shared server of this version.
pub async fn shared(version: Version) -> Arc<ReplicaSet> {
    let mut servers = SERVERS.lock().await;
    if let Some((_, set)) = servers.iter().find(|(there, _)| *there == version) {
        return Arc::clone(set);
    }
    let set = ReplicaSet::builder().version(version).start().await;
    let set = Arc::new(set.expect("a server"));
    servers.push((version, Arc::clone(&set)));
    set
}

/// Makes tests of functions that take a version: one for each.
#[macro_export]
macro_rules! on_both_versions {
    ($($name:ident),* $(,)?) => {
        mod on_6_0_5 {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$name(testbed::Version::V6_0_5).await;
                }
            )*
        }
        mod on_6_0_27 {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$name(testbed::Version::V6_0_27).await;
                }
            )*
        }
    };
}
