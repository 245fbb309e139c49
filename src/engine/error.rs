//! What can go wrong with a mirror, and what it means for it.

use std::fmt;
use std::time::Duration;

use mongodb::error::{Error as DriverError, ErrorKind, WriteFailure};
use thiserror::Error;

use super::position::ClusterTime;
use super::silence;
use crate::reason::Reason;

/// Result of the engine's own functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which of the two deployments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The one that is mirrored.
    Source,
    /// The one that becomes equal to it.
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// Server error codes that decide something.
pub mod code {
    /// Unauthorized.
    pub const UNAUTHORIZED: i32 = 13;
    /// AuthenticationFailed.
    pub const AUTHENTICATION_FAILED: i32 = 18;
    /// NamespaceNotFound.
    pub const NAMESPACE_NOT_FOUND: i32 = 26;
    /// IndexNotFound.
    pub const INDEX_NOT_FOUND: i32 = 27;
    /// PathNotViable: a field within something that is no document.
    pub const PATH_NOT_VIABLE: i32 = 28;
    /// ImmutableField.
    pub const IMMUTABLE_FIELD: i32 = 66;
    /// NamespaceExists.
    pub const NAMESPACE_EXISTS: i32 = 48;
    /// InvalidNamespace.
    pub const INVALID_NAMESPACE: i32 = 73;
    /// IndexOptionsConflict.
    pub const INDEX_OPTIONS_CONFLICT: i32 = 85;
    /// IndexKeySpecsConflict.
    pub const INDEX_KEY_SPECS_CONFLICT: i32 = 86;
    /// CappedPositionLost: a live stream overtaken by truncation (`facts` mongodb 5.3).
    pub const CAPPED_POSITION_LOST: i32 = 136;
    /// SnapshotTooOld.
    pub const SNAPSHOT_TOO_OLD: i32 = 239;
    /// SnapshotUnavailable: the collection's catalog changed after the snapshot's time.
    pub const SNAPSHOT_UNAVAILABLE: i32 = 246;
    /// ChangeStreamHistoryLost.
    pub const HISTORY_LOST: i32 = 286;
    /// CollectionUUIDMismatch.
    pub const UUID_MISMATCH: i32 = 361;
    /// An unknown field of a command or a stage.
    pub const UNKNOWN_FIELD: i32 = 40415;
    /// BSONObjectTooLarge: an event above 16 MiB.
    pub const TOO_LARGE: i32 = 10334;
    /// DuplicateKey.
    pub const DUPLICATE_KEY: i32 = 11000;
    /// A pipeline was to change a document that holds one name twice.
    pub const NAME_TWICE: i32 = 7_693_400;
    /// A bucket of a time series holds a field with values of several types, which 6.0.5 stores
    /// unasked; 6.0.27 wants to be told that there are such.
    pub const MIXED_SCHEMA: i32 = 408;
}

/// What a user may not do with the collections of a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// The database.
    pub database: String,
    /// Actions, as MongoDB calls them.
    pub actions: Vec<String>,
}

/// What is missing, and the command that grants it to the role that `mongomirror roles` prints.
fn lacking(side: Side, missing: &[Missing]) -> String {
    let names = |it: &Missing| {
        format!(
            "{} on the database \"{}\"",
            it.actions.join(", "),
            it.database
        )
    };
    let privileges = missing.iter().map(|it| {
        let resource = format!("{{db: \"{}\", collection: \"\"}}", it.database);
        format!("{{resource: {resource}, actions: {:?}}}", it.actions)
    });
    // Invariant: something is missing, and the mirrored database comes first.
    let database = missing.first().map_or("", |it| &it.database);
    format!(
        "{}: if the name is right, grant it, as by db.getSiblingDB(\"admin\").grantPrivilegesToRole(\"\
         mongomirror-{side}-{database}\", [{}]); `mongomirror roles` prints all that is needed",
        missing.iter().map(names).collect::<Vec<_>>().join(", and "),
        privileges.collect::<Vec<_>>().join(", "),
    )
}

