//! A request to the store. It belongs to the limit, not to the call that needs it, which may be dropped.

use std::sync::Arc;

use super::{
    entry::{Ask, Entry},
    limit::Settings,
};
use crate::{
    clock,
    store::{Taken, TokenStore, start},
};

/// A request to the store. Dropping it means that the store has failed: the runtime of its task has ended.
struct Request<St: TokenStore> {
    settings: Arc<Settings<St>>,
    entry: Arc<Entry>,
    ask: Option<Ask>,
    is_probe: bool,
}

/// Sends a request to the store. Panics outside a runtime if the store does not answer at once.
pub(super) fn send<St: TokenStore>(settings: &Arc<Settings<St>>, entry: &Arc<Entry>, ask: Ask, is_probe: bool) {
    let request = Request { settings: Arc::clone(settings), entry: Arc::clone(entry), ask: Some(ask), is_probe };
    start(request.run());
}

impl<St: TokenStore> Request<St> {
    async fn run(mut self) {
        while let Some(ask) = &self.ask {
            let answer = self.settings.ask(&self.entry.key, ask, self.is_probe).await;
            self.end(answer);
        }
    }

    /// Ends the request, and begins the next one if calls still wait.
    fn end(&mut self, answer: Result<Taken, Arc<str>>) {
        let Some(ask) = self.ask.take() else { return };
        match answer {
            Ok(taken) => self.ask = self.entry.answered(clock::now(), &ask, taken, &self.settings.rules),
            Err(error) => self.entry.failed(&ask, &error),
        }
        self.is_probe = false;
    }
}

impl<St: TokenStore> Drop for Request<St> {
    fn drop(&mut self) {
        if self.ask.is_some() {
            let (error, is_probe) = ("the runtime of the request has ended".into(), self.is_probe);
            self.end(Err(Arc::clone(&error)));
            self.settings.limit.shared.link.failed(&self.settings.info, is_probe, &error);
        }
    }
}

impl<St: TokenStore> Settings<St> {
    /// Asks the store, within the timeout.
    async fn ask(&self, key: &str, ask: &Ask, is_probe: bool) -> Result<Taken, Arc<str>> {
        let range = ask.tokens.clone();
        let take = async {
            match self.limit.store.take(key, range.clone(), &self.rules.quota).await {
                Ok(Taken::Granted { tokens, .. }) if !range.contains(&tokens) => {
                    Err(format!("asked for {range:?} tokens, it granted {tokens}"))
                }
                Ok(taken) => Ok(taken),
                Err(error) => Err(error.to_string()),
            }
        };
        self.limit.shared.link.ask(&self.info, self.rules.timeout, is_probe, take).await
    }
}
