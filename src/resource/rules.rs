//! What the API server checks beyond shapes, as CEL rules with the sentence that `kubectl apply`
//! prints. [`validation`](super::validation) says the same for manifests that no API server sees,
//! and for resources that are older than the rules.

use kube::core::Rule;

/// The target's name, with its default.
const TARGET: &str = "(has(self.target) && has(self.target.database) ? self.target.database : \
                      self.source.database + '_backup')";

/// The database of the mirror's memory.
const STATE: &str = "(has(self.target) && has(self.target.stateDatabase) ? \
                     self.target.stateDatabase : 'mongomirror')";

/// Whether the target has a name of its own.
const IS_NAMED: &str = "(has(self.target) && has(self.target.database))";

/// Whether the target's connection string is another one than the source's.
const IS_ELSEWHERE: &str = "(has(self.target) && has(self.target.uriSecretRef) && \
                            (self.target.uriSecretRef.name != self.source.uriSecretRef.name || \
                            self.target.uriSecretRef.key != self.source.uriSecretRef.key))";

/// MongoDB's own databases, and that of the mirrors' checkpoints.
const RESERVED: &str = "['admin', 'config', 'local', 'mongomirror']";

/// What MongoDB accepts as a database name on every platform it runs on.
pub(super) fn is_database_name() -> Rule {
    Rule::new(r#"self.matches(r'^[^/\\. "$*<>:|?\x00]+$') && size(bytes(self)) <= 63"#).message(
        r#"a database name has 63 bytes at most, and holds no spaces and none of / \ . " $ * < > : | ?: write the name as `show dbs` prints it"#,
    )
}

/// What Kubernetes accepts as a Secret's name.
pub(super) fn is_secret_name() -> Rule {
    matches(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        "write the name of a Secret in the MongoMirror's namespace: lower-case letters, digits, - \
         and .",
    )
}

/// What Kubernetes accepts as a key of a Secret.
pub(super) fn is_secret_key() -> Rule {
    matches(
        "^[-._a-zA-Z0-9]+$",
        "write a key of the Secret: letters, digits, -, _ and .",
    )
}

/// Names that collections can have.
pub(super) fn are_collection_names() -> Rule {
    Rule::new(r"self.all(name, !name.contains('$') && !name.contains('\x00'))").message(
        "no collection has a name with $ in it: write collections' names; * stands for any \
         characters, and nothing else has a meaning",
    )
}

/// The whole text is of a form.
fn matches(form: &str, message: &str) -> Rule {
    Rule::new(format!("self.matches(r'{form}')")).message(message)
}

/// The source's database is the same for good.
pub(super) fn source_stays() -> Rule {
    Rule::new("self == oldSelf").message(
        "the source's database cannot be changed: create another MongoMirror for it, and delete \
         this one; its target stays where it is",
    )
}

/// The target's database is the same for good.
pub(super) fn target_stays() -> Rule {
    let before = TARGET.replace("self.", "oldSelf.");
    Rule::new(format!("{TARGET} == {before}")).message(
        "the target's database cannot be changed: create another MongoMirror for it, and delete \
         this one; its target stays where it is",
    )
}

/// The source is a database of users.
pub(super) fn source_is_a_users() -> Rule {
    Rule::new(format!("!(self.lowerAscii() in {RESERVED})")).message(
        "admin, config, local and mongomirror cannot be mirrored, they belong to MongoDB or to \
         MongoMirror itself: name a database of yours",
    )
}

/// The target is not a database of MongoDB.
pub(super) fn target_is_a_users() -> Rule {
    Rule::new(format!("!(self.lowerAscii() in {RESERVED})")).message(
        "admin, config, local and mongomirror cannot be targets, they belong to MongoDB or to \
         MongoMirror itself: write another name",
    )
}

/// Both sides are not compared all the time.
pub(super) fn interval_is_a_minute() -> Rule {
    // Longer ones overflow.
    let form = r"^([0-9]{1,6}(\.[0-9]{1,3})?h)?([0-9]{1,6}(\.[0-9]{1,3})?m)?([0-9]{1,6}(\.[0-9]{1,3})?s)?$";
    Rule::new(format!(
        "self.matches(r'{form}') && duration(self) >= duration('1m')"
    ))
    .message("write a duration as 24h, 90m or 1h30m; a minute is the least, 1m")
}

/// The default name of the target is not too long.
pub(super) fn default_target_fits() -> Rule {
    Rule::new(format!(
        "{IS_NAMED} || size(bytes(self.source.database)) <= 56"
    ))
    .message(
        "the default name of the target, the source's name and \"_backup\", is longer than 63 \
         bytes: set spec.target.database",
    )
}

/// The mirror's memory stays where it is: without it, the mirror would begin anew.
pub(super) fn state_stays() -> Rule {
    let before = STATE.replace("self.", "oldSelf.");
    Rule::new(format!("{STATE} == {before}")).message(
        "the state database cannot be changed: create another MongoMirror, and delete this one; \
         its target stays where it is",
    )
}

/// Nobody's memory is in a database of MongoDB.
pub(super) fn state_is_not_mongodbs() -> Rule {
    Rule::new("!(self.lowerAscii() in ['admin', 'config', 'local'])").message(
        "admin, config and local belong to MongoDB: write another name for the state database",
    )
}

/// A mirror does not copy its own memory, nor over it.
pub(super) fn state_is_apart() -> Rule {
    Rule::new(format!(
        "!({STATE}.lowerAscii() in [{TARGET}.lowerAscii(), self.source.database.lowerAscii()])"
    ))
    .message(
        "the state database is the source or the target itself: set spec.target.stateDatabase to a \
         name of its own, or leave the field out",
    )
}

/// Source and target are two databases.
pub(super) fn two_databases() -> Rule {
    Rule::new(format!(
        "{IS_ELSEWHERE} || {TARGET}.lowerAscii() != self.source.database.lowerAscii()"
    ))
    .message(
        "source and target are the same database of the same deployment: set \
         spec.target.database to another name, or spec.target.uriSecretRef to another deployment",
    )
}
