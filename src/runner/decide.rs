//! What to do with a mirror, given what is asked for and what runs. Pure: no client, no clock.

use std::fmt;

use crate::engine::config::MirrorConfig;
use crate::engine::progress::Problem;
use crate::reason::Reason;
use crate::resource::validation::ValidSpec;

/// What is asked for.
#[derive(Clone, PartialEq, Debug)]
pub enum Desired {
    /// A running mirror.
    Running {
        /// The spec.
        spec: ValidSpec,
        /// The spec with its connection strings.
        config: Box<MirrorConfig>,
    },
    /// A mirror that is switched off.
    Paused {
        /// The spec.
        spec: ValidSpec,
        /// The spec with its connection strings, if they can be had: to watch over the source's
        /// oplog.
        config: Option<Box<MirrorConfig>>,
    },
    /// A running mirror, but its connection strings cannot be had.
    Unavailable {
        /// The spec.
        spec: ValidSpec,
        /// Why not.
        problem: Problem,
    },
    /// Something that cannot be done.
    Refused {
        /// Why not.
        problem: Problem,
    },
    /// Nothing: the resource is gone.
    Absent,
}

/// What runs.
#[derive(Clone, Copy, Debug)]
pub struct Current<'a> {
    /// The spec it was started for.
    pub spec: &'a ValidSpec,
    /// What it was started with.
    pub config: &'a MirrorConfig,
}

/// What to do, and why.
#[derive(Clone, PartialEq, Debug)]
pub enum Decision {
    /// Leave things as they are.
    Keep(Why),
    /// Start what is asked for; nothing runs.
    Start(Why),
    /// Stop the running mirror, then start what is asked for.
    Replace(Why),
    /// Stop the running mirror.
    Stop(Why),
}

/// Why something is done or left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// What runs is what is asked for.
    UpToDate,
    /// It is asked for and does not run.
    Wanted,
    /// These parts of the configuration changed.
    Changed(Vec<&'static str>),
    /// It is switched off.
    Paused,
    /// It cannot be run, for this reason.
    Problem(Reason),
    /// It cannot be started again, for this reason; what runs is still what the spec asks for.
    RunsOn(Reason),
    /// The resource is gone.
    Gone,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UpToDate => f.write_str("it is up to date"),
            Self::Wanted => f.write_str("it is asked for"),
            Self::Changed(parts) => write!(f, "{} changed", parts.join(" and ")),
            Self::Paused => f.write_str("it is switched off"),
            Self::Problem(reason) => write!(f, "it cannot be run: {reason}"),
            Self::RunsOn(reason) => {
                write!(f, "it goes on with the credentials it has: {reason}")
            }
            Self::Gone => f.write_str("the resource is gone"),
        }
    }
}

/// Decides.
pub fn decide(desired: &Desired, current: Option<Current<'_>>) -> Decision {
    let stop = |why: Why| match current {
        Some(_) => Decision::Stop(why),
        None => Decision::Keep(why),
    };
    match (desired, current) {
        (Desired::Running { .. }, None) => Decision::Start(Why::Wanted),
        (Desired::Running { config, .. }, Some(current)) => {
            let changed = differences(config, current.config);
            if changed.is_empty() {
                Decision::Keep(Why::UpToDate)
            } else {
                Decision::Replace(Why::Changed(changed))
            }
        }
        (Desired::Paused { .. }, _) => stop(Why::Paused),
        // A Secret that vanished for a moment, or was edited badly, must not cost a mirror that
        // does what its spec still asks for. Its credentials end when MongoDB says so.
        // Another edit has to wait for the Secret then.
        (Desired::Unavailable { spec, problem }, Some(current))
            if spec.source == current.spec.source && spec.target == current.spec.target =>
        {
            Decision::Keep(Why::RunsOn(problem.reason))
        }
        (Desired::Unavailable { problem, .. } | Desired::Refused { problem }, _) => {
            stop(Why::Problem(problem.reason))
        }
        (Desired::Absent, _) => stop(Why::Gone),
    }
}

