//! Every write that the mirror makes anywhere, by name, and the crash points that come with it.
//!
//! Whoever writes names the write, so there is one list of all of them. Tests let a process die
//! before and after each (`tests/engine_crashes/`).

/// Makes the enum, the list of all its values, and what each is called in messages from one table.
macro_rules! writes {
    ($($(#[$doc:meta])* $name:ident => $doing:literal,)*) => {
        /// A write to the target or to the state database.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Write { $($(#[$doc])* $name,)* }

        impl Write {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The attempted step, to be read after "could not".
            pub fn doing(self) -> &'static str {
                match self { $(Self::$name => $doing,)* }
            }
        }
    };
}

writes! {
    /// An update that finds nothing: whether internal deltas are accepted.
    ProbeDeltas => "probe for internal updates",
    /// An update that finds nothing: whether empty timestamps can be kept.
    ProbeTimestamps => "probe for empty timestamps",
    /// The checkpoint, by a process that takes the mirror over.
    Claim => "take the mirror over",
    /// `killSessions` for what an earlier process left open.
    EndSessions => "end old sessions",
    /// The checkpoint: the sessions that this process writes with.
    NoteSessions => "write the checkpoint",
    /// The ranges, by a process that takes them over.
    ClaimRanges => "take the ranges over",
    /// The document of the notes, by the process that took the mirror over.
    TakeNotes => "take the mirror over",
    /// The document of the notes, or the checkpoint where it is made: whether it is still ours.
    FenceNote => "write the plan",
    /// The commit of a note.
    CommitNote => "write the plan",
    /// The catalog of a plan that is made anew.
    ClearCatalog => "clear the old plan",
    /// The ranges of a plan that is made anew.
    ClearRanges => "clear the old plan",
    /// The checkpoint: the collections that a plan is about to create.
    AnnouncePlan => "write the checkpoint",
    /// The checkpoint: a plan over what the target holds was begun.
    AnnounceResync => "write the checkpoint",
    /// The ranges of a collection.
    InsertRanges => "write the ranges",
    /// The checkpoint: the plan is complete, the stream begins.
    CompletePlan => "write the checkpoint",
    /// A collection of the catalog.
    PutCollection => "write the catalog",
    /// A collection of the catalog is gone.
    RemoveCollection => "write the catalog",
    /// The ranges of a collection are history.
    RemoveRanges => "write the ranges",
    /// The checkpoint: the copy's figures.
    NoteFigures => "write the checkpoint",
    /// A range is about to be copied.
    BeginRange => "write the range",
    /// What an interrupted copy has left of a range.
    ClearRange => "clear a range",
    /// Documents of a range.
    InsertDocuments => "insert documents",
    /// A document that a plain insert would change.
    PutDocument => "insert documents",
    /// Documents of a range that is made equal.
    AlignRange => "make a range equal",
    /// The range that a copy's transaction belongs to.
    HoldRange => "hold the range",
    /// The commit of a copy's transaction.
    CommitCopy => "commit documents",
    /// A command of a batch.
    WriteBatch => "write a batch",
    /// A document of a batch whose commands did not find what they should.
    WriteDocument => "write a document",
    /// A document as it was read from the source again.
    RepairDocument => "repair a document",
    /// Documents whose unique keys have wandered are removed and put.
    WriteAnew => "write documents anew",
    /// The checkpoint: documents that are about to be ahead of it, lane by lane.
    AnnounceLanes => "write the checkpoint",
    /// The document of a lane, by the lane's transaction: whether it is still ours.
    HoldLane => "hold a lane",
    /// The commit of a lane's transaction.
    CommitLane => "commit a lane",
    /// The checkpoint: collections that are about to be written outside of transactions.
    AnnounceOutside => "write the checkpoint",
    /// A command on a collection that no transaction may write.
    WriteOutside => "write outside of a transaction",
    /// Documents of a copy that no transaction may write.
    InsertOutside => "insert documents",
    /// A delete that finds nothing: whether a system collection may be written.
    ProbeSystem => "write a system collection",
    /// What the last comparison of both sides came to.
    PutVerification => "write the verification",
    /// The checkpoint: a target that was armed is mirrored again.
    Disarm => "write the checkpoint",
    /// Documents in a transaction that is given up: whether the target takes them.
    TryDocument => "write a document",
    /// Documents that the target refuses.
    Quarantine => "note refused documents",
    /// Documents that the target refused, and takes now.
    Release => "forget refused documents",
    /// A range that a batch completes.
    CompleteRange => "complete a range",
    /// The position behind a batch.
    MovePosition => "write the checkpoint",
    /// The commit of a batch.
    CommitBatch => "commit a batch",
    /// A transaction is given up.
    Abort => "abort a transaction",
    /// The checkpoint, before a collection command that no transaction can fence.
    HoldCheckpoint => "write the checkpoint",
    /// A collection or a view.
    CreateCollection => "create a collection",
    /// A collection or a view is gone.
    DropCollection => "drop a collection",
    /// A collection gets another name.
    RenameCollection => "rename a collection",
    /// A collection's options, or an index's.
    ModifyCollection => "change a collection",
    /// An index.
    BuildIndex => "build an index",
    /// An index is gone.
    DropIndex => "drop an index",
}

/// Without the feature there are no crash points.
#[cfg(not(feature = "crash-points"))]
mod crash {
    use super::Write;

    pub fn before(_: Write) {}
    pub fn after(_: Write) {}
}

/// With the feature, `MONGOMIRROR_CRASH` says where the process dies, as if by `kill -9`:
/// `CommitBatch:before`, or `CommitBatch:after:3` for the third time, several separated by commas.
/// With `freeze` behind that (`CommitBatch:before:1:freeze`) it is stopped there, as if by
/// `kill -STOP`.
#[cfg(feature = "crash-points")]
mod crash {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Write;

    struct Point {
        name: String,
        moment: String,
        left: AtomicU32,
        freezes: bool,
    }

    static ARMED: LazyLock<Vec<Point>> = LazyLock::new(|| {
        let armed = std::env::var("MONGOMIRROR_CRASH").unwrap_or_default();
        let points = armed.split(',').filter(|point| !point.is_empty());
        points
            .map(|point| {
                let mut parts = point.split(':').map(str::to_owned);
                let (name, moment) = (parts.next(), parts.next());
                let nth = parts.next().and_then(|nth| nth.parse().ok());
                let freezes = parts.next().is_some_and(|action| action == "freeze");
                Point {
                    name: name.unwrap_or_default(),
                    moment: moment.unwrap_or_default(),
                    left: AtomicU32::new(nth.unwrap_or(1)),
                    freezes,
                }
            })
            .collect()
    });

    pub fn before(write: Write) {
        reached(write, "before");
    }

    pub fn after(write: Write) {
        reached(write, "after");
    }

    fn reached(write: Write, moment: &str) {
        tracing::trace!(target: "crash_points", ?write, moment);
        for point in ARMED.iter() {
            if point.moment == moment
                && point.name == format!("{write:?}")
                && point.left.fetch_sub(1, Ordering::SeqCst) == 1
            {
                // Standard error is not buffered: this line is out before the process is gone.
                eprintln!("crash point {write:?} {moment}");
                if !point.freezes {
                    std::process::abort();
                }
                let id = std::process::id().to_string();
                let _ = std::process::Command::new("kill")
                    .args(["-STOP", &id])
                    .status();
            }
        }
    }
}

pub(super) use crash::{after, before};

#[cfg(test)]
mod tests {
    use super::Write;
    use std::collections::HashSet;

    #[test]
    fn every_write_says_what_it_does() {
        let distinct: HashSet<_> = Write::ALL.iter().collect();
        assert_eq!(distinct.len(), Write::ALL.len());
        assert!(Write::ALL.iter().all(|write| !write.doing().is_empty()));
    }
}
