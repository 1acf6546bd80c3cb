//! A stream that runs in a scope.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use crate::{
    debug::impl_debug,
    scope::{Scope, enter},
};

pin_project! {
    /// The stream of [`within_scope`](super::StreamExt::within_scope).
    #[must_use = "streams do nothing unless polled"]
    pub struct WithinScope<S> {
        // `None` once it has ended.
        #[pin]
        stream: Option<S>,
        // `None` once the stream has ended.
        scope: Option<Scope>,
    }

    impl<S> PinnedDrop for WithinScope<S> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _entered = enter(this.scope);
            this.stream.set(None);
        }
    }
}

impl<S> WithinScope<S> {
    pub(super) fn new(stream: S, scope: Scope) -> Self {
        Self { stream: Some(stream), scope: Some(scope) }
    }
}

impl<S: Stream> Stream for WithinScope<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let mut this = self.project();
        let entered = enter(this.scope);
        let Some(stream) = this.stream.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let item = ready!(stream.poll_next(cx));
        if item.is_none() {
            this.stream.set(None);
            drop(entered);
            *this.scope = None;
        }
        Poll::Ready(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.as_ref().map_or((0, Some(0)), S::size_hint)
    }
}

impl_debug!(WithinScope<S> { stream: S, scope });