/// Why the engine could not go on.
#[derive(Debug, Error)]
pub enum Error {
    /// A server or the driver refused something.
    #[error("{side}: could not {doing}: {}", describe(.error))]
    Driver {
        /// On which side.
        side: Side,
        /// The attempted step, to be read after "could not".
        doing: &'static str,
        /// What the driver says.
        #[source]
        error: DriverError,
    },
    /// A statement of a command failed although the command as such was accepted.
    #[error("{side}: could not {doing}: {name} ({code})")]
    Write {
        /// On which side.
        side: Side,
        /// The attempted step.
        doing: &'static str,
        /// The server's error code.
        code: i32,
        /// Its name, or as much of its message as holds no data.
        name: String,
        /// Which statement of the command, counted from zero; `None` where it is about what a
        /// majority has of them.
        statement: Option<usize>,
    },
    /// The target's documents were not as expected, again and again.
    #[error("target: could not write a batch: its documents changed while they were repaired")]
    Unsettled,
    /// No answer in time.
    #[error("{side}: no answer within {} s when trying to {doing}", .after.as_secs())]
    Timeout {
        /// On which side.
        side: Side,
        /// The attempted step.
        doing: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// A reply that does not look as the protocol says.
    #[error("{side}: unexpected reply when trying to {doing}: {what}")]
    Reply {
        /// On which side.
        side: Side,
        /// The attempted step.
        doing: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A standalone server.
    #[error(
        "the {0} is a standalone server, which has neither change streams nor transactions: \
         start mongod with --replSet rs0 and run rs.initiate() once; one node is enough"
    )]
    NotReplicaSet(Side),
    /// A sharded cluster.
    #[error(
        "the {0} is a sharded cluster (mongos), which is not supported yet: mirror a replica set"
    )]
    Sharded(Side),
    /// The user may not do what a mirror does.
    #[error("the user of the {side} may not {}", lacking(*.side, .missing))]
    MissingPrivileges {
        /// On which side.
        side: Side,
        /// What it may not do, and where.
        missing: Vec<Missing>,
    },
    /// A server older than 6.0.
    #[error("the {side} runs MongoDB {version}; 6.0 or newer is needed")]
    TooOld {
        /// On which side.
        side: Side,
        /// What it runs.
        version: String,
    },
    /// Source and target are one and the same.
    #[error(
        "source and target are the same database {0:?} on the same deployment: \
         give spec.target another database or another server"
    )]
    SameDatabase(String),
    /// The target must not be used.
    #[error(
        "{0:?} can be neither the target nor the state database: it belongs to MongoDB, to this mirror \
         otherwise, or holds other mirrors' checkpoints; choose another name"
    )]
    TargetForbidden(String),
    /// The target holds data that is not ours.
    #[error(
        "the target database {database:?} is not empty (it holds {example:?}) and carries no \
         checkpoint of this mirror: drop the database, choose another one, or set \
         spec.target.onExistingData to Replace or Adopt; nothing was changed"
    )]
    TargetNotEmpty {
        /// The database's name.
        database: String,
        /// One of its collections.
        example: String,
    },
    /// The target belongs to another mirror, or this mirror had another source.
    #[error(
        "the target database {database:?} already belongs to a mirror of {owner}: choose another \
         target, or drop the database and delete the document {{_id: {database:?}}} from \
         the checkpoints in the mirror's state database"
    )]
    TargetBusy {
        /// The database's name.
        database: String,
        /// Whose it is, as the checkpoint says.
        owner: String,
    },
    /// The source's content comes from the target.
    #[error(
        "what the source {from:?} holds comes from the target {to:?} itself, by another \
         mirror: each would write the other's changes for ever. To turn the direction round, delete \
         the other MongoMirror first; where that is gone already, its document in \
         the checkpoints of its state database on the source"
    )]
    Ring {
        /// The source database's name.
        from: String,
        /// The target database's name.
        to: String,
    },
    /// The target belongs to another mirror of this name, as of another cluster.
    #[error(
        "the target database {database:?} is held by another MongoMirror of this name, with the uid \
         {holder}{}: delete one of the two, or give this one another target; it goes on by itself \
         when the other one has not written for half a minute",
        if *.is_alive { ", which is at work" } else { "" }
    )]
    TargetHeld {
        /// The database's name.
        database: String,
        /// The uid of the other one's resource.
        holder: String,
        /// Whether it was seen to write.
        is_alive: bool,
    },
    /// The source is not the one that was mirrored.
    #[error(
        "none of the collections that were mirrored from {0:?} exists there any more, but others \
         do: the source seems to have been made anew. Check the connection string; to mirror this \
         source, drop the target database and its document in the state database's checkpoints"
    )]
    SourceReplaced(String),
    /// A newer run of the same mirror took over.
    #[error("another process took this mirror over (fencing epoch {epoch} is no longer current)")]
    Fenced {
        /// The epoch that lost.
        epoch: i64,
    },
    /// The oplog no longer reaches back to the position.
    #[error(
        "the source's oplog no longer reaches back to {position}, the mirror's position, or not yet \
         to it, as after it was restored from a backup; so the missing changes cannot be read: set spec.onHistoryLost to Resync, or annotate the resource once with mongomirror.dev/resync, \
         to compare both sides and write what differs; and give the source a larger oplog"
    )]
    HistoryLost {
        /// Where the mirror stood.
        position: ClusterTime,
    },
    /// The state database was written by a newer version.
    #[error("the checkpoint has format {0}, which this version does not know: use a newer version")]
    Format(i64),
    /// The state is not as any version would have written it.
    #[error(
        "what the mirror remembers on the target is damaged ({0}), and nothing is guessed: put the \
         documents of its state database back as they were, or drop the target database and \
         its document in the state database's checkpoints to copy again; the target was not touched"
    )]
    CheckpointDamaged(String),
    /// The target refuses more documents than are noted one by one.
    #[error(
        "the target refuses more than {most} documents that the source has ({reason}): find out \
         what is different there, as an index or a limit of the server; the mirror goes on by itself"
    )]
    QuarantineFull {
        /// So many are.
        most: usize,
        /// What the target's server said of one.
        reason: String,
    },
    /// A change event that is larger than a reply may be.
    #[error(
        "a change of the source after {position} is too large to be told by any event, as of a \
         document with an _id of several megabytes: set spec.onHistoryLost to Resync to compare \
         both sides and write what differs"
    )]
    EventTooLarge {
        /// Where the mirror stands.
        position: ClusterTime,
    },
}

