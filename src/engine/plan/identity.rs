//! Who may use this target, and for which source.

use bson::{DateTime, Document, doc};
use mongodb::Client;
use tokio::sync::watch;

use crate::engine::catalog;
use crate::engine::command::Commands;
use crate::engine::config::MirrorConfig;
use crate::engine::connection::probe::{Server, probe};
use crate::engine::error::{Error, Result, Side};
use crate::engine::progress::Progress;
use crate::engine::state::{CHECKPOINTS, Checkpoint, Origin, encode_origin};

/// Another process that took the mirror over, as last seen in the checkpoint.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Rival {
    /// Nobody did.
    #[default]
    None,
    /// Somebody did; nothing more is known.
    Unknown,
    /// Somebody did; their epoch, when they last wrote, and how many notes there were.
    Seen(i64, Option<DateTime>, i64),
}

impl Rival {
    /// Of several mirrors of one name, whose resources have uids of their own, the first that came
    /// keeps the target as long as it works.
    pub(super) fn refuse_another_holder(
        &mut self,
        config: &MirrorConfig,
        before: &Checkpoint,
        notes: i64,
    ) -> Result<()> {
        let (Some(own), Some(holder)) = (&config.holder, &before.holder) else {
            return Ok(());
        };
        if own == holder || before.released {
            return Ok(());
        }
        let was_seen = matches!(self, Self::Seen(..));
        if *self == Self::None {
            *self = Self::Unknown;
        }
        self.refuse_if_alive(before, notes)
            .map_err(|_| Error::TargetHeld {
                database: config.target.database.clone(),
                holder: holder.clone(),
                is_alive: was_seen,
            })
    }

    /// Whoever was fenced takes the mirror back only from a process that no longer writes. One that
    /// works moves its checkpoint or notes something every few seconds, also while it waits for a
    /// large index (`StateStore::keep_showing`), so two looks half a minute apart tell, and no clocks
    /// are compared.
    pub(super) fn refuse_if_alive(&mut self, now: &Checkpoint, notes: i64) -> Result<()> {
        let seen = Self::Seen(now.epoch, now.updated_at, notes);
        if *self == Self::None || *self == seen {
            *self = Self::None;
            return Ok(());
        }
        *self = seen;
        Err(Error::Fenced { epoch: now.epoch })
    }
}

/// Who a mirror is, to its checkpoint.
pub(super) struct Identity<'a> {
    pub(super) config: &'a MirrorConfig,
    pub(super) source: String,
    pub(super) origins: Vec<Origin>,
}

impl Identity<'_> {
    /// As the checkpoint has it. Another selection is noted when what it means is done.
    pub(super) fn document(&self, before: Option<&Checkpoint>) -> Document {
        let selection = match before {
            Some(before) if before.position.is_some() => before.selection.clone(),
            _ => self.config.selection.fingerprint(),
        };
        doc! {
            "mirror": &self.config.name,
            "holder": &self.config.holder,
            "released": false,
            "ended": false,
            "source": &self.source,
            "database": &self.config.source.database,
            "selection": selection,
            "origins": self.origins.iter().map(encode_origin).collect::<Vec<_>>(),
        }
    }

    /// Whether the target was made with another selection.
    pub(super) fn reselects(&self, before: Option<&Checkpoint>) -> bool {
        before.is_some_and(|before| {
            before.position.is_some() && before.selection != self.config.selection.fingerprint()
        })
    }

    pub(super) fn check(&self, before: Option<&Checkpoint>) -> Result<()> {
        let Some(before) = before else {
            return Ok(());
        };
        let same = before.mirror == self.config.name
            && before.database == self.config.source.database
            && Server::same_identity(&before.source, &self.source);
        if !same {
            return Err(Error::TargetBusy {
                database: self.config.target.database.clone(),
                owner: format!(
                    "{:?} on replica set {} (mirror {})",
                    before.database,
                    before.source.split('/').next().unwrap_or_default(),
                    before.mirror
                ),
            });
        }
        Ok(())
    }
}

pub(super) async fn reach(
    client: &Client,
    side: Side,
    publish: &watch::Sender<Progress>,
) -> Result<Server> {
    let server = probe(client, side).await?;
    publish.send_modify(|progress| {
        let link = match side {
            Side::Source => &mut progress.source,
            Side::Target => &mut progress.target,
        };
        link.set(true, "");
    });
    Ok(server)
}

pub(super) fn is_same_deployment(a: &Server, b: &Server) -> bool {
    let same = |a: Option<_>, b: Option<_>| a.is_some() && a == b;
    same(a.process, b.process) || same(a.set_id, b.set_id)
}

pub(super) async fn refuse_unless_empty(target: &Commands) -> Result<()> {
    let there = catalog::list(&target.db, Side::Target).await?;
    match there
        .into_iter()
        .find(|there| !there.name.starts_with("system."))
    {
        None => Ok(()),
        Some(there) => Err(Error::TargetNotEmpty {
            database: target.db.name().to_owned(),
            example: there.name,
        }),
    }
}

/// Refuses a target in which other mirrors keep their memory.
pub(super) async fn refuse_memory(target: &Commands) -> Result<()> {
    let checkpoint = doc! {"mirror": {"$type": "string"}, "epoch": {"$type": "long"}};
    let find = doc! {"find": CHECKPOINTS, "filter": checkpoint, "limit": 1};
    let reply = target.read("look for checkpoints", find).await?;
    let found = reply
        .get_document("cursor")
        .and_then(|cursor| cursor.get_array("firstBatch"));
    match found {
        Ok(found) if !found.is_empty() => Err(Error::TargetForbidden(target.db.name().to_owned())),
        _ => Ok(()),
    }
}
