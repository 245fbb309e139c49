//! What a mirror's users may do, asked before anything is written.

use bson::{Document, doc};
use mongodb::Client;

use crate::engine::command::Commands;
use crate::engine::error::{Error, Missing, Result, Side};

/// What is done with the ordinary collections of the source database.
pub const READ: &[&str] = &[
    "find",
    "changeStream",
    "listCollections",
    "listIndexes",
    "collStats",
];

/// What is done with the documents and indexes of a collection of the target database, of a system
/// collection as well.
pub const WRITE: &[&str] = &[
    "find",
    "insert",
    "update",
    "remove",
    "bypassDocumentValidation",
    "createIndex",
    "dropIndex",
    "listIndexes",
    "collMod",
];

/// What is done with its collections beside that.
const COLLECTIONS: &[&str] = &[
    "convertToCapped",
    "createCollection",
    "dropCollection",
    "listCollections",
];

/// All that is done with the ordinary collections of the target database.
pub fn write_all() -> Vec<&'static str> {
    [WRITE, COLLECTIONS].concat()
}

/// What is done with the mirror's own notes. Collections come with the first document.
pub const NOTES: &[&str] = &["find", "insert", "update", "remove"];

/// Whether the client's user may do all this with the ordinary collections of these databases.
/// Passes if that cannot be told, as without access control.
///
/// # Errors
/// [`Error::MissingPrivileges`].
pub async fn check(client: &Client, side: Side, needed: &[(&str, &[&str])]) -> Result<()> {
    let admin = Commands {
        side,
        db: client.database("admin"),
    };
    let command = doc! {"connectionStatus": 1, "showPrivileges": true};
    let status = match admin.read("look at the user's privileges", command).await {
        Ok(status) => status,
        // Whatever it is, the next step meets it, too.
        Err(error) => {
            tracing::debug!(%error, "what the user may do is not known");
            return Ok(());
        }
    };
    let missing = missing(&status, needed);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::MissingPrivileges { side, missing })
}

fn missing(status: &Document, needed: &[(&str, &[&str])]) -> Vec<Missing> {
    let Ok(info) = status.get_document("authInfo") else {
        return Vec::new();
    };
    let of = |name| info.get_array(name).map(Vec::as_slice).unwrap_or_default();
    if of("authenticatedUsers").is_empty() {
        return Vec::new();
    }
    let privileges = of("authenticatedUserPrivileges");
    let held: Vec<_> = privileges
        .iter()
        .filter_map(|it| it.as_document())
        .collect();
    let lacks = |(database, actions): &(&str, &[&str])| {
        let may = |action: &str| held.iter().any(|one| grants(one, database, action));
        let actions: Vec<String> = actions
            .iter()
            .filter(|action| !may(action))
            .map(|action| (*action).to_owned())
            .collect();
        (!actions.is_empty()).then(|| Missing {
            database: (*database).to_owned(),
            actions,
        })
    };
    needed.iter().filter_map(lacks).collect()
}

/// Whether a privilege is about any ordinary collection of the database: who grants collection by
/// collection knows which ones are there.
fn grants(privilege: &Document, database: &str, action: &str) -> bool {
    let Ok(resource) = privilege.get_document("resource") else {
        return false;
    };
    let is_of_it = resource.get_bool("anyResource").unwrap_or(false)
        || resource
            .get_str("db")
            .is_ok_and(|db| db.is_empty() || db == database)
            && resource
                .get_str("collection")
                .is_ok_and(|collection| !collection.starts_with("system."));
    let actions = privilege.get_array("actions");
    is_of_it
        && actions.is_ok_and(|actions| {
            let mut names = actions.iter().filter_map(|it| it.as_str());
            names.any(|it| it == action || it == "anyAction")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(privileges: Vec<Document>) -> Document {
        doc! {"authInfo": {
            "authenticatedUsers": [{"user": "mirror", "db": "admin"}],
            "authenticatedUserPrivileges": privileges,
        }}
    }

    fn on(database: &str, collection: &str, actions: &[&str]) -> Document {
        doc! {"resource": {"db": database, "collection": collection}, "actions": actions}
    }

    const NEEDED: &[(&str, &[&str])] = &[("shop", &["find", "insert"]), ("notes", &["find"])];

    #[test]
    fn what_is_missing_is_told_for_each_database() {
        let status = of(vec![
            on("shop", "", &["find", "remove"]),
            on("shop", "system.js", &["insert"]),
            on("other", "", &["insert"]),
        ]);
        let found = missing(&status, NEEDED);
        let found: Vec<_> = found
            .iter()
            .map(|it| (&*it.database, &it.actions))
            .collect();
        let (insert, find) = (vec!["insert".to_owned()], vec!["find".to_owned()]);
        assert_eq!(found, [("shop", &insert), ("notes", &find)]);
    }

    #[test]
    fn wider_privileges_are_enough_and_so_is_no_access_control() {
        for held in [
            vec![on("", "", &["find", "insert"])],
            vec![
                on("shop", "orders", &["find", "insert"]),
                on("notes", "", &["find"]),
            ],
            vec![doc! {"resource": {"anyResource": true}, "actions": ["anyAction"]}],
        ] {
            assert!(missing(&of(held), NEEDED).is_empty());
        }
        let nobody = doc! {"authInfo": {"authenticatedUsers": []}};
        assert!(missing(&nobody, NEEDED).is_empty());
    }
}