impl Error {
    /// Wraps a driver error; made for `map_err`.
    pub fn driver(side: Side, doing: &'static str) -> impl Fn(DriverError) -> Self {
        move |error| Self::Driver { side, doing, error }
    }

    /// The server's error code, if a server answered with one.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Driver { error, .. } => driver_code(error),
            Self::Write { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the server marked the error with this label.
    pub fn has_label(&self, label: &str) -> bool {
        matches!(self, Self::Driver { error, .. } if error.contains_label(label))
    }

    /// The side it happened on, where that is known.
    pub fn side(&self) -> Option<Side> {
        match self {
            Self::Driver { side, .. }
            | Self::Write { side, .. }
            | Self::Timeout { side, .. }
            | Self::Reply { side, .. }
            | Self::TooOld { side, .. }
            | Self::MissingPrivileges { side, .. }
            | Self::NotReplicaSet(side)
            | Self::Sharded(side) => Some(*side),
            Self::Unsettled => Some(Side::Target),
            _ => None,
        }
    }

    /// Whether the server could not be reached at all, as opposed to having refused something.
    pub fn is_connection(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Driver { error, .. } => matches!(
                error.kind.as_ref(),
                ErrorKind::Io(_)
                    | ErrorKind::ServerSelection { .. }
                    | ErrorKind::ConnectionPoolCleared { .. }
                    | ErrorKind::DnsResolve { .. }
            ),
            _ => false,
        }
    }

    /// Whether the server's reply holds values that the driver cannot represent.
    pub fn is_unreadable(&self) -> bool {
        matches!(
            self,
            Self::Driver { error, .. }
                if matches!(
                    error.kind.as_ref(),
                    ErrorKind::BsonDeserialization(_) | ErrorKind::Bson(_)
                )
        )
    }