/// The parts in which two configurations differ, in words.
fn differences(new: &MirrorConfig, old: &MirrorConfig) -> Vec<&'static str> {
    let MirrorConfig {
        name,
        holder,
        source,
        read_from,
        target,
        state_database,
        selection,
        on_existing_data,
        on_deselected,
        on_history_lost,
        apply_mode,
        verify_every,
        limits,
    } = new;
    [
        (*name != old.name, "the name"),
        (*holder != old.holder, "the resource"),
        (
            source.uri != old.source.uri,
            "the source's connection string",
        ),
        (source.tls != old.source.tls, "the source's certificates"),
        (
            source.database != old.source.database,
            "the source database",
        ),
        (
            *read_from != old.read_from,
            "the members that are read from",
        ),
        (
            target.uri != old.target.uri,
            "the target's connection string",
        ),
        (target.tls != old.target.tls, "the target's certificates"),
        (
            target.database != old.target.database,
            "the target database",
        ),
        (*state_database != old.state_database, "the state database"),
        (*selection != old.selection, "the selection of collections"),
        (
            *on_existing_data != old.on_existing_data,
            "what to do with existing data",
        ),
        (
            *on_deselected != old.on_deselected,
            "what becomes of deselected collections",
        ),
        (
            *on_history_lost != old.on_history_lost,
            "what to do after lost history",
        ),
        (*apply_mode != old.apply_mode, "how changes are written"),
        (
            *verify_every != old.verify_every,
            "the interval of verification",
        ),
        (*limits != old.limits, "the limits"),
    ]
    .into_iter()
    .filter_map(|(differs, part)| differs.then_some(part))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::validation::validate;
    use crate::runner::registry::MirrorKey;
    use crate::runner::translate::{SecretValues, Secrets, translate};

    struct Mirror {
        spec: ValidSpec,
        config: MirrorConfig,
    }

    impl Mirror {
        fn new(yaml: &str, uri: &str) -> Self {
            let spec = validate(&serde_saphyr::from_str(yaml).unwrap()).unwrap();
            let values = [("uri".to_owned(), uri.as_bytes().to_vec())];
            let secrets = Secrets::from([("a".into(), Some(SecretValues(values.into())))]);
            let config = translate(&MirrorKey::new("n", "m"), &spec, &secrets).unwrap();
            Self { spec, config }
        }

        fn orders() -> Self {
            Self::new(
                "source: {uriSecretRef: {name: a}, database: orders}",
                "mongodb://h",
            )
        }

        fn current(&self) -> Option<Current<'_>> {
            Some(Current {
                spec: &self.spec,
                config: &self.config,
            })
        }

        fn desired(&self) -> Desired {
            Desired::Running {
                spec: self.spec.clone(),
                config: Box::new(self.config.clone()),
            }
        }

        fn unavailable(&self) -> Desired {
            Desired::Unavailable {
                spec: self.spec.clone(),
                problem: trouble(),
            }
        }
    }

    fn trouble() -> Problem {
        Problem {
            reason: Reason::SecretNotFound,
            message: String::new(),
            needs_human: false,
            since: std::time::SystemTime::UNIX_EPOCH,
            next_attempt: None,
        }
    }

    #[test]
    fn a_wanted_mirror_is_started_once() {
        let orders = Mirror::orders();
        assert_eq!(
            decide(&orders.desired(), None),
            Decision::Start(Why::Wanted)
        );
        assert_eq!(
            decide(&orders.desired(), orders.current()),
            Decision::Keep(Why::UpToDate)
        );
    }

    #[test]
    fn a_change_replaces_the_mirror_and_is_named() {
        let old = Mirror::orders();
        let new = Mirror::new(
            "{source: {uriSecretRef: {name: a}, database: orders}, target: {database: copy}}",
            "mongodb://other",
        );
        let Decision::Replace(why) = decide(&new.desired(), old.current()) else {
            panic!("not replaced");
        };
        assert_eq!(
            why.to_string(),
            "the source's connection string and the target's connection string and the target \
             database changed"
        );
    }

    #[test]
    fn a_different_reference_to_the_same_string_changes_nothing() {
        let old = Mirror::orders();
        let mut new = Mirror::orders();
        new.spec.source.secret.key = "other".into();
        assert_eq!(
            decide(&new.desired(), old.current()),
            Decision::Keep(Why::UpToDate)
        );
    }

    #[test]
    fn switching_off_and_deleting_stop_what_runs() {
        let orders = Mirror::orders();
        let paused = Desired::Paused {
            spec: orders.spec.clone(),
            config: None,
        };
        assert_eq!(
            decide(&paused, orders.current()),
            Decision::Stop(Why::Paused)
        );
        assert_eq!(decide(&paused, None), Decision::Keep(Why::Paused));
        assert_eq!(
            decide(&Desired::Absent, orders.current()),
            Decision::Stop(Why::Gone)
        );
        assert_eq!(decide(&Desired::Absent, None), Decision::Keep(Why::Gone));
    }

    #[test]
    fn a_lost_secret_does_not_stop_a_mirror_that_is_still_asked_for() {
        let orders = Mirror::orders();
        assert_eq!(
            decide(&orders.unavailable(), orders.current()),
            Decision::Keep(Why::RunsOn(Reason::SecretNotFound))
        );
        assert_eq!(
            decide(&orders.unavailable(), None),
            Decision::Keep(Why::Problem(Reason::SecretNotFound))
        );
    }

    #[test]
    fn a_lost_secret_stops_a_mirror_that_is_no_longer_asked_for() {
        let old = Mirror::orders();
        let new = Mirror::new(
            "source: {uriSecretRef: {name: a}, database: customers}",
            "mongodb://h",
        );
        assert_eq!(
            decide(&new.unavailable(), old.current()),
            Decision::Stop(Why::Problem(Reason::SecretNotFound))
        );
    }

    #[test]
    fn what_is_edited_while_a_secret_is_lost_waits_unless_it_is_about_the_connections() {
        let old = Mirror::orders();
        let edited = |more: &str| {
            let source = "source: {uriSecretRef: {name: a}, database: orders";
            Mirror::new(&format!("{{{source}{more}}}"), "mongodb://h").unavailable()
        };
        for waits in [
            "}, limits: {readConcurrency: 1}",
            "}, collections: {exclude: [b]}",
        ] {
            let decision = decide(&edited(waits), old.current());
            assert_eq!(
                decision,
                Decision::Keep(Why::RunsOn(Reason::SecretNotFound))
            );
        }
        for stops in ["}, target: {database: other}", ", tls: {}}"] {
            let decision = decide(&edited(stops), old.current());
            assert_eq!(
                decision,
                Decision::Stop(Why::Problem(Reason::SecretNotFound))
            );
        }
    }

    #[test]
    fn a_refused_spec_stops_what_runs() {
        let refused = Desired::Refused { problem: trouble() };
        assert_eq!(
            decide(&refused, Mirror::orders().current()),
            Decision::Stop(Why::Problem(Reason::SecretNotFound))
        );
    }
}
