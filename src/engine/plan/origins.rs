//! Where what a source holds comes from: a source may be the target of another mirror itself.
//!
//! A chain is fine: each target is what its source was at a time. A ring is not, as two mirrors would
//! write each other's changes for ever. So each checkpoint says where its source's content comes
//! from, and a mirror whose target is among these does not begin.

use mongodb::Client;

use crate::engine::config::MirrorConfig;
use crate::engine::error::{Error, Result};
use crate::engine::state::{Checkpoint, Origin, StateStore, looked_up_in};

/// Steps that are looked up.
const MOST: usize = 32;

impl Origin {
    /// Only what is known by its replica set's id is surely the same: names are chosen freely.
    fn is_certainly(&self, other: &Self) -> bool {
        self.server.contains('/') && *self == *other
    }
}

/// Where the source's content comes from: the source itself first. What may not be read is not
/// known. Within one deployment each step is looked up, as mirrors may have begun in any order;
/// beyond it counts what the last one has noted.
pub(super) async fn origins(client: &Client, source: &str, config: &MirrorConfig) -> Vec<Origin> {
    let mut origins = vec![Origin {
        server: source.to_owned(),
        database: config.source.database.clone(),
    }];
    for _ in 0..MOST {
        // Invariant: there is the source at least.
        let Some(last) = origins.last().filter(|last| last.server == source) else {
            break;
        };
        let Some(before) = mirrored(client, &last.database, config).await else {
            break;
        };
        let next = Origin {
            server: before.source,
            database: before.database,
        };
        if origins.contains(&next) {
            break;
        }
        let is_here = next.server == source;
        origins.push(next);
        if !is_here {
            origins.extend(before.origins.into_iter().skip(1));
            break;
        }
    }
    origins
}

/// What a mirror remembers whose target this database is.
async fn mirrored(client: &Client, database: &str, config: &MirrorConfig) -> Option<Checkpoint> {
    for memory in looked_up_in(&config.state_database) {
        match StateStore::new(client, memory, database).load().await {
            // A mirror that has ended for good writes nothing any more.
            Ok(Some(before)) if !before.ended => return Some(before),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(mirror = %config.name, "whether the source is a mirror's target: {error}");
            }
        }
    }
    None
}

/// Refuses a target from which the source's content comes.
pub(super) fn refuse_ring(origins: &[Origin], target: &str, config: &MirrorConfig) -> Result<()> {
    let target = Origin {
        server: target.to_owned(),
        database: config.target.database.clone(),
    };
    if let Some(origin) = origins.iter().skip(1).find(|it| it.is_certainly(&target)) {
        return Err(Error::Ring {
            from: config.source.database.clone(),
            to: origin.database.clone(),
        });
    }
    Ok(())
}

/// Where the source's content comes from, if that is another mirror.
pub(super) fn chain(origins: &[Origin]) -> Option<String> {
    let origin = origins.get(1)?;
    let set_name = origin.server.split('/').next().unwrap_or_default();
    Some(format!(
        "\"{}\" of the replica set {set_name}",
        origin.database
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(server: &str, database: &str) -> Origin {
        Origin {
            server: server.into(),
            database: database.into(),
        }
    }

    #[test]
    fn names_alone_are_no_proof() {
        let known = origin("rs0/1", "a");
        assert!(known.is_certainly(&origin("rs0/1", "a")));
        assert!(!known.is_certainly(&origin("rs0/2", "a")));
        assert!(!known.is_certainly(&origin("rs0/1", "b")));
        let named = origin("rs0", "a");
        assert!(!named.is_certainly(&named.clone()));
    }
}
