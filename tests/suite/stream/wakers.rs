//! Wakers that panic when they are dropped, on either side of a generated stream.

use std::{
    future::{Future, pending},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use ziggurat::stream::{Sender, Stream, generate};

/// Panics when it is dropped without having been woken, and counts its wake-ups.
struct Bang(Arc<AtomicUsize>);

impl Wake for Bang {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Bang {
    fn drop(&mut self) {
        assert!(self.0.load(Ordering::SeqCst) > 0, "dropped, and not woken");
    }
}

/// A stream whose producer sends nothing, and a sender to it.
fn silent() -> (Pin<Box<impl Stream<Item = u32>>>, Sender<u32>) {
    let given = Arc::new(Mutex::new(None));
    let gives = Arc::clone(&given);
    let stream = Box::pin(generate(move |sender: Sender<u32>| {
        *gives.lock().unwrap() = Some(sender);
        pending::<()>()
    }));
    let sender = given.lock().unwrap().take().unwrap();
    (stream, sender)
}

/// Polls with a waker that panics on drop. The callee holds its last clone. Also returns the count of its wake-ups.
fn poll_with_bang<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> (Poll<T>, Arc<AtomicUsize>) {
    let woken = Arc::new(AtomicUsize::new(0));
    let waker = Waker::from(Arc::new(Bang(Arc::clone(&woken))));
    let polled = poll(&mut Context::from_waker(&waker));
    (polled, woken)
}

#[test]
fn a_sender_whose_old_waker_panics_in_its_drop_still_takes_its_item_back() {
    let (mut stream, sender) = silent();
    let mut cx = Context::from_waker(Waker::noop());
    let mut send = Box::pin(sender.send(7));
    let (polled, woken) = poll_with_bang(|cx| send.as_mut().poll(cx));
    assert!(polled.is_pending());
    // It panics here, when another waker replaces it.
    assert!(send.as_mut().poll(&mut cx).is_pending());
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    // And here, when the item is withdrawn.
    assert!(poll_with_bang(|cx| send.as_mut().poll(cx)).0.is_pending());
    drop(send);
    assert!(stream.as_mut().poll_next(&mut cx).is_pending());

    let mut again = pin!(sender.send(8));
    assert!(again.as_mut().poll(&mut cx).is_pending());
    assert_eq!(stream.as_mut().poll_next(&mut cx), Poll::Ready(Some(8)));
    assert!(again.poll(&mut cx).is_ready());
}

#[test]
fn a_reader_whose_old_waker_panics_in_its_drop_goes_on_to_read() {
    let (mut stream, sender) = silent();
    let mut cx = Context::from_waker(Waker::noop());
    let (polled, _) = poll_with_bang(|cx| stream.as_mut().poll_next(cx));
    assert!(polled.is_pending());
    assert!(stream.as_mut().poll_next(&mut cx).is_pending());

    let mut send = pin!(sender.send(7));
    let (polled, woken) = poll_with_bang(|cx| send.as_mut().poll(cx));
    assert!(polled.is_pending());
    assert_eq!(stream.as_mut().poll_next(&mut cx), Poll::Ready(Some(7)));
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    assert!(send.poll(&mut cx).is_ready());
}
