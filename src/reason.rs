//! Why something is as it is, in one word: in conditions, events, metrics, the status API and the
//! log.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($name:ident),+ $(,)?) => {
        /// A closed set: `docs/status.md` has each of them, with its cause and what to do, and a
        /// test compares both.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Reason {
            $($name),+
        }

        impl Reason {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// As users read it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name)),+
                }
            }
        }
    };
}

reasons! {
    // The resource and its Secrets.
    InvalidCertificate,
    InvalidSpec,
    InvalidUri,
    SecretForbidden,
    SecretKeyMissing,
    SecretNotFound,
    // Connecting.
    AuthenticationFailed,
    NotReplicaSet,
    ShardedNotSupported,
    SourceError,
    SourceUnreachable,
    TargetError,
    TargetUnreachable,
    Unauthorized,
    VersionTooOld,
    // Which databases.
    MirrorRing,
    SameDatabase,
    SourceForbidden,
    SourceReplaced,
    TargetBusy,
    TargetForbidden,
    TargetNotEmpty,
    // What is remembered, and who may write.
    CheckpointDamaged,
    CheckpointFormat,
    Fenced,
    // What cannot be mirrored.
    EventTooLarge,
    HistoryLost,
    QuarantineFull,
    // The operator.
    InternalError,
    OperatorStopped,
    // How a mirror does.
    AsExpected,
    CatchingUp,
    Completed,
    Connected,
    Copying,
    DifferencesFound,
    Disconnected,
    DocumentsRefused,
    Equal,
    Failed,
    Low,
    Mirroring,
    NoActionNeeded,
    NotCompared,
    NotCompleted,
    NotMeasured,
    NotTried,
    Pending,
    Repaired,
    Retrying,
    Stale,
    Streaming,
    Sufficient,
    Suspended,
    VerificationFailed,
    // What happened.
    Healed,
    NotMirrored,
    OplogHeadroomLow,
    OplogHeadroomSufficient,
    Paused,
    Recovered,
    RequestRefused,
    ResyncBegun,
    Resumed,
    Synced,
    Verified,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// As it is read back from a status.
impl PartialEq<str> for Reason {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Reason {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The words in code type in a column of all tables of a section.
    fn words(page: &str, heading: &str, column: usize) -> BTreeSet<String> {
        let begin = page.find(heading).expect("the section is there") + heading.len();
        let level = heading
            .trim()
            .bytes()
            .take_while(|byte| *byte == b'#')
            .count();
        let section = page[begin..].lines().take_while(|line| {
            let hashes = line.bytes().take_while(|byte| *byte == b'#').count();
            hashes == 0 || hashes > level
        });
        let rows = section.filter(|line| line.starts_with("| "));
        let cells = rows.filter_map(|row| row.split('|').nth(column));
        let words = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
        words.map(str::to_owned).collect()
    }

    #[test]
    fn the_documented_reasons_are_those_there_are() {
        let page = include_str!("../docs/status.md");
        let mut documented = words(page, "\n## Conditions\n", 3);
        let problems = words(page, "\n## Problems\n", 1);
        // Each that a condition can have is explained, be it a problem or not.
        let explained = words(page, "\n## Other reasons\n", 1);
        let missing = documented.difference(&problems);
        assert!(explained.iter().eq(missing), "{explained:?}");
        documented.extend(words(page, "\n## Events\n", 1));
        let no_problem = words(page, "\n### What is no problem\n", 1);
        documented.extend(problems.difference(&no_problem).cloned());
        let all: BTreeSet<String> = Reason::ALL.iter().map(Reason::to_string).collect();
        assert_eq!(documented, all);
    }
}
