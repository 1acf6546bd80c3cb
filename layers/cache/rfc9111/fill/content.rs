//! A body in memory, and the part of it that a caller has yet to read.

use std::{mem::size_of, ops::Range, sync::Arc};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::room::{Room, Share};
use crate::debug::impl_debug;

/// A body in memory, whole. A clone shares the memory.
#[derive(Clone)]
pub(in super::super) struct Content(Arc<Whole>);

struct Whole {
    chunks: Box<[Chunk]>,
    trailers: Option<HeaderMap>,
    /// Its part of the room, until the last caller has read it.
    _share: Option<Share>,
}

/// A part of a body, which is never empty.
pub(super) struct Chunk {
    /// The number of bytes of the body up to the end of this part.
    pub(super) end: u64,
    pub(super) data: Bytes,
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    /// Returns the rest from this position in the body, without a copy.
    pub(super) fn rest(&self, at: u64) -> Bytes {
        let start = self.end - self.data.len() as u64;
        self.data.slice(at.saturating_sub(start) as usize..)
    }
}

/// The memory that a chunk takes up beside its bytes: its place in a list, the counter that its clones share, and the
/// rounding of the allocator for both.
const CHUNK: usize = size_of::<Chunk>() + 64;

/// The memory that a trailer takes up beside its text.
const TRAILER: usize = 128;

impl Content {
    pub(super) fn new(chunks: Box<[Chunk]>, trailers: Option<HeaderMap>, share: Option<Share>) -> Self {
        let trailers = trailers.filter(|trailers| !trailers.is_empty());
        Self(Arc::new(Whole { chunks, trailers, _share: share }))
    }

    /// Makes a body of `bytes`, which are not copied: a slice of a larger buffer keeps all of it. It
    /// takes no part of the room.
    pub(in super::super) fn from_bytes(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        let chunk = Chunk { end: data.len() as u64, data };
        Self::new(Some(chunk).into_iter().filter(|chunk| chunk.len() > 0).collect(), trailers, None)
    }

    /// Takes its part of the room. Returns `None` if there is too little.
    pub(in super::super) fn counted(self, room: &Arc<Room>) -> Option<Self> {
        let mut share = Share::of(room);
        let is_taken = share.take(usize::try_from(self.len()).ok()?);
        let Whole { chunks, trailers, .. } = Arc::into_inner(self.0).filter(|_| is_taken)?;
        Some(Self::new(chunks, trailers, Some(share)))
    }

    /// Returns the body, piece by piece.
    pub(in super::super) fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.0.chunks.iter().map(|chunk| &chunk.data)
    }

    /// Returns the body in one piece. It is copied unless it is in one piece already.
    #[cfg(test)]
    pub(in super::super) fn to_bytes(&self) -> Bytes {
        match &*self.0.chunks {
            [] => Bytes::new(),
            [chunk] => chunk.data.clone(),
            chunks => {
                let mut all = Vec::with_capacity(chunks.iter().map(Chunk::len).sum());
                chunks.iter().for_each(|chunk| all.extend_from_slice(&chunk.data));
                all.into()
            }
        }
    }

    pub(in super::super) fn trailers(&self) -> Option<&HeaderMap> {
        self.0.trailers.as_ref()
    }

    pub(in super::super) fn len(&self) -> u64 {
        self.0.chunks.last().map_or(0, |chunk| chunk.end)
    }

    /// Returns the memory that the body takes up, in bytes.
    pub(in super::super) fn weight(&self) -> usize {
        let chunks: usize = self.0.chunks.iter().map(|chunk| CHUNK + chunk.len()).sum();
        let trailers = self.0.trailers.iter().flatten();
        size_of::<Whole>()
            + chunks
            + trailers.map(|(name, value)| TRAILER + name.as_str().len() + value.len()).sum::<usize>()
    }

    fn chunk(&self, at: u64) -> Option<&Chunk> {
        self.0.chunks.get(self.0.chunks.partition_point(|chunk| chunk.end <= at))
    }
}

impl_debug!(Content {
    len = |this| this.len(),
    chunks = |this| this.0.chunks.len(),
    trailers = |this| this.trailers(),
});

/// The part of a body in memory that a caller has yet to read.
pub(in super::super) struct Rest {
    content: Content,
    range: Range<u64>,
    has_trailers: bool,
}

impl Rest {
    /// The body from this position to its end, with its trailers.
    pub(in super::super) fn new(content: Content, at: u64) -> Self {
        Self { range: at..content.len(), has_trailers: content.trailers().is_some(), content }
    }

    /// Those bytes of the range that the body has, without its trailers.
    pub(in super::super) fn part(content: Content, range: Range<u64>) -> Self {
        let end = range.end.min(content.len());
        Self { range: range.start.min(end)..end, has_trailers: false, content }
    }

    pub(in super::super) fn next(&mut self) -> Option<Frame<Bytes>> {
        if let Some(chunk) = self.content.chunk(self.range.start).filter(|_| !self.range.is_empty()) {
            let mut data = chunk.rest(self.range.start);
            data.truncate(usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX));
            self.range.start += data.len() as u64;
            return Some(Frame::data(data));
        }
        let trailers = if self.has_trailers { self.content.trailers() } else { None };
        self.has_trailers = false;
        trailers.cloned().map(Frame::trailers)
    }

    pub(in super::super) fn is_end(&self) -> bool {
        self.range.is_empty() && !self.has_trailers
    }

    /// Returns whether there are several frames to come.
    pub(in super::super) fn is_long(&self) -> bool {
        self.content.chunk(self.range.start).is_some_and(|chunk| chunk.end < self.range.end)
    }

    pub(in super::super) fn size_hint(&self) -> SizeHint {
        let left = self.range.end - self.range.start;
        if !self.has_trailers {
            return SizeHint::with_exact(left);
        }
        // hyper sends no trailers over HTTP/1 behind a body whose size it knows.
        let mut hint = SizeHint::new();
        hint.set_lower(left);
        hint
    }
}
