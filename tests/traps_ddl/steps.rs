//! Commands that most tables use.

use bson::{Document, doc};

use crate::common::ddl::Step;
use crate::common::ddl::Step::Run;

pub fn create(name: &str, options: Document) -> Step {
    let mut command = doc! {"create": name};
    command.extend(options);
    Run(command)
}

pub fn drop_collection(name: &str) -> Step {
    Run(doc! {"drop": name})
}

pub fn index(name: &str, indexes: impl IntoIterator<Item = Document>) -> Step {
    let indexes: Vec<Document> = indexes.into_iter().collect();
    Run(doc! {"createIndexes": name, "indexes": indexes})
}

pub fn modify(name: &str, changes: Document) -> Step {
    let mut command = doc! {"collMod": name};
    command.extend(changes);
    Run(command)
}

pub fn caseless() -> Document {
    doc! {"collation": {"locale": "de", "strength": 2}}
}
