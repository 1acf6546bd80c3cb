//! The messages that have arrived and are not decoded yet: a bounded number of them.
//!
//! The client of the server has a queue of its own, without a bound. So all messages that are there are taken from it
//! before one is decoded, and too many of them push out the oldest.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

pub(super) struct Inbox<S: Stream> {
    messages: S,
    is_open: bool,
    waiting: VecDeque<S::Item>,
    capacity: usize,
    missed: u64,
}

impl<S: Stream + Unpin> Inbox<S> {
    pub(super) fn new(messages: S, capacity: usize) -> Self {
        Self { messages, is_open: true, waiting: VecDeque::new(), capacity, missed: 0 }
    }

    /// Returns the next message, with the number of those that were missed before it.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(u64, S::Item)>> {
        while self.is_open
            && let Poll::Ready(next) = Pin::new(&mut self.messages).poll_next(cx)
        {
            let Some(message) = next else {
                self.is_open = false;
                break;
            };
            if self.waiting.len() >= self.capacity {
                self.waiting.pop_front();
                self.missed += 1;
            }
            self.waiting.push_back(message);
        }
        match self.waiting.pop_front() {
            Some(message) => Poll::Ready(Some((std::mem::take(&mut self.missed), message))),
            None if self.is_open => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::stream;

    use super::*;

    /// Shows: M3
    #[test]
    fn too_many_messages_push_out_the_oldest() {
        let mut cx = Context::from_waker(Waker::noop());
        for (capacity, expected) in [(1, vec![(9, 9)]), (3, vec![(7, 7), (0, 8), (0, 9)])] {
            let mut inbox = Inbox::new(stream::iter(0..10), capacity);
            for next in expected {
                assert_eq!(inbox.poll_next(&mut cx), Poll::Ready(Some(next)));
            }
            assert_eq!(inbox.poll_next(&mut cx), Poll::Ready(None));
        }
        assert_eq!(Inbox::new(stream::pending::<u8>(), 1).poll_next(&mut cx), Poll::Pending);
    }
}
