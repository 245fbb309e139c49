//! Collection and index commands on the target: each idempotent, decided by what is there.
//!
//! A command is not atomic with the checkpoint, so after a crash it is met again. What already is
//! as the command wants it is done (`facts` mongodb 6.8).

use bson::{Document, doc};

use crate::engine::command::Commands;
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::state::{BUCKETS, uuid_of};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

/// Scripts for `$where` and `$function`: the one system collection that nothing else brings along.
pub const SCRIPTS: &str = "system.js";

/// What they are called for the moment until they are dropped; after a crash in that moment, until
/// they are dropped again.
pub const DROPPED: &str = "mongomirror.dropped";

/// Creates a collection or a view with these options.
///
/// # Errors
/// What the exchange met, other than that it is there already.
pub async fn create(target: &Commands, name: &str, options: &Document) -> Result<()> {
    let mut options = options.clone();
    // Servers make such a collection from a clustered one only, and not at once.
    let size = match options.get_bool("capped") {
        Ok(true) if options.contains_key("clusteredIndex") => {
            options.remove("capped");
            options.remove("size")
        }
        _ => None,
    };
    let mut command = doc! {"create": name};
    command.extend(options);
    command.insert("writeConcern", doc! {"w": "majority"});
    let outcome = target.write(Write::CreateCollection, command).await;
    unless(outcome, &[code::NAMESPACE_EXISTS])?;
    let Some(size) = size else {
        return Ok(());
    };
    let concern = doc! {"w": "majority"};
    let convert = doc! {"convertToCapped": name, "size": size, "writeConcern": concern};
    target.write(Write::CreateCollection, convert).await?;
    Ok(())
}

/// A collection's UUID on the target, if it is there.
///
/// # Errors
/// What the exchange met.
pub async fn uuid(target: &Commands, name: &str) -> Result<Option<Uuid>> {
    let command = doc! {"listCollections": 1, "filter": {"name": name}};
    let reply = target.read("look at a collection", command).await?;
    let uuid = |reply: &Document| {
        let batch = reply
            .get_document("cursor")
            .ok()?
            .get_array("firstBatch")
            .ok()?;
        let info = batch.first()?.as_document()?.get_document("info").ok()?;
        uuid_of(info.get("uuid")?)
    };
    Ok(uuid(&reply))
}

/// Drops a collection or a view.
///
/// # Errors
/// What the exchange met, other than that it is gone already.
pub async fn drop(target: &Commands, name: &str) -> Result<()> {
    let mut name = name;
    if name == SCRIPTS {
        // May not be dropped under its own name, but under another one.
        rename(target, SCRIPTS, DROPPED).await?;
        name = DROPPED;
    }
    let command = doc! {"drop": name, "writeConcern": {"w": "majority"}};
    let outcome = target.write(Write::DropCollection, command).await;
    // What may not be called so is not there.
    unless(
        outcome,
        &[code::NAMESPACE_NOT_FOUND, code::INVALID_NAMESPACE],
    )
}

/// Renames a collection, over another one if there is one.
///
/// # Errors
/// What the exchange met, other than that the old name is gone already.
pub async fn rename(target: &Commands, from: &str, to: &str) -> Result<()> {
    let database = target.db.name();
    let command = doc! {
        "renameCollection": format!("{database}.{from}"),
        "to": format!("{database}.{to}"),
        "dropTarget": true,
        "writeConcern": {"w": "majority"},
    };
    let admin = Commands {
        side: Side::Target,
        db: target.db.client().database("admin"),
    };
    let outcome = admin.write(Write::RenameCollection, command).await;
    unless(outcome, &[code::NAMESPACE_NOT_FOUND])
}

/// Changes options.
///
/// # Errors
/// What the exchange met.
pub async fn modify(target: &Commands, name: &str, changes: &Document) -> Result<()> {
    let mut command = doc! {"collMod": name};
    command.extend(changes.clone());
    command.insert("writeConcern", doc! {"w": "majority"});
    target.write_long(Write::ModifyCollection, command).await?;
    Ok(())
}

/// The option of `collMod` that says so; older servers do not know it.
pub const MIXED_SCHEMA: &str = "timeseriesBucketsMayHaveMixedSchemaData";

/// Lets a time series hold buckets in which a field has values of several types; see
/// [`code::MIXED_SCHEMA`]. `buckets` is the collection of its buckets.
///
/// # Errors
/// What the exchange met.
pub async fn allow_mixed_schema(target: &Commands, buckets: &str) -> Result<()> {
    let name = buckets.strip_prefix(BUCKETS).unwrap_or(buckets);
    let allowed = doc! {MIXED_SCHEMA: true};
    modify(target, name, &allowed).await
}

/// Drops an index by name.
///
/// # Errors
/// What the exchange met, other than that it is gone already.
pub async fn drop_index(target: &Commands, name: &str, index: &str) -> Result<()> {
    let command = doc! {"dropIndexes": name, "index": index, "writeConcern": {"w": "majority"}};
    let outcome = target.write(Write::DropIndex, command).await;
    unless(outcome, &[code::INDEX_NOT_FOUND, code::NAMESPACE_NOT_FOUND])
}

fn unless(outcome: Result<Document, Error>, accepted: &[i32]) -> Result<()> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) if error.code().is_some_and(|code| accepted.contains(&code)) => Ok(()),
        Err(error) => Err(error),
    }
}
