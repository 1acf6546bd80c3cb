//! Values by key, and which of them makes room for another.
//!
//! The order is that of the clock algorithm, a close relative of least recently used that needs no list: a hand goes
//! round, and a value that was used since its last visit gets a second chance.

use std::borrow::Borrow;

use hashbrown::HashTable;

/// The number of values of one map that are looked at to find one that makes room.
pub(crate) const LOOKS: usize = 16;

#[derive(Debug)]
pub(crate) struct Keys<K, V> {
    /// The places of the entries, by hash.
    places: HashTable<usize>,
    entries: Vec<Entry<K, V>>,
    hand: usize,
}

#[derive(Debug)]
struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
    /// Whether it was used since it was added or the hand last passed.
    is_used: bool,
}

impl<K, V> Keys<K, V> {
    pub(crate) fn new() -> Self {
        Self { places: HashTable::new(), entries: Vec::new(), hand: 0 }
    }

    /// Returns the value of `key`, which counts as a use.
    #[inline]
    pub(crate) fn get<Q>(&mut self, hash: u64, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let place = self.place(hash, key)?;
        let entry = &mut self.entries[place];
        entry.is_used = true;
        Some(&mut entry.value)
    }

    /// Returns a key and its value, which does not count as a use.
    pub(crate) fn peek<Q>(&self, hash: u64, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let entry = &self.entries[self.place(hash, key)?];
        Some((&entry.key, &entry.value))
    }

    fn place<Q>(&self, hash: u64, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let is_it = |&place: &usize| {
            let entry = &self.entries[place];
            entry.hash == hash && entry.key.borrow() == key
        };
        self.places.find(hash, is_it).copied()
    }

    /// Adds a key that is not there yet.
    pub(crate) fn insert(&mut self, hash: u64, key: K, value: V) -> &mut V {
        let Self { places, entries, .. } = self;
        let place = entries.len();
        // Not used: a key that never comes back goes before one that did.
        entries.push(Entry { hash, key, value, is_used: false });
        places.insert_unique(hash, place, |&place| entries[place].hash);
        &mut entries[place].value
    }

    /// Removes a key whose value is idle, if one of the next `looks` is, of which it looks at [`LOOKS`] at most and
    /// subtracts their number.
    pub(crate) fn evict(&mut self, looks: &mut usize, mut is_idle: impl FnMut(&mut V) -> bool) -> Option<(K, V)> {
        let mut used = [0; LOOKS];
        let mut second_choice = 0;
        let most = LOOKS.min(*looks).min(self.entries.len());
        *looks -= most;
        for _ in 0..most {
            let place = self.hand;
            self.hand = (place + 1) % self.entries.len();
            let entry = &mut self.entries[place];
            if std::mem::take(&mut entry.is_used) {
                used[second_choice] = place;
                second_choice += 1;
            } else if is_idle(&mut entry.value) {
                return Some(self.remove(place));
            }
        }
        let place = used[..second_choice].iter().find(|&&place| is_idle(&mut self.entries[place].value))?;
        Some(self.remove(*place))
    }

    fn remove(&mut self, place: usize) -> (K, V) {
        let Self { places, entries, hand } = self;
        let last = entries.len() - 1;
        if let Ok(found) = places.find_entry(entries[place].hash, |&other| other == place) {
            found.remove();
        }
        // The last entry moves to the place that became free.
        if place != last
            && let Some(moved) = places.find_mut(entries[last].hash, |&other| other == last)
        {
            *moved = place;
        }
        let Entry { key, value, .. } = entries.swap_remove(place);
        *hand = if *hand < last { *hand } else { 0 };
        (key, value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|entry| (&entry.key, &entry.value))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().map(|entry| &mut entry.value)
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
