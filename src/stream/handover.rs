//! Hands over items one by one: the sender owns an item until the reader takes it.

use std::{
    collections::BTreeMap,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio_util::sync::CancellationToken;

use super::closed::Closed;
use crate::{caught::undisturbed, mutex::Mutex};

/// The state that senders and their reader share. No user code runs, and no user value is dropped, under its lock.
pub(super) struct Handover<T> {
    state: Mutex<State<T>>,
    /// Cancelled when no more items are accepted.
    closed: CancellationToken,
}

struct State<T> {
    /// By number. An empty map keeps its node, so that an item costs no allocation.
    offers: BTreeMap<u64, Offer<T>>,
    next: u64,
    reader: Option<Waker>,
    phase: Phase,
}

struct Offer<T> {
    item: T,
    sender: Waker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The reader takes the items that were offered before. No more are accepted.
    Ended,
    /// The reader is gone. Each sender takes its item back.
    Dropped,
}

impl<T> Handover<T> {
    pub(super) fn new() -> Arc<Self> {
        let state = State { offers: BTreeMap::new(), next: 0, reader: None, phase: Phase::Open };
        Arc::new(Self { state: Mutex::new(state), closed: CancellationToken::new() })
    }

    pub(super) fn offer(&self, item: T) -> Offering<'_, T> {
        Offering { to: self, step: Step::Begins(item) }
    }

    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// The number of items that are offered and not taken yet.
    pub(super) fn len(&self) -> usize {
        self.state.lock().offers.len()
    }
}

impl<T> State<T> {
    /// Accepts an item and returns its number, with the reader's waker if the reader waits. Otherwise returns the
    /// offer.
    fn accept(&mut self, offer: Offer<T>) -> Result<(u64, Option<Waker>), Offer<T>> {
        if self.phase != Phase::Open {
            return Err(offer);
        }
        let number = self.next;
        self.next += 1;
        self.offers.insert(number, offer);
        Ok((number, self.reader.take()))
    }

    fn take(&mut self) -> Option<Offer<T>> {
        Some(self.offers.pop_first()?.1)
    }
}

/// The reader's end.
pub(super) struct Reader<T>(pub(super) Arc<Handover<T>>);

impl<T> Reader<T> {
    /// Takes the oldest offer. From then on the reader is not woken, because it is looking itself.
    pub(super) fn take(&self) -> Option<T> {
        let mut state = self.0.state.lock();
        let (offer, reader) = (state.take(), state.reader.take());
        drop(state);
        undisturbed(|| drop(reader));
        taken(offer?)
    }

    /// Takes the oldest offer. If there is none, the next offer wakes the reader.
    pub(super) fn take_or_wait(&self, cx: &mut Context<'_>) -> Option<T> {
        let waker = cx.waker().clone();
        let mut state = self.0.state.lock();
        let offer = state.take();
        let unused = if offer.is_some() { Some(waker) } else { state.reader.replace(waker) };
        drop(state);
        // If this panicked, the sender whose item was taken would not be woken.
        undisturbed(|| drop(unused));
        taken(offer?)
    }

    /// Accepts no more items.
    pub(super) fn end(&self) {
        self.0.state.lock().phase = Phase::Ended;
        undisturbed(|| self.0.closed.cancel());
    }
}

fn taken<T>(offer: Offer<T>) -> Option<T> {
    let Offer { item, sender } = offer;
    undisturbed(|| sender.wake());
    Some(item)
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.phase = Phase::Dropped;
        let reader = state.reader.take();
        let noop = Waker::noop();
        let offers = state.offers.values_mut();
        let senders: Vec<_> = offers.map(|offer| mem::replace(&mut offer.sender, noop.clone())).collect();
        drop(state);
        undisturbed(|| drop(reader));
        for sender in senders {
            undisturbed(|| sender.wake());
        }
        undisturbed(|| self.0.closed.cancel());
    }
}

/// An item on its way to the reader. Dropping it before the item is taken withdraws the item.
pub(super) struct Offering<'a, T> {
    to: &'a Handover<T>,
    step: Step<T>,
}

enum Step<T> {
    Begins(T),
    Offered(u64),
    Ended,
}

// No field is ever pinned.
impl<T> Unpin for Offering<'_, T> {}

impl<T> Future for Offering<'_, T> {
    type Output = Result<(), Closed<T>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let sender = cx.waker().clone();
        match mem::replace(&mut self.step, Step::Ended) {
            Step::Begins(item) => {
                let accepted = self.to.state.lock().accept(Offer { item, sender });
                match accepted {
                    Ok((number, reader)) => {
                        self.step = Step::Offered(number);
                        if let Some(reader) = reader {
                            undisturbed(|| reader.wake());
                        }
                        Poll::Pending
                    }
                    Err(Offer { item, .. }) => Poll::Ready(Err(Closed { item })),
                }
            }
            Step::Offered(number) => {
                let mut state = self.to.state.lock();
                if state.phase == Phase::Dropped {
                    let back = state.offers.remove(&number);
                    drop(state);
                    return Poll::Ready(back.map_or(Ok(()), |Offer { item, .. }| Err(Closed { item })));
                }
                let Some(offer) = state.offers.get_mut(&number) else { return Poll::Ready(Ok(())) };
                let before = mem::replace(&mut offer.sender, sender);
                drop(state);
                self.step = Step::Offered(number);
                undisturbed(|| drop(before));
                Poll::Pending
            }
            Step::Ended => panic!("`send` polled after completion"),
        }
    }
}

impl<T> Drop for Offering<'_, T> {
    fn drop(&mut self) {
        if let Step::Offered(number) = self.step {
            let mut state = self.to.state.lock();
            let back = state.offers.remove(&number);
            drop(state);
            if let Some(Offer { item, sender }) = back {
                undisturbed(|| drop(sender));
                drop(item);
            }
        }
    }
}
