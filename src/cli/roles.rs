//! `mongomirror roles`

use serde_json::{Value, json};

use super::printer::Printer;
use crate::engine::connection::privileges;
use crate::engine::state::{BUCKETS, CHECKPOINTS, looked_up_in};
use crate::resource::validation::{DEFAULT_STATE_DATABASE, SpecError, check_database, is_reserved};

/// Print the MongoDB roles that a mirror's users need, and nothing more.
///
/// Paste what it prints into mongosh, on the source and on the target.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("side").args(["source", "target"]).required(true).multiple(true)))]
pub struct Arguments {
    /// The source database: prints the role that reads it.
    #[arg(long, value_name = "DATABASE", value_parser = source_database)]
    source: Option<String>,

    /// The target database: prints the role that writes it, and the mirror's own notes.
    #[arg(long, value_name = "DATABASE", value_parser = target_database)]
    target: Option<String>,

    /// The database in which the mirror keeps its memory: `spec.target.stateDatabase`. Also read
    /// on the source, for rings.
    #[arg(
        long,
        value_name = "DATABASE",
        value_parser = database,
        default_value = DEFAULT_STATE_DATABASE,
    )]
    state_database: String,

    /// A time series of the source. May be given several times.
    #[arg(long, value_name = "COLLECTION")]
    time_series: Vec<String>,

    /// Print JSON: a list of the documents of `createRole`.
    #[arg(long)]
    json: bool,
}

fn database(name: &str) -> Result<String, SpecError> {
    check_database("the name", name)
}

fn source_database(name: &str) -> Result<String, SpecError> {
    match is_reserved(name) {
        true => Err(SpecError::SourceForbidden(name.to_owned())),
        false => database(name),
    }
}

fn target_database(name: &str) -> Result<String, SpecError> {
    match is_reserved(name) {
        true => Err(SpecError::TargetForbidden(name.to_owned())),
        false => database(name),
    }
}

pub fn execute(arguments: &Arguments, printer: &Printer) {
    let (memory, series) = (&arguments.state_database, &arguments.time_series);
    let source = arguments.source.as_deref();
    let source = source.map(|name| source_role(name, memory, series));
    let target = arguments.target.as_deref();
    let target = target.map(|name| target_role(name, memory, series));
    if arguments.json {
        let all: Vec<&Value> = source.iter().chain(&target).collect();
        printer.result(&format!("{:#}\n", json!(all)));
        return;
    }
    let mut text = String::new();
    for (side, role) in [("source", source), ("target", target)] {
        if let Some(role) = role {
            text += &commands(side, &role);
        }
    }
    printer.result(&text);
}

/// The role, and a user that has it, for mongosh.
fn commands(side: &str, role: &Value) -> String {
    let name = role["createRole"].as_str().unwrap_or_default();
    let mut text = format!(
        "// On the {side}.\ndb.getSiblingDB(\"admin\").runCommand({{\n  createRole: \"{name}\",\n  \
         roles: [],\n  privileges: [\n"
    );
    for privilege in role["privileges"].as_array().into_iter().flatten() {
        let (resource, actions) = (&privilege["resource"], &privilege["actions"]);
        text += &format!("    {{resource: {resource},\n     actions: {actions}}},\n");
    }
    text += &format!(
        "  ],\n}})\nprint(\"\\nA password for the user {name}:\")\n\
         db.getSiblingDB(\"admin\").createUser({{\n  user: \"{name}\",\n  \
         pwd: passwordPrompt(),\n  roles: [\"{name}\"],\n}})\n"
    );
    text
}

fn on(database: &str, collection: &str, actions: &[&str]) -> Value {
    json!({"resource": {"db": database, "collection": collection}, "actions": actions})
}

fn on_buckets(database: &str, series: &[String], actions: &[&str]) -> Vec<Value> {
    let names = series.iter().map(|name| format!("{BUCKETS}{name}"));
    names.map(|name| on(database, &name, actions)).collect()
}

fn role(side: &str, database: &str, privileges: Vec<Value>) -> Value {
    let name = format!("mongomirror-{side}-{database}");
    json!({"createRole": name, "privileges": privileges, "roles": []})
}

/// Reads one database and its changes; and tells which replica set it is, how far its oplog
/// reaches back, and whether the database is a mirror's target itself.
fn source_role(database: &str, memory: &str, series: &[String]) -> Value {
    const SYSTEM: [&str; 3] = ["find", "listIndexes", "collStats"];
    let mut privileges = vec![
        on(database, "", privileges::READ),
        on(database, "system.js", &SYSTEM),
        on("local", "oplog.rs", &["collStats"]),
        json!({"resource": {"cluster": true}, "actions": ["replSetGetConfig", "serverStatus"]}),
    ];
    let memories = looked_up_in(memory).into_iter();
    privileges.extend(memories.map(|memory| on(memory, CHECKPOINTS, &["find"])));
    privileges.extend(on_buckets(database, series, &SYSTEM));
    role("source", database, privileges)
}

/// Writes one database, whatever its validators say, and the mirror's own notes; and tells which
/// replica set it is, without which no ring is seen.
fn target_role(database: &str, memory: &str, series: &[String]) -> Value {
    // Renaming takes dropCollection from where, and insert and createIndex to where; scripts are
    // renamed before they are dropped.
    let scripts = [privileges::WRITE, &["dropCollection"]].concat();
    let mut privileges = vec![
        on(database, "", &privileges::write_all()),
        on(database, "system.js", &scripts),
        on(memory, "", privileges::NOTES),
        json!({"resource": {"cluster": true}, "actions": ["replSetGetConfig"]}),
    ];
    privileges.extend(on_buckets(database, series, privileges::WRITE));
    role("target", database, privileges)
}
