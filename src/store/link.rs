//! The link of a layer to its store: requests in bounded time, and whether the store is away.

use std::{
    fmt,
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{sync::oneshot, task::unconstrained};

use super::health::{Advice, Health};
use crate::{
    caught::caught,
    clock::{self, Instant, Sleep},
    mutex::Mutex,
    telemetry::{LayerEvent, LayerInfo},
};

#[derive(Debug, Default)]
pub(crate) struct Link {
    health: Mutex<Health>,
    requests: AtomicU64,
}

impl Link {
    /// Returns whether a call may ask the store.
    pub(crate) fn advice(&self, now: Instant) -> Advice {
        self.health.lock().advice(now)
    }

    pub(crate) fn is_away(&self) -> bool {
        self.health.lock().is_away()
    }

    /// Returns the number of requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Makes a request, and notes whether the store has answered within the timeout.
    ///
    /// `is_probe` says that the request was made on [`Advice::Probe`]. A request that is dropped says nothing about the
    /// store.
    pub(crate) async fn ask<T, E: fmt::Display>(
        &self,
        info: &LayerInfo,
        timeout: Duration,
        is_probe: bool,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Arc<str>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let _probe = is_probe.then(|| Probe::new(&self.health, timeout));
        let sent = clock::now();
        // The text of an error is user code too.
        let request = caught(async { request.await.map_err(|error| error.to_string()) });
        let error: Arc<str> = match clock::timeout_at(sent + timeout, request).await {
            Some(Ok(Ok(answer))) => {
                self.answered(info);
                return Ok(answer);
            }
            Some(Ok(Err(error)) | Err(error)) => error.into(),
            None => format!("no answer within {timeout:?}").into(),
        };
        self.failed_since(info, sent, is_probe, &error);
        Err(error)
    }

    fn answered(&self, info: &LayerInfo) {
        let was_away = {
            let mut health = self.health.lock();
            health.is_away() && health.answered(clock::now())
        };
        if was_away {
            info.emit(LayerEvent::Transition { from: "away", to: "answering" });
        }
    }

    /// Notes that a request has failed.
    pub(crate) fn failed(&self, info: &LayerInfo, is_probe: bool, error: &Arc<str>) {
        self.failed_since(info, clock::now(), is_probe, error);
    }

    fn failed_since(&self, info: &LayerInfo, sent: Instant, is_probe: bool, error: &Arc<str>) {
        let is_news = self.health.lock().failed(sent, clock::now(), is_probe, Arc::clone(error));
        info.emit(LayerEvent::StoreFailed { error });
        if is_news {
            info.emit(LayerEvent::Transition { from: "answering", to: "away" });
        }
    }
}

/// A request that finds out whether the store is back. Others may follow when it is dropped.
struct Probe<'a>(&'a Mutex<Health>);

impl<'a> Probe<'a> {
    fn new(health: &'a Mutex<Health>, timeout: Duration) -> Self {
        health.lock().probed(clock::now() + timeout * 2);
        Self(health)
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.0.lock().not_probed();
    }
}

/// Starts a request that no call drives.
///
/// It begins at once, so that a store that answers at once needs no task, and goes on as a task. Panics outside a
/// runtime if it needs one.
pub(crate) fn start(request: impl Future<Output = ()> + Send + 'static) {
    let mut request = Box::pin(request);
    if request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        tokio::spawn(request);
    }
}

/// A call's wait for the answer to a request that it does not drive.
pub(crate) struct Awaited<T> {
    answer: oneshot::Receiver<T>,
    end: Instant,
    // Boxed, so that a call that does not wait does not pay for its size.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<T> Awaited<T> {
    /// Waits for this answer, until `end` at most.
    pub(crate) fn new(answer: oneshot::Receiver<T>, end: Instant) -> Self {
        Self { answer, end, timer: None }
    }

    /// Returns the answer, or `None` if there is none in time, or the request was dropped.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        // Outside the task's budget, as the timer is: an answer that is there comes first.
        if let Poll::Ready(answer) = pin!(unconstrained(&mut self.answer)).poll(cx) {
            return Poll::Ready(answer.ok());
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(clock::sleep_until(self.end)));
        timer.as_mut().poll(cx).map(|()| None)
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
