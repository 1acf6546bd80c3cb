//! The items of a batch, in the order of their arrival.

/// The number of a place. Tests count its comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), derive(PartialOrd, Ord))]
pub(in super::super) struct Number(pub(super) u64);

/// Items with ascending numbers.
///
/// Removing an item is a binary search and leaves a gap, so it is cheap in a list of any length. Gaps are closed when
/// the list would have to grow and half of it is gaps.
#[derive(Debug)]
pub(super) struct Items<T> {
    list: Vec<(Number, Option<T>)>,
    gaps: usize,
}

impl<T> Items<T> {
    pub(super) fn one(number: Number, item: T) -> Self {
        Self { list: vec![(number, Some(item))], gaps: 0 }
    }

    pub(super) fn push(&mut self, number: Number, item: T) {
        if self.list.len() == self.list.capacity() && self.gaps >= self.len() {
            self.list.retain(|(_, item)| item.is_some());
            self.gaps = 0;
        }
        self.list.push((number, Some(item)));
    }

    pub(super) fn remove(&mut self, number: Number) -> Option<T> {
        let index = self.list.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        let item = self.list.get_mut(index)?.1.take()?;
        self.gaps += 1;
        Some(item)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len() - self.gaps
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.list.iter().filter_map(|(_, item)| item.as_ref())
    }

    pub(super) fn into_vec(self) -> Vec<T> {
        let mut items = Vec::with_capacity(self.len());
        items.extend(self.list.into_iter().filter_map(|(_, item)| item));
        items
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.list.capacity()
    }
}
