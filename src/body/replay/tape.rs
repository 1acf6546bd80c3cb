//! The state that all attempts of a request share: the frames that have passed, the attempt that may read on, and
//! whether a copy is still complete.
//!
//! This module is pure state. Its caller holds it under a lock, where no user code runs. Values to wake or drop are
//! returned to the caller.

use std::{
    error::Error as StdError,
    fmt, mem,
    sync::Arc,
    task::{Poll, Waker},
};

use super::place::Place;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::{super::BoxError, allowance::Allowance};

/// The shared state, where `I` is the body that the attempts read. The body belongs to the attempt that was the latest
/// to request it for the first time.
pub(super) struct Tape<I> {
    // None while an attempt polls it, and when it has ended.
    inner: Option<I>,
    end: End,
    // None after it was discarded.
    recording: Option<Recording>,
    // The number of frames that the body has yielded so far, recorded or not.
    passed: usize,
    // The turn of the attempt that owns the body. Earlier attempts have lost it.
    current: u64,
    // The number of frames that this attempt has received.
    had: usize,
    // The number of attempts that have not started yet, and will need the whole body.
    waiting: usize,
    // The waker of the latest reader.
    reader: Option<Waker>,
}

enum End {
    Open,
    Ended,
    // The error, until an attempt takes it.
    Failed(Option<BoxError>),
}

/// The next step of an attempt that polls.
pub(super) enum Turn<I> {
    /// A frame that has already passed.
    Frame(Frame<Bytes>),
    /// The attempt polls the body itself, and then calls [`settle`](Tape::settle).
    Stream(I),
    /// An earlier attempt is polling the body right now, and will wake this one.
    Wait,
    /// The body has ended.
    End,
    /// The attempt cannot continue.
    Fail(BoxError),
}

/// The result of a poll of the body.
pub(super) type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// The rest of the work for the attempt that polled the body, to be done without the lock.
pub(super) struct Settled {
    /// The result of the poll.
    pub(super) polled: Polled,
    /// The waker of the attempt that owns the body now.
    pub(super) wake: Option<Waker>,
    /// Values to drop, which are no longer needed.
    pub(super) given_up: (Option<Recording>, Option<Polled>),
    /// Why the recording was discarded, if an attempt might have needed it.
    pub(super) reason: Option<&'static str>,
}

impl<I> Tape<I> {
    pub(super) fn new(inner: I, recording: Recording) -> Self {
        Self {
            inner: Some(inner),
            end: End::Open,
            recording: Some(recording),
            passed: 0,
            current: Place::FIRST,
            had: 0,
            waiting: 0,
            reader: None,
        }
    }

    /// Adds an attempt and returns its place, or `None` if it could not have the whole body. Frames are kept while it
    /// waits.
    pub(super) fn copy(&mut self) -> Option<Place> {
        self.check(0).ok()?;
        self.waiting += 1;
        Some(Place::waiting())
    }

    /// Returns the place of a new attempt for which nothing is kept. It can have the body until the body is first read.
    pub(super) fn spare(&mut self) -> Option<Place> {
        self.check(0).ok()?;
        Some(Place::spare())
    }

    /// Removes an attempt that is dropped.
    pub(super) fn leave(&mut self, place: &Place) {
        self.waiting -= usize::from(place.is_waiting());
    }

    /// Gives the body to this attempt, which has received `had` frames. Returns the waker of the previous owner.
    pub(super) fn take_over(&mut self, place: &Place, had: usize) -> Result<Option<Waker>, BoxError> {
        if self.is_lost(place) {
            return Err(Unsendable::TakenOver.into());
        }
        self.check(had)?;
        if place.turn() == Some(self.current) {
            return Ok(None);
        }
        self.leave(place);
        self.current += 1;
        self.had = had;
        place.take_turn(self.current);
        Ok(self.reader.take())
    }

    fn is_lost(&self, place: &Place) -> bool {
        place.turn().is_some_and(|turn| turn < self.current)
    }

    /// Returns the next step of an attempt that has received `had` frames. Stores its waker, and returns the previous
    /// owner's.
    pub(super) fn turn(&mut self, place: &Place, had: usize, waker: &mut Option<Waker>) -> (Turn<I>, Option<Waker>) {
        // It has received every frame, so it has lost nothing.
        if self.is_end(had) {
            return (Turn::End, None);
        }
        let wake = match self.take_over(place, had) {
            Ok(wake) => wake,
            Err(error) => return (Turn::Fail(self.own_error(place).unwrap_or(error)), None),
        };
        mem::swap(&mut self.reader, waker);
        let recorded = self.recording.as_ref().and_then(|recording| recording.frames.get(had));
        let turn = match (recorded, self.inner.take()) {
            (Some(kept), inner) => {
                self.inner = inner;
                self.had = had + 1;
                Turn::Frame(kept.frame())
            }
            (None, Some(inner)) => Turn::Stream(inner),
            (None, None) => Turn::Wait,
        };
        (turn, wake)
    }

