//! Whether this process runs mirrors, as it tells others.

/// Where a process is on its way to running mirrors.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Readiness {
    /// The mirrors to run are not known yet.
    #[default]
    Starting,
    /// All of them are known.
    Ready,
    /// Another process runs them.
    Standby {
        /// Which one, if anybody does.
        leader: Option<String>,
    },
}
