//! One document of a batch, and what becomes of it.

use super::delta::Deltas;
use crate::engine::bson::order::Value;

/// Which collection, as an index into the catalog.
pub type CollectionIndex = u32;

/// What becomes of one document.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// It was absent before the batch and is there after it.
    Insert {
        /// As it was inserted.
        document: Vec<u8>,
        /// Then changed.
        deltas: Deltas,
    },
    /// It was there before and has another content.
    Replace {
        /// As it was replaced.
        document: Vec<u8>,
        /// Then changed.
        deltas: Deltas,
    },
    /// It was there before and is changed.
    Update(Deltas),
    /// It was there before and is gone.
    Delete,
    /// Inserted and deleted within the batch.
    Nothing,
    /// To be read again from the source at the batch's cluster time.
    Refetch,
    /// To be compared with the source at the batch's cluster time, and put right if it differs:
    /// nothing is known of what the target holds. Stays so whatever else happens to the document.
    Reconcile,
}

impl Outcome {
    /// Whether the document was there before the batch, where that is known.
    pub fn was_there(&self) -> Option<bool> {
        match self {
            Self::Insert { .. } | Self::Nothing => Some(false),
            Self::Replace { .. } | Self::Update(_) | Self::Delete => Some(true),
            Self::Refetch | Self::Reconcile => None,
        }
    }

    /// Whether the source has to be asked.
    pub fn is_asked(&self) -> bool {
        matches!(self, Self::Refetch | Self::Reconcile)
    }
}

/// One document of a batch.
#[derive(Clone, PartialEq, Debug)]
pub struct Entity {
    /// Its collection.
    pub collection: CollectionIndex,
    /// Its `_id`, as stored.
    pub id: Value,
    /// What becomes of it.
    pub outcome: Outcome,
}

impl Entity {
    /// The source is asked, and not less than it already is.
    pub(super) fn ask(&mut self, outcome: Outcome) {
        if self.outcome != Outcome::Reconcile {
            self.outcome = outcome;
        }
    }

    /// What it becomes, where that is a whole document.
    pub fn document(&self) -> Option<&[u8]> {
        match &self.outcome {
            Outcome::Insert { document, .. } | Outcome::Replace { document, .. } => Some(document),
            _ => None,
        }
    }

    /// The same document, with another outcome.
    pub fn becomes(&self, outcome: Outcome) -> Self {
        Self {
            collection: self.collection,
            id: self.id.clone(),
            outcome,
        }
    }
}