    /// Whether the connection ended in the middle of an exchange.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Driver { error, .. } if matches!(error.kind.as_ref(), ErrorKind::Io(_)))
    }

    /// Whether only a person can help: nothing is gained by trying the same again soon.
    pub fn needs_human(&self) -> bool {
        match self {
            Self::Driver { error, .. } => {
                matches!(
                    driver_code(error),
                    Some(code::UNAUTHORIZED | code::AUTHENTICATION_FAILED)
                ) || matches!(
                    error.kind.as_ref(),
                    ErrorKind::Authentication { .. } | ErrorKind::InvalidArgument { .. }
                )
            }
            Self::Write { code, .. } => *code == code::UNAUTHORIZED,
            Self::Timeout { .. }
            | Self::Reply { .. }
            | Self::Unsettled
            | Self::QuarantineFull { .. } => false,
            Self::TargetHeld { is_alive, .. } => *is_alive,
            _ => true,
        }
    }

    /// Whether more is refused than there is room for: all wait then, and nothing is noted.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::QuarantineFull { .. })
    }

    /// Whether another process has the target.
    pub fn is_rival(&self) -> bool {
        matches!(self, Self::Fenced { .. } | Self::TargetHeld { .. })
    }

    /// Whether changes of the source are missing, so that only comparing both sides can go on.
    pub fn is_gap(&self) -> bool {
        matches!(self, Self::HistoryLost { .. } | Self::EventTooLarge { .. })
    }

    /// Whether the server said that this definition can never be accepted, as opposed to not now:
    /// a parse error, an unknown field or stage, options it does not take, or keys that the data
    /// does not allow.
    pub fn is_refused_definition(&self) -> bool {
        const DEFINITE: [i32; 15] = [
            2, 9, 14, 59, 67, 72, 73, 85, 86, 171, 197, 16755, 40324, 40353, 40415,
        ];
        self.code().is_some_and(|code| DEFINITE.contains(&code))
    }

    /// The first statement of a command that failed, counted from zero: in a command in order, all
    /// before it were carried out and none behind it. `None` where nothing was.
    pub fn statement(&self) -> Option<usize> {
        match self {
            Self::Write { statement, .. } => *statement,
            _ => None,
        }
    }

    /// Whether two documents would have the same unique key.
    pub fn is_duplicate_key(&self) -> bool {
        self.code() == Some(code::DUPLICATE_KEY)
    }

    /// Whether the target said that it cannot hold this document, whoever writes it and whenever:
    /// a statement failed, or the command with a code that is about what a document holds.
    pub fn is_refused_document(&self) -> bool {
        match self {
            // These two have answers of their own.
            Self::Write {
                code, statement, ..
            } => statement.is_some() && ![code::DUPLICATE_KEY, code::NAME_TWICE].contains(code),
            _ => self.is_refused_for_certain(),
        }
    }

    /// The same, only for what the code says: outside of transactions a statement also fails for
    /// what has to do with the server or the collection, and nobody looks a second time.
    pub fn is_refused_for_certain(&self) -> bool {
        // BadValue, FailedToParse, TypeMismatch, Overflow, InvalidBSON, PathNotViable, names and
        // ids that cannot be, parallel arrays, too large; keys that an index cannot have follow.
        const DEFINITE: [i32; 25] = [
            2, 9, 14, 15, 22, 28, 52, 53, 54, 55, 56, 57, 171, 10334, 17419, 16755,
            // Arrays in a hashed index, and what a 2d, 2dsphere or text index cannot hold.
            16766, 13026, 13027, 13068, 16804, 17261, 17262, 17263,
            // NonConformantBSON: 6.0.27 looks into binary values of subtype 7, 6.0.5 does not.
            378,
        ];
        self.code().is_some_and(|code| DEFINITE.contains(&code))
            && !self.has_label(mongodb::error::TRANSIENT_TRANSACTION_ERROR)
    }

    /// Whether a transaction may hold more than the server's cache does, or last too long for it;
    /// conflicts and elections are answered alike.
    pub fn is_too_much(&self) -> bool {
        // WriteConflict, NoSuchTransaction, TransactionExceededLifetimeLimitSeconds,
        // TemporarilyUnavailable.
        const TOO_MUCH: [i32; 4] = [112, 251, 290, 365];
        self.code().is_some_and(|code| TOO_MUCH.contains(&code))
    }

    /// Whether the source said that a resume token is not one of its own.
    pub fn is_refused_token(&self) -> bool {
        // FailedToParse, Overflow, InvalidResumeToken, ChangeStreamFatalError, not hexadecimal; and
        // what the server's decoder of tokens says.
        const REFUSED: [i32; 5] = [9, 15, 260, 280, 40647];
        const DECODER: std::ops::RangeInclusive<i32> = 50_809..=50_832;
        self.code()
            .is_some_and(|code| REFUSED.contains(&code) || DECODER.contains(&code))
    }

    /// CamelCase, for conditions and metrics; a closed set.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Driver { side, error, .. } => {
                let authentication = driver_code(error) == Some(code::AUTHENTICATION_FAILED)
                    || matches!(error.kind.as_ref(), ErrorKind::Authentication { .. });
                if authentication {
                    Reason::AuthenticationFailed
                } else if driver_code(error) == Some(code::UNAUTHORIZED) {
                    Reason::Unauthorized
                } else {
                    match (self.is_connection(), side) {
                        (true, Side::Source) => Reason::SourceUnreachable,
                        (true, Side::Target) => Reason::TargetUnreachable,
                        (false, Side::Source) => Reason::SourceError,
                        (false, Side::Target) => Reason::TargetError,
                    }
                }
            }
            Self::Write { code, .. } if *code == code::UNAUTHORIZED => Reason::Unauthorized,
            Self::Timeout { side, .. } => match side {
                Side::Source => Reason::SourceUnreachable,
                Side::Target => Reason::TargetUnreachable,
            },
            Self::Write { side, .. } | Self::Reply { side, .. } => match side {
                Side::Source => Reason::SourceError,
                Side::Target => Reason::TargetError,
            },
            Self::MissingPrivileges { .. } => Reason::Unauthorized,
            Self::Unsettled => Reason::TargetError,
            Self::NotReplicaSet(_) => Reason::NotReplicaSet,
            Self::Sharded(_) => Reason::ShardedNotSupported,
            Self::TooOld { .. } => Reason::VersionTooOld,
            Self::SameDatabase(_) => Reason::SameDatabase,
            Self::TargetForbidden(_) => Reason::TargetForbidden,
            Self::TargetNotEmpty { .. } => Reason::TargetNotEmpty,
            Self::Ring { .. } => Reason::MirrorRing,
            Self::TargetBusy { .. } | Self::TargetHeld { .. } => Reason::TargetBusy,
            Self::SourceReplaced(_) => Reason::SourceReplaced,
            Self::Fenced { .. } => Reason::Fenced,
            Self::HistoryLost { .. } => Reason::HistoryLost,
            Self::Format(_) => Reason::CheckpointFormat,
            Self::CheckpointDamaged(_) => Reason::CheckpointDamaged,
            Self::EventTooLarge { .. } => Reason::EventTooLarge,
            Self::QuarantineFull { .. } => Reason::QuarantineFull,
        }
    }
}

