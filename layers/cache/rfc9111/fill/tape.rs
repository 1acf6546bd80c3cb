//! The bytes of a body that have arrived, and how many readers are where.
//!
//! This module is pure state. Its caller holds it under a lock, where no user code runs.

use std::{collections::VecDeque, mem};

use bytes::Bytes;
use http::HeaderMap;

use super::{
    content::{Chunk, Content},
    room::Share,
};

/// The size from which on a chunk has an allocation of its own. Smaller ones are joined, because each one takes up more
/// than its bytes.
pub(super) const SMALL: usize = 4 * 1024;

/// The largest body that is kept in one piece, however large the chunks are that it arrived in.
const ONE_PIECE: u64 = 64 * 1024;

/// The bytes that a streamed body may hold where there is no more room.
const WINDOW: usize = 64 * 1024;

/// The bytes of a body, which are all kept until they are more than `max`. From then on the body is *streamed*: a chunk
/// is dropped once every reader has passed it, or if it would be too many bytes with those that arrive.
pub(super) struct Tape {
    max: usize,
    /// The most that is held once the body is streamed.
    window: usize,
    chunks: VecDeque<Held>,
    /// The bytes of these chunks.
    held: usize,
    /// All bytes so far.
    arrived: u64,
    loose: Loose,
    /// The readers that can go on.
    readers: usize,
    /// Those of them that have taken all bytes so far.
    level: usize,
    is_streamed: bool,
}

struct Held {
    chunk: Chunk,
    /// The readers that have this chunk to take next.
    readers: usize,
}

/// The last chunks, if they are small and not yet joined.
#[derive(Default)]
struct Loose {
    chunks: usize,
    bytes: usize,
}

/// The result of looking for the next bytes of a reader.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Bytes(Bytes),
    /// It has all bytes so far.
    Level,
    /// Its next bytes are no longer there.
    Gone,
}

impl Tape {
    pub(super) fn new(max: usize) -> Self {
        let (chunks, loose) = Default::default();
        Self { max, window: max, chunks, held: 0, arrived: 0, loose, readers: 0, level: 0, is_streamed: false }
    }

    /// Adds a reader at the first byte. Returns whether that is possible.
    pub(super) fn join(&mut self) -> bool {
        if !self.is_streamed {
            self.readers += 1;
            *self.readers_at(0) += 1;
        }
        !self.is_streamed
    }

    /// Removes a reader at this position.
    pub(super) fn leave(&mut self, at: u64) {
        if at < self.start() {
            return;
        }
        self.readers -= 1;
        let place = self.place(at);
        *self.readers_at(place) -= 1;
        self.trim();
    }

    /// Returns the next bytes for a reader at this position, and puts it behind them.
    pub(super) fn take(&mut self, at: &mut u64) -> Found {
        if *at < self.start() {
            return Found::Gone;
        }
        let place = self.place(*at);
        let Some(held) = self.chunks.get_mut(place) else { return Found::Level };
        let bytes = held.chunk.rest(*at);
        held.readers -= 1;
        *at = held.chunk.end;
        *self.readers_at(place + 1) += 1;
        self.trim();
        Found::Bytes(bytes)
    }

    /// Returns whether the body is still kept if this number of bytes is added.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        !self.is_streamed && bytes <= self.max - self.held
    }

    /// Keeps no more than the readers need from now on.
    pub(super) fn stream(&mut self) {
        self.is_streamed = true;
        self.trim();
    }

    /// Adds bytes, which are not empty. If the body is streamed, a reader must [be level](Self::has_level) if any is
    /// left: the others may lose bytes that they have yet to take.
    ///
    /// The bytes of a streamed body take as much of the room as its `share` can get, or a little.
    pub(super) fn push(&mut self, data: Bytes, share: &mut Share) {
        if self.is_streamed {
            let wanted = self.held.saturating_add(data.len()).min(self.max);
            self.window = share.adjust(wanted).max(WINDOW.min(self.max));
        }
        while self.is_streamed && data.len() > self.window.saturating_sub(self.held) {
            let Some(gone) = self.pop() else { break };
            self.readers -= gone.readers;
        }
        self.trim();
        let len = data.len();
        if len >= SMALL - self.loose.bytes.min(SMALL) {
            self.join_loose();
        }
        if len < SMALL {
            self.loose.chunks += 1;
            self.loose.bytes += len;
        }
        self.held += len;
        self.arrived += len as u64;
        let chunk = Chunk { end: self.arrived, data };
        self.chunks.push_back(Held { chunk, readers: mem::take(&mut self.level) });
        if self.is_streamed {
            share.adjust(self.held);
        }
    }

    /// Returns the whole body, which must not be streamed, and keeps nothing.
    pub(super) fn finish(&mut self, trailers: Option<HeaderMap>, share: Share) -> Content {
        if self.arrived <= ONE_PIECE {
            self.loose = Loose { chunks: self.chunks.len(), bytes: self.held };
        }
        self.join_loose();
        self.held = 0;
        let chunks = mem::take(&mut self.chunks).into_iter().map(|held| held.chunk).collect();
        Content::new(chunks, trailers, Some(share))
    }

    pub(super) fn arrived(&self) -> u64 {
        self.arrived
    }

    pub(super) fn is_streamed(&self) -> bool {
        self.is_streamed
    }

    pub(super) fn has_readers(&self) -> bool {
        self.readers > 0
    }

    /// Returns whether a reader has taken all bytes so far.
    pub(super) fn has_level(&self) -> bool {
        self.level > 0
    }

    /// The position of the first byte that is held.
    fn start(&self) -> u64 {
        self.arrived - self.held as u64
    }

    /// The index of the chunk that a reader has to take next. If it is level, that is the number of chunks.
    fn place(&self, at: u64) -> usize {
        self.chunks.partition_point(|held| held.chunk.end <= at)
    }

    fn readers_at(&mut self, place: usize) -> &mut usize {
        self.chunks.get_mut(place).map_or(&mut self.level, |held| &mut held.readers)
    }

    /// Drops the chunks that every reader has passed, if the body is streamed.
    fn trim(&mut self) {
        while self.is_streamed && self.chunks.front().is_some_and(|first| first.readers == 0) {
            self.pop();
        }
    }

    fn pop(&mut self) -> Option<Held> {
        let first = self.chunks.pop_front()?;
        self.held -= first.chunk.len();
        if self.loose.chunks > self.chunks.len() {
            self.loose.chunks -= 1;
            self.loose.bytes -= first.chunk.len();
        }
        Some(first)
    }

    fn join_loose(&mut self) {
        let Loose { chunks, bytes } = mem::take(&mut self.loose);
        if chunks < 2 {
            return;
        }
        let (mut data, mut readers) = (Vec::with_capacity(bytes), 0);
        for held in self.chunks.drain(self.chunks.len() - chunks..) {
            data.extend_from_slice(&held.chunk.data);
            readers += held.readers;
        }
        let chunk = Chunk { end: self.arrived, data: data.into() };
        self.chunks.push_back(Held { chunk, readers });
    }
}

#[cfg(test)]
impl Tape {
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The bytes that are held, after a check that all counts are right.
    pub(super) fn held(&self) -> usize {
        let bytes = |from: usize| -> usize { self.chunks.range(from..).map(|held| held.chunk.len()).sum() };
        let loose = self.chunks.len() - self.loose.chunks;
        assert_eq!((bytes(0), bytes(loose)), (self.held, self.loose.bytes));
        assert!(self.chunks.range(loose..).all(|held| held.chunk.len() < SMALL) && self.loose.bytes < SMALL);
        self.held
    }
}
