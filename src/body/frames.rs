//! Helpers for bodies that pass on the frames of another body.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::BoxError;

/// Polls a frame of a body of any kind.
pub(crate) fn poll_frame<B>(body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>
where
    B: Body<Error: Into<BoxError>>,
{
    let frame = ready!(body.poll_frame(cx));
    let whole = |frame: Frame<B::Data>| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
    Poll::Ready(frame.map(|frame| frame.map(whole).map_err(Into::into)))
}

/// Returns the size of a body without the bytes that have gone.
pub(crate) fn left(size: SizeHint, gone: u64) -> SizeHint {
    let mut left = SizeHint::new();
    left.set_lower(size.lower().saturating_sub(gone));
    if let Some(upper) = size.upper() {
        left.set_upper(upper.saturating_sub(gone));
    }
    left
}
