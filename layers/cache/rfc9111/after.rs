//! The effects on the cache of a request that it passes on.

use std::{slice, sync::Arc, time::SystemTime};

use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_LOCATION, LOCATION},
};

use super::{
    super::{http::HttpKey, stale::is_substitute},
    Settings,
    body::CacheBody,
    flights::Lead,
    page::Page,
    rules::{Asked, Times, compare},
    status::{Forward, Status, Why, append},
};
use crate::{clock, store::Awaited};

/// The use of the response to a request that was passed on.
pub(super) struct After {
    pub(super) settings: Arc<Settings>,
    pub(super) why: Why,
    pub(super) effect: Effect,
}

/// The change that a response may make in the cache.
pub(super) enum Effect {
    None,
    /// The request may have changed the resource.
    Invalidate(HttpKey),
    /// The response to a HEAD says whether the stored one is current.
    Compare {
        lead: Lead,
        asked: Asked,
        page: Arc<Page>,
        sent: clock::Instant,
    },
}

impl After {
    /// Applies a response. Returns the removal that the caller waits for before it gets the response.
    ///
    /// `is_unsent` says that a layer inside has responded in place of the service.
    pub(super) fn apply<B>(
        mut self,
        mut response: Response<CacheBody<B>>,
        is_unsent: bool,
    ) -> (Response<CacheBody<B>>, Option<Awaited<()>>) {
        let mut removal = None;
        let (settings, status) = (&self.settings, response.status());
        match &self.effect {
            Effect::Invalidate(key) if !is_unsent && (status.is_success() || status.is_redirection()) => {
                let named = [LOCATION, CONTENT_LOCATION];
                let named = named.iter().filter_map(|name| key.join(response.headers().get(name)?));
                let keys: Vec<_> = [key.clone()].into_iter().chain(named).collect();
                removal = settings.invalidate(&keys);
            }
            Effect::Compare { lead, asked, page, sent }
                if status == StatusCode::OK && !is_substitute(response.extensions()) =>
            {
                let times = Times { sent: *sent, received: clock::now(), date: SystemTime::now() };
                let length = response.headers().get(CONTENT_LENGTH);
                let has_length = length.is_none_or(|length| *length == HeaderValue::from(page.content.len()));
                // Without a common validator there is no proof that the stored response is current.
                match compare(&page.head.headers, response.headers()) {
                    Some(true) if has_length => {
                        let (page, is_stored) = page.updated(response.headers(), &settings.rules, asked, times);
                        if is_stored {
                            settings.store(lead, Arc::new(page));
                        }
                    }
                    None if has_length => {}
                    _ => {
                        settings.forget(slice::from_ref(&lead.key));
                        settings.store(lead, Arc::new(page.expired(times)));
                    }
                }
            }
            _ => {}
        }
        append(response.headers_mut(), settings.info.name(), Status::Forward(Forward::new(self.why)));
        self.effect = Effect::None;
        (response, removal)
    }

    /// The request has not reached the service, so it has changed nothing.
    pub(super) fn was_unsent(mut self) {
        self.effect = Effect::None;
    }
}

impl Drop for After {
    fn drop(&mut self) {
        // Its caller has left, or it has failed: the service may have done it all the same.
        if let Effect::Invalidate(key) = &self.effect {
            self.settings.invalidate(slice::from_ref(key));
        }
    }
}