fn driver_code(error: &DriverError) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => Some(error.code),
        _ => None,
    }
}

/// A server's message up to where it begins to repeat the command or its documents.
pub fn without_documents(message: &str) -> String {
    let end = message.find('{').unwrap_or(message.len());
    message[..end].trim_end().chars().take(200).collect()
}

/// The driver's error in words that may be shown. Its own `Display` repeats the server's whole
/// reply, which can hold documents.
fn describe(error: &DriverError) -> String {
    match error.kind.as_ref() {
        ErrorKind::Command(error) if error.code == code::DUPLICATE_KEY => {
            "duplicate key (11000)".to_owned()
        }
        ErrorKind::Command(error) => {
            let message = without_documents(&error.message);
            format!("{message} ({} {})", error.code, error.code_name)
        }
        ErrorKind::Write(WriteFailure::WriteError(error)) => {
            format!("write error {}", error.code)
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => {
            format!(
                "write concern not reached ({} {})",
                error.code, error.code_name
            )
        }
        ErrorKind::Authentication { .. } => {
            "authentication failed: check user name, password and authSource".to_owned()
        }
        // The driver has no kind for it. Only these words depend on its own.
        ErrorKind::ServerSelection { message, .. } if message.contains("certificate") => {
            "a certificate is not trusted: give the authority of the servers' in tls.caSecretRef, \
             and your own, if they want one, in tls.clientCertificateSecretRef"
                .to_owned()
        }
        ErrorKind::ServerSelection { message, .. } => silence::in_words(message),
        // Names and options as DNS gave them: nothing in it is secret.
        ErrorKind::DnsResolve { message, .. } => {
            format!("the host names cannot be resolved ({message})")
        }
        ErrorKind::Io(error) => format!("connection failed ({})", error.kind()),
        ErrorKind::ConnectionPoolCleared { .. } => "connection lost".to_owned(),
        ErrorKind::InvalidTlsConfig { .. } => "the TLS settings are invalid".to_owned(),
        ErrorKind::InvalidResponse { .. } => "the server's reply was not understood".to_owned(),
        ErrorKind::InvalidArgument { message, .. } => message.clone(),
        _ => "the driver reported an error".to_owned(),
    }
}
