//! Requests to the store.
//!
//! A request belongs to the limit, not to the call that needed it: a call that is dropped takes no tokens with it, and
//! leaves no other call without an answer.

use std::{
    future::Future,
    sync::Arc,
    task::{Context, Waker},
};

use super::{
    entry::{Ask, Entry},
    limit::Settings,
    store::{Store, Taken},
};
use crate::{caught::caught, clock, telemetry::LayerEvent};

/// A request to the store. Dropping it means that the store has failed: the runtime of its task has ended.
struct Request<St: Store> {
    settings: Arc<Settings<St>>,
    entry: Arc<Entry>,
    ask: Option<Ask>,
    is_probe: bool,
}

/// Sends a request to the store.
///
/// It begins at once, so that a store that answers at once needs no task, and goes on as a task. Panics outside a
/// runtime if it needs one.
pub(super) fn send<St: Store>(settings: &Arc<Settings<St>>, entry: &Arc<Entry>, ask: Ask, is_probe: bool) {
    let request = Request { settings: Arc::clone(settings), entry: Arc::clone(entry), ask: Some(ask), is_probe };
    let mut request = Box::pin(request.run());
    if request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        tokio::spawn(request);
    }
}

impl<St: Store> Request<St> {
    async fn run(mut self) {
        while let Some(ask) = &self.ask {
            let answer = self.settings.ask(&self.entry.key, ask, self.is_probe).await;
            self.end(answer);
        }
    }

    /// Ends the request, and begins the next one if calls still wait.
    fn end(&mut self, answer: Result<Taken, Arc<str>>) {
        let Some(ask) = self.ask.take() else { return };
        let (settings, now) = (&*self.settings, clock::now());
        match answer {
            Ok(taken) => {
                if settings.limit.shared.answered() {
                    settings.info.emit(LayerEvent::Transition { from: "away", to: "answering" });
                }
                self.ask = self.entry.answered(now, &ask, taken, &settings.rules);
            }
            Err(error) => {
                let is_news = settings.limit.shared.failed(now, self.is_probe, Arc::clone(&error));
                self.entry.failed(&ask, &error);
                settings.info.emit(LayerEvent::StoreFailed { error: &error });
                if is_news {
                    settings.info.emit(LayerEvent::Transition { from: "answering", to: "away" });
                }
            }
        }
        self.is_probe = false;
    }
}

impl<St: Store> Drop for Request<St> {
    fn drop(&mut self) {
        self.end(Err("the runtime of the request has ended".into()));
    }
}

impl<St: Store> Settings<St> {
    /// Asks the store, within the timeout.
    async fn ask(&self, key: &str, ask: &Ask, is_probe: bool) -> Result<Taken, Arc<str>> {
        let (range, timeout) = (ask.tokens.clone(), self.rules.timeout);
        self.limit.shared.asks(is_probe);
        let take = async { self.limit.store.take(key, range.clone(), &self.rules.quota).await };
        match clock::timeout_at(clock::now() + timeout, caught(take)).await {
            None => Err(format!("no answer within {timeout:?}").into()),
            Some(Err(panic)) => Err(panic.into()),
            Some(Ok(Err(error))) => Err(error.to_string().into()),
            Some(Ok(Ok(Taken::Granted { tokens, .. }))) if !range.contains(&tokens) => {
                Err(format!("asked for {range:?} tokens, it granted {tokens}").into())
            }
            Some(Ok(Ok(taken))) => Ok(taken),
        }
    }
}
