//! Collection and index commands on the target: each idempotent, decided by what is there.
//!
//! A command is not atomic with the checkpoint, so after a crash it is met again. What already is
//! as the command wants it is done (`facts` mongodb 6.8).

use bson::{Document, doc};

use crate::engine::catalog::{list_indexes, target_index};
use crate::engine::command::Commands;
use crate::engine::error::{Error, Result, Side, code};

/// Creates a collection or a view with these options.
///
/// # Errors
/// What the exchange met, other than that it is there already.
pub async fn create(target: &Commands, name: &str, options: &Document) -> Result<()> {
    let mut command = doc! {"create": name};
    command.extend(options.clone());
    command.insert("writeConcern", doc! {"w": "majority"});
    let outcome = target.run("create a collection", command).await;
    unless(outcome, &[code::NAMESPACE_EXISTS])
}

/// Drops a collection or a view.
///
/// # Errors
/// What the exchange met, other than that it is gone already.
pub async fn drop(target: &Commands, name: &str) -> Result<()> {
    let command = doc! {"drop": name, "writeConcern": {"w": "majority"}};
    let outcome = target.run("drop a collection", command).await;
    unless(outcome, &[code::NAMESPACE_NOT_FOUND])
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
    let outcome = admin.run("rename a collection", command).await;
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
    target.run_long("change a collection", command).await?;
    Ok(())
}

/// An index that could not be built, with the server's reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexProblem {
    /// The index's name.
    pub index: String,
    /// Why it is not there, or what is different about it.
    pub reason: String,
}

/// Builds indexes as specified on the source; returns those that are not there, or not the same.
///
/// # Errors
/// If the target could not be reached. An index that the server refuses is no error: it is
/// reported, and the mirror goes on.
pub async fn create_indexes(
    target: &Commands,
    name: &str,
    indexes: &[Document],
    collated: bool,
) -> Result<Vec<IndexProblem>> {
    let mut problems = Vec::new();
    for index in indexes {
        let (spec, differs) = target_index(index, collated);
        let index_name = spec.get_str("name").unwrap_or_default().to_owned();
        let mut outcome = build(target, name, &spec).await;
        if let Err(error) = &outcome
            && matches!(
                error.code(),
                Some(code::INDEX_OPTIONS_CONFLICT | code::INDEX_KEY_SPECS_CONFLICT)
            )
        {
            // What the source says now decides: the old one has to go.
            drop_conflicting(target, name, &spec).await?;
            outcome = build(target, name, &spec).await;
        }
        match outcome {
            Ok(()) => {}
            Err(error) if !error.is_refused_definition() => return Err(error),
            Err(error) => problems.push(IndexProblem {
                index: index_name.clone(),
                reason: error.to_string(),
            }),
        }
        if let Some(reason) = differs {
            problems.push(IndexProblem {
                index: index_name,
                reason: reason.to_owned(),
            });
        }
    }
    Ok(problems)
}

async fn build(target: &Commands, name: &str, spec: &Document) -> Result<()> {
    let command = doc! {
        "createIndexes": name,
        "indexes": [spec],
        "writeConcern": {"w": "majority"},
    };
    target.run_long("build an index", command).await?;
    Ok(())
}

async fn drop_conflicting(target: &Commands, name: &str, spec: &Document) -> Result<()> {
    for there in list_indexes(&target.db, name, Side::Target).await? {
        if there.get("name") == spec.get("name") || there.get("key") == spec.get("key") {
            drop_index(target, name, there.get_str("name").unwrap_or_default()).await?;
        }
    }
    Ok(())
}

/// Drops an index by name.
///
/// # Errors
/// What the exchange met, other than that it is gone already.
pub async fn drop_index(target: &Commands, name: &str, index: &str) -> Result<()> {
    let command = doc! {"dropIndexes": name, "index": index, "writeConcern": {"w": "majority"}};
    let outcome = target.run("drop an index", command).await;
    unless(outcome, &[code::INDEX_NOT_FOUND, code::NAMESPACE_NOT_FOUND])
}

fn unless(outcome: Result<Document, Error>, accepted: &[i32]) -> Result<()> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) if error.code().is_some_and(|code| accepted.contains(&code)) => Ok(()),
        Err(error) => Err(error),
    }
}