    /// Stores the result of polling the body, and the body if it continues.
    pub(super) fn settle(&mut self, place: &Place, inner: Option<I>, mut polled: Polled) -> Settled {
        let lost = self.is_lost(place);
        let mut given_up = (None, None);
        let mut reason = None;
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.passed += 1;
            // Only an attempt that has not started, or that just took over, can still request this frame.
            let wanted = lost || self.waiting > 0;
            if let Err(why) = if wanted { self.record(frame, lost) } else { Err(None) } {
                given_up.0 = self.recording.take();
                reason = given_up.0.as_ref().and(why);
            }
        }
        if inner.is_none() {
            self.end = End::Ended;
        }
        let mut wake = None;
        if lost {
            // The result belongs to the attempt that owns the body now.
            wake = self.reader.take();
            let taken_over = Poll::Ready(Some(Err(Unsendable::TakenOver.into())));
            match mem::replace(&mut polled, taken_over) {
                Poll::Ready(Some(Err(error))) => self.end = End::Failed(Some(error)),
                other => given_up.1 = Some(other),
            }
        } else {
            self.had = self.passed;
            if let Poll::Ready(Some(Err(_))) = &polled {
                self.end = End::Failed(None);
            }
        }
        if let End::Failed(_) = self.end {
            given_up.0 = self.recording.take();
        }
        self.inner = inner;
        Settled { polled, wake, given_up, reason }
    }

    /// Records that the attempt that polled the body panicked. Returns the waker of the attempt that waits for it.
    pub(super) fn fail(&mut self) -> Option<Waker> {
        self.end = End::Failed(None);
        self.reader.take()
    }

    /// Returns whether an attempt that has received `had` frames has received all.
    pub(super) fn is_end(&self, had: usize) -> bool {
        matches!(self.end, End::Ended) && had == self.passed
    }

    /// Returns whether the attempt that owns the body has received all of it.
    pub(super) fn is_read(&self) -> bool {
        self.is_end(self.had)
    }

    fn record(&mut self, frame: &Frame<Bytes>, lost: bool) -> Result<(), Option<&'static str>> {
        let recording = self.recording.as_mut().ok_or(None)?;
        let kept = Kept::of(frame).ok_or(Some("size"))?;
        if lost {
            // A later attempt took over before this frame came, and was promised the whole body, whatever the bounds.
            recording.push(kept);
            return Ok(());
        }
        recording.keep(kept).map_err(Some)
    }

    /// Checks whether an attempt that has received `had` frames can receive the rest.
    fn check(&self, had: usize) -> Result<(), Unsendable> {
        match self.end {
            End::Failed(_) => Err(Unsendable::Failed),
            _ if had < self.passed && self.recording.is_none() => Err(Unsendable::NotKept),
            _ => Ok(()),
        }
    }

    fn own_error(&mut self, place: &Place) -> Option<BoxError> {
        match &mut self.end {
            End::Failed(error) if place.turn().is_none_or(|turn| turn >= self.current) => error.take(),
            _ => None,
        }
    }
}

/// Why an attempt cannot have the rest of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unsendable {
    TakenOver,
    NotKept,
    Failed,
}

impl fmt::Display for Unsendable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TakenOver => "a later attempt took over this body",
            Self::NotKept => "the start of this body was not kept, so it cannot be sent again",
            Self::Failed => "this body has already failed, in this attempt or an earlier one",
        })
    }
}

impl StdError for Unsendable {}

/// All frames that have passed, from the first. Returns its bytes to the allowance when dropped.
pub(super) struct Recording {
    frames: Vec<Kept>,
    bytes: usize,
    max_bytes: usize,
    allowance: Arc<Allowance>,
}

/// The number of frames that are kept regardless of their size, and the number of allowed bytes for each further frame.
/// A body of empty frames would otherwise grow without bound.
const SMALL: usize = 64;

impl Recording {
    /// Creates a recording for a body of at least `at_least` bytes.
    pub(super) fn new(allowance: &Arc<Allowance>, at_least: u64) -> Self {
        // A body that cannot fit is not recorded at all.
        let fits = usize::try_from(at_least).is_ok_and(|bytes| bytes <= allowance.max_bytes);
        let max_bytes = if fits { allowance.max_bytes } else { 0 };
        Self { frames: Vec::new(), bytes: 0, max_bytes, allowance: Arc::clone(allowance) }
    }

    fn keep(&mut self, kept: Kept) -> Result<(), &'static str> {
        let bytes = kept.bytes();
        if bytes > self.max_bytes.saturating_sub(self.bytes) || self.frames.len() >= SMALL + self.max_bytes / SMALL {
            return Err("size");
        }
        if !self.allowance.take(bytes) {
            return Err("total");
        }
        self.bytes += bytes;
        self.frames.push(kept);
        Ok(())
    }

    fn push(&mut self, kept: Kept) {
        self.allowance.take_anyway(kept.bytes());
        self.bytes += kept.bytes();
        self.frames.push(kept);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.allowance.give_back(self.bytes);
    }
}

/// A kept frame, in its own memory: even a small slice would keep the whole buffer that it was cut from. Trailers are
/// boxed, because they come once and would make every frame as large as they are.
enum Kept {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

impl Kept {
    fn of(frame: &Frame<Bytes>) -> Option<Self> {
        let trailers = || Some(Self::Trailers(Box::new(frame.trailers_ref()?.clone())));
        frame.data_ref().map(|data| Self::Data(Bytes::copy_from_slice(data))).or_else(trailers)
    }

    fn frame(&self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data.clone()),
            Self::Trailers(trailers) => Frame::trailers(HeaderMap::clone(trailers)),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(trailers) => trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum(),
        }
    }
}
