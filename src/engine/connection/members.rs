//! The other members of a target: they read what its primary writes.

use std::sync::Arc;
use std::time::Duration;

use bson::{Bson, Document, doc};
use futures::future::join_all;
use mongodb::options::{SelectionCriteria, ServerAddress};
use mongodb::{Client, Database};

use crate::engine::command::{Commands, within};
use crate::engine::error::Side;

/// Longest wait for a member. One that does not answer decides nothing.
const ANSWER: Duration = Duration::from_secs(2);

/// Whether all members that answer run this very version.
///
/// From some patch version on (6.0.27 does, 6.0.5 does not) a server notes in its oplog that an
/// update came as an internal delta. Older members of the same set cannot read that note inside of
/// transactions, and end.
pub async fn are_of_version(client: &Client, version: &str) -> bool {
    let admin = client.database("admin");
    let commands = Commands {
        side: Side::Target,
        db: admin.clone(),
    };
    let hello = commands.read("connect", doc! {"hello": 1});
    let Ok(Ok(hello)) = tokio::time::timeout(ANSWER, hello).await else {
        return true;
    };
    let hosts = ["hosts", "passives"]
        .into_iter()
        .filter_map(|name| hello.get_array(name).ok())
        .flatten()
        .filter_map(Bson::as_str);
    let versions = join_all(hosts.map(|host| version_of(&admin, host))).await;
    versions.into_iter().flatten().all(|found| found == version)
}

#[expect(
    clippy::disallowed_methods,
    reason = "not sent to the primary, and writes nothing"
)]
async fn version_of(admin: &Database, host: &str) -> Option<String> {
    let address = ServerAddress::parse(host).ok()?;
    let only = SelectionCriteria::Predicate(Arc::new(move |server| *server.address() == address));
    let build = admin
        .run_command(doc! {"buildInfo": 1})
        .selection_criteria(only);
    let build: Document = within(Side::Target, "read the version", ANSWER, build)
        .await
        .ok()?;
    build.get_str("version").ok().map(str::to_owned)
}
