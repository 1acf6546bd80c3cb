//! What the attempts of a request share of its body: what has passed so far, who may read on, and whether a copy is still whole.
//!
//! Pure: it is told what happened. The plumbing holds it under a lock and runs nobody else's code there: what has to be woken or
//! dropped is handed out.

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

use super::allowance::Allowance;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

/// What the attempts share, where `I` is the body that they read. It belongs to the attempt that asked for it last for
/// the first time.
pub(super) struct Tape<I> {
    // None while somebody polls it, and when it has ended.
    inner: Option<I>,
    end: End,
    // None once it was given up.
    recording: Option<Recording>,
    // How many frames the body gave so far, recorded or not.
    passed: usize,
    // The turn of the attempt that the body belongs to. Those before it have lost it.
    current: u64,
    // How many attempts wait for their turn, and will want all of it then.
    waiting: usize,
    // Of who polled last.
    reader: Option<Waker>,
}

enum End {
    Open,
    Ended,
    // With the error, as long as nobody has got it.
    Failed(Option<BoxError>),
}

/// What an attempt finds when it polls.
pub(super) enum Turn<I> {
    /// This frame has passed already.
    Frame(Frame<Bytes>),
    /// It is to poll the body itself, and then to [`settle`](Tape::settle).
    Stream(I),
    /// An earlier attempt is just polling the body. It will wake this one.
    Wait,
    /// That was all.
    End,
    /// It cannot go on.
    Fail(BoxError),
}

/// What a poll of the body gives.
pub(super) type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// What is left for who polled the body, without the lock.
pub(super) struct Settled {
    /// What it gives.
    pub(super) polled: Polled,
    /// To be woken: it has the body now.
    pub(super) wake: Option<Waker>,
    /// To be dropped: they are of no use any more.
    pub(super) given_up: (Option<Recording>, Option<Polled>),
    /// Why, if somebody might have needed it.
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
            waiting: 0,
            reader: None,
        }
    }

    /// The place of a new attempt; `None` if it could not have the whole body. What passes is kept while it waits.
    pub(super) fn copy(&mut self) -> Option<Place> {
        self.check(0).ok()?;
        self.waiting += 1;
        Some(Place::waiting())
    }

    /// The place of a new attempt for which nothing is kept: it can have the body as long as nobody reads of it.
    pub(super) fn spare(&mut self) -> Option<Place> {
        self.check(0).ok()?;
        Some(Place::spare())
    }

    /// An attempt is dropped.
    pub(super) fn leave(&mut self, place: &Place) {
        self.waiting -= usize::from(place.is_waiting());
    }

    /// From now on the body belongs to this attempt, which has had so many frames. Gives the waker of who had it before.
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
        place.take_turn(self.current);
        Ok(self.reader.take())
    }

    fn is_lost(&self, place: &Place) -> bool {
        place.turn().is_some_and(|turn| turn < self.current)
    }

    /// What an attempt that has had so many frames does next. Leaves the waker, and gives the one that was there before.
    pub(super) fn turn(&mut self, place: &Place, had: usize, waker: &mut Option<Waker>) -> (Turn<I>, Option<Waker>) {
        // It was given everything, so it has lost nothing either.
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
                Turn::Frame(kept.frame())
            }
            (None, Some(inner)) => Turn::Stream(inner),
            (None, None) => Turn::Wait,
        };
        (turn, wake)
    }

    /// Takes what came of polling the body, and the body if it goes on.
    pub(super) fn settle(&mut self, place: &Place, inner: Option<I>, mut polled: Polled) -> Settled {
        let lost = self.is_lost(place);
        let mut given_up = (None, None);
        let mut reason = None;
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.passed += 1;
            // Only an attempt that waits for its turn, or has just had it, can ever ask for it again.
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
            // What came of it is for the attempt that has the body now.
            wake = self.reader.take();
            let taken_over = Poll::Ready(Some(Err(Unsendable::TakenOver.into())));
            match mem::replace(&mut polled, taken_over) {
                Poll::Ready(Some(Err(error))) => self.end = End::Failed(Some(error)),
                other => given_up.1 = Some(other),
            }
        } else if let Poll::Ready(Some(Err(_))) = &polled {
            self.end = End::Failed(None);
        }
        if let End::Failed(_) = self.end {
            given_up.0 = self.recording.take();
        }
        self.inner = inner;
        Settled { polled, wake, given_up, reason }
    }

    /// Who polled the body panicked. Gives the waker of who waits for it.
    pub(super) fn fail(&mut self) -> Option<Waker> {
        self.end = End::Failed(None);
        self.reader.take()
    }

    /// Whether who has had so many frames has had all of them.
    pub(super) fn is_end(&self, had: usize) -> bool {
        matches!(self.end, End::Ended) && had == self.passed
    }

    fn record(&mut self, frame: &Frame<Bytes>, lost: bool) -> Result<(), Option<&'static str>> {
        let recording = self.recording.as_mut().ok_or(None)?;
        let kept = Kept::of(frame).ok_or(Some("size"))?;
        if lost {
            // A later attempt was told that it gets the whole body, before this frame came: it has to, whatever the bounds.
            recording.push(kept);
            return Ok(());
        }
        recording.keep(kept).map_err(Some)
    }

    /// Whether who has had so many frames can have the rest.
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
            Self::TakenOver => "a later attempt took this body over",
            Self::NotKept => "the beginning of this body was not kept: it cannot be sent again",
            Self::Failed => "this body has failed before, in this attempt or an earlier one",
        })
    }
}

impl StdError for Unsendable {}

/// The frames that have passed, all of them from the first on. What it holds is given back to the allowance when it is dropped.
pub(super) struct Recording {
    frames: Vec<Kept>,
    bytes: usize,
    max_bytes: usize,
    allowance: Arc<Allowance>,
}

/// So many frames are kept however small they are, and one more for each so many bytes that are allowed: a body of empty frames
/// would grow for ever.
const SMALL: usize = 64;

impl Recording {
    /// For a body of at least so many bytes.
    pub(super) fn new(allowance: &Arc<Allowance>, at_least: u64) -> Self {
        // What will not fit is not begun.
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

/// A frame that is kept, in memory of its own: a slice keeps all of the buffer that it was cut from, however small it
/// is itself. Trailers come once, so they are not to make the others as large as they are.
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
