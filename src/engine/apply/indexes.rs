//! Indexes on the target: built as ordinary ones, made unique once the mirror has caught up.
//!
//! Every step looks at what is there, so that it may be cut off and met again (`facts` mongodb
//! 6.4, 6.8). An index that the server refuses is not an error: it is told by name and tried
//! again later, and the mirror goes on.

use bson::{Document, doc};

use super::ddl::{drop_index, modify};
use crate::engine::bson::definition::{Definition, is_same};
use crate::engine::catalog::{is_disarmed, list_indexes, ordinary_index, whole_index};
use crate::engine::command::Commands;
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::state::{Index, Stage};
use crate::engine::writes::Write;

/// How far an index came.
#[derive(Clone, PartialEq, Debug)]
pub struct Tended {
    /// Its name.
    pub name: String,
    /// Where it is now.
    pub stage: Stage,
    /// What the server said against more.
    pub problem: Option<String>,
}

/// Whether there is something left to do for an index; `enforce` once the mirror has caught up.
pub fn is_due(index: &Index, enforce: bool) -> bool {
    match index.stage {
        Stage::Missing => true,
        Stage::Ordinary => enforce,
        Stage::Whole => false,
    }
}

/// Builds what is missing, and with `enforce` makes unique what shall be.
///
/// # Errors
/// If the target could not be reached.
pub async fn tend(
    target: &Commands,
    collection: &str,
    indexes: &[Index],
    collated: bool,
    enforce: bool,
) -> Result<Vec<Tended>> {
    let work = Work {
        target,
        collection,
        indexes,
        collated,
        enforce,
    };
    let mut all = Vec::new();
    for index in indexes.iter().filter(|index| is_due(index, enforce)) {
        let mut tended = Tended {
            name: index.name().to_owned(),
            stage: index.stage,
            problem: None,
        };
        match work.advance(index, &mut tended).await {
            Err(error) if error.is_connection() => return Err(error),
            Err(error) => tended.problem = Some(error.to_string()),
            Ok(()) => {}
        }
        all.push(tended);
    }
    Ok(all)
}

struct Work<'a> {
    target: &'a Commands,
    collection: &'a str,
    indexes: &'a [Index],
    collated: bool,
    enforce: bool,
}

impl Work<'_> {
    async fn advance(&self, index: &Index, tended: &mut Tended) -> Result<()> {
        if tended.stage == Stage::Missing {
            tended.stage = self.build(index).await?;
        }
        if tended.stage == Stage::Ordinary && (self.enforce || !index.is_enforcing()) {
            match self.make_whole(index).await {
                // The writer had to remove it; what that writes down may be lost in a crash.
                Err(error) if error.code() == Some(code::INDEX_NOT_FOUND) => {
                    tended.stage = Stage::Missing;
                    tended.stage = self.build(index).await?;
                    self.make_whole(index).await?;
                }
                outcome => outcome?,
            }
            tended.stage = Stage::Whole;
        }
        Ok(())
    }

    /// Builds the ordinary form, unless the index is there already.
    async fn build(&self, index: &Index) -> Result<Stage> {
        let ordinary = Definition::from(ordinary_index(&index.spec, self.collated));
        match self.create(&ordinary).await {
            Err(error) if is_conflict(&error) => {}
            outcome => return outcome.map(|()| Stage::Ordinary),
        }
        for there in list_indexes(&self.target.db, self.collection, Side::Target).await? {
            let name = there.get_str("name").unwrap_or_default();
            let is_it = Definition::from(ordinary_index(&there, self.collated)) == ordinary;
            if is_it && is_disarmed(&there) {
                return Ok(Stage::Ordinary);
            }
            let same = |option| match (there.get(option), ordinary.get(option)) {
                (Some(there), Some(wanted)) => is_same(there, wanted),
                _ => false,
            };
            let is_another = self.indexes.iter().any(|other| other.name() == name);
            if same("name") || (same("key") && !is_another) {
                // What the source says now decides: the old one has to go.
                drop_index(self.target, self.collection, name).await?;
            }
        }
        match self.create(&ordinary).await {
            // On the source another index has the same keys, and only one of both is unique: as
            // ordinary ones they cannot be told apart.
            Err(error) if is_conflict(&error) && index.is_enforcing() && self.enforce => {
                self.create(&whole_index(&index.spec, self.collated))
                    .await?;
                Ok(Stage::Whole)
            }
            Err(error) if is_conflict(&error) && !self.enforce => Ok(Stage::Missing),
            outcome => outcome.map(|()| Stage::Ordinary),
        }
    }

    /// Built when a majority has it: by default the server waits for all members, also for one that
    /// is down, and the mirror with it.
    async fn create(&self, spec: &Document) -> Result<()> {
        let command = doc! {
            "createIndexes": self.collection,
            "indexes": [spec],
            "commitQuorum": "majority",
            "writeConcern": {"w": "majority"},
        };
        self.target.write_long(Write::BuildIndex, command).await?;
        Ok(())
    }

    /// The server lets no new duplicates in, looks for old ones, and marks the index: a second for
    /// some million keys. Both steps do nothing where they were done.
    async fn make_whole(&self, index: &Index) -> Result<()> {
        let is = |option| index.spec.get_bool(option).unwrap_or(false);
        if is("unique") || is("prepareUnique") {
            let change = doc! {"index": {"name": index.name(), "prepareUnique": true}};
            modify(self.target, self.collection, &change).await?;
        }
        if is("unique") {
            let change = doc! {"index": {"name": index.name(), "unique": true}};
            modify(self.target, self.collection, &change).await?;
        }
        Ok(())
    }
}

fn is_conflict(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(code::INDEX_OPTIONS_CONFLICT | code::INDEX_KEY_SPECS_CONFLICT)
    )
}
