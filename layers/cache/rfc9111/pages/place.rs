//! The places of a store, and what they weigh.

use std::hash::{Hash, Hasher};

use super::super::{super::http::HttpKey, rules::Vary};

/// A place in the store.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// The response for all requests, or the fields that its responses depend on.
    Resource(HttpKey),
    /// The response for requests with these values.
    Variant { family: u64, vary: VaryKey, selected: Vec<u8> },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct VaryKey(pub(super) Vary);

impl Hash for VaryKey {
    fn hash<H: Hasher>(&self, _: &mut H) {
        // The values distinguish them.
    }
}

impl Place {
    pub(super) fn weight(&self) -> u64 {
        let size = match self {
            Self::Resource(key) => size_of_key(key),
            Self::Variant { selected, .. } => selected.len() as u64,
        };
        // With the overhead of an entry.
        size + 256
    }

    /// Returns the values that select a variant.
    pub(super) fn into_selected(self) -> Vec<u8> {
        match self {
            Self::Variant { selected, .. } => selected,
            Self::Resource(_) => Vec::new(),
        }
    }
}

fn size_of_key(key: &HttpKey) -> u64 {
    (key.authority().len() + key.path().len() + key.query().map_or(0, str::len)) as u64
}
