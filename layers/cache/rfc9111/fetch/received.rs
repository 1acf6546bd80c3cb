//! The use of a response of the upstream: for its caller, for the cache, and for the other callers who wait.

use std::{fmt, future::Future, sync::Arc};

use bytes::Bytes;
use http::{
    Response, StatusCode,
    header::{CONTENT_LENGTH, SET_COOKIE},
};
use http_body::{Body, SizeHint};

use super::{
    super::{
        super::stale::is_substitute,
        body::CacheBody,
        fill::{Content, Fill},
        flights::Landed,
        page::{Head, Page, add_date},
        rules::{Times, Vary, is_same, remove_not_stored},
        status::take,
    },
    Fetch, Instead, Reply, ReplyTo, Stored,
};
use crate::{
    body::BoxError,
    caught::{tried, undisturbed},
    clock,
    outcome::{Class, HttpStatus, Reject, retry_after},
};

impl Fetch {
    /// Updates the stored response by a 304. Returns the reply, and whether the response is stored.
    pub(super) fn validated<B, E>(&mut self, response: &mut Response<B>, times: Times) -> (Reply<B, E>, bool) {
        let is_same = |before: &Arc<Page>| is_same(&before.head.headers, response.headers());
        let Some(before) = self.stale.clone().filter(is_same) else { return (self.contradicted(), false) };
        let (page, is_stored) = before.updated(response.headers(), &self.settings.rules, &self.asked, times);
        let page = Arc::new(page);
        if is_stored {
            self.store(&page);
            self.lead.land(Landed::Page(Arc::clone(&page)));
        } else {
            // Confirmed for this caller alone.
            self.remove(&before);
            self.lead.close();
            self.lead.land(Landed::Alone);
        }
        let cookies = response.headers().get_all(SET_COOKIE).iter().cloned().collect();
        let instead = Instead::NotModified { cookies, cache_status: take(response.headers_mut()) };
        (Reply::Page(page, instead), is_stored)
    }

    /// Returns the reply to a caller that asked for the whole response, if a 304 is about another version than the
    /// stored one. The next request asks for the new version.
    fn contradicted<B, E>(&mut self) -> Reply<B, E> {
        // Without it, the response is a 502, which it may replace (RFC 5861, section 4).
        let stand_in = self.stand_in();
        if let Some(page) = &self.stale {
            self.remove(page);
        }
        self.lead.close();
        match stand_in {
            Some(page) => Reply::Page(page, Instead::Failure(Some(StatusCode::NOT_MODIFIED))),
            None => {
                self.lead.land(Landed::Alone);
                let mut response = Response::new(CacheBody::empty());
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                Reply::Ran(Box::new(Ok(response)), Stored::default())
            }
        }
    }

    /// Passes a response on to its caller, and stores it if it may be stored. Returns its body if that is to be
    /// received.
    pub(super) fn receive<B, E>(
        mut self,
        response: Response<B>,
        times: Times,
        is_whole: bool,
        reply: ReplyTo<B, E>,
    ) -> Option<Arriving<impl Future<Output = Option<Content>> + Send>>
    where
        B: Body<Error: Into<BoxError>> + Send,
        E: Reject<Response<B>> + fmt::Display,
    {
        let judged = tried(|| (self.head(&response, times), response.body().is_end_stream()));
        let (head, is_end) = match judged {
            Ok(judged) => judged,
            Err(panic) => {
                undisturbed(|| drop(response));
                return self.panicked(panic, reply);
            }
        };
        let Some((head, size)) = head else {
            let (status, is_substitute) = (response.status(), is_substitute(response.extensions()));
            let has_identity = self.asked.has_authorization || self.asked.has_cookie;
            let (asked, key) = (self.lead.asked(), &self.lead.key);
            // Others, such as 429, are about this request.
            let is_final = status.is_success() || status.is_redirection() || matches!(status.as_u16(), 404 | 410);
            if let Some(page) = self.stale.as_ref().filter(|_| is_final && !is_substitute && !has_identity)
                && !page.head.terms.are_fresh(clock::now())
            {
                // This answer has superseded the stored one (RFC 9111, section 4.3.3).
                self.remove(page);
            }
            self.pause(retry_after(response.headers()));
            let outcome = Ok(response);
            self.note_failed_refresh::<_, E>(&outcome);
            // Those who wait make their own requests, and those who come next do so at once. If the service fails, they
            // make one together, as after an error.
            if self.lead.is_open() && !is_substitute && (status.is_success() || status.is_redirection()) {
                self.lead.store(|| self.settings.pages.pass(key, asked));
            }
            self.lead.close();
            self.lead.land(self.landed(&outcome, status));
            let outcome = outcome.map(|response| response.map(CacheBody::inner));
            self.reply(reply, Reply::Ran(Box::new(outcome), Stored::default()));
            return None;
        };
        let (head, (parts, body)) = (Arc::new(head), response.into_parts());
        let stored = Stored { is_stored: head.terms.is_worth_storing, is_whole };
        if is_end && size.lower() == 0 {
            let page = Arc::new(Page::new(Head::clone(&head), Content::from_bytes(Bytes::new(), None)));
            self.store(&page);
            self.lead.land(Landed::Page(page));
            let response = Response::from_parts(parts, CacheBody::empty());
            self.reply(reply, Reply::Ran(Box::new(Ok(response)), stored));
            return None;
        }
        let fill = Fill::new(self.settings.max_body, size, &self.settings.room);
        if let Some(reader) = fill.reader() {
            let body = CacheBody::filling(reader, self.lead.flight.callers.interest());
            let response = Response::from_parts(parts, body);
            self.reply(reply, Reply::Ran(Box::new(Ok(response)), stored));
        }
        if head.terms.are_for_many() {
            self.lead.land(Landed::Filling(Arc::clone(&head), Arc::clone(&fill)));
        } else {
            // Each of the others needs a validation of its own.
            self.lead.close();
            self.lead.land(Landed::Alone);
        }
        Some(Arriving { fetch: self, head, content: fill.receive(body) })
    }

    /// Returns what those who wait learn of a response that may not be stored.
    fn landed<B, E: Reject<Response<B>>>(&self, outcome: &Result<Response<B>, E>, status: StatusCode) -> Landed {
        if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS {
            return Landed::Alone;
        }
        let message = || format!("the service responded with {status}");
        let class = || Class::of(outcome, &HttpStatus);
        Landed::Failed(match E::rejection(outcome) {
            Some(rejection) => rejection.clone(),
            None => self.settings.info.shared_as(message(), class()),
        })
    }

    /// Returns the head of a response that may be stored, and the size of its body.
    fn head<B: Body>(&self, response: &Response<B>, times: Times) -> Option<(Head, SizeHint)> {
        let mut headers = response.headers().clone();
        let Self { settings, asked, .. } = self;
        // Before any field is removed that they are about.
        let vary = Vary::read(&headers)?;
        let terms = settings.rules.terms(asked, response.status(), &mut headers, times)?;
        remove_not_stored(&mut headers);
        if is_substitute(response.extensions()) {
            return None;
        }
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        let length = lengths.next().map(|length| length.to_str().ok()?.parse().ok());
        if lengths.next().is_some() {
            return None;
        }
        let size = match length {
            // One that is none.
            Some(None) => return None,
            Some(Some(length)) => SizeHint::with_exact(length),
            None => response.body().size_hint(),
        };
        if size.lower() > settings.max_body as u64 {
            return None;
        }
        add_date(&mut headers, times);
        Some((Head::new(response.status(), &headers, terms, vary), size))
    }
}

/// A response whose body is arriving. If it is dropped, its readers get an error.
pub(super) struct Arriving<F> {
    fetch: Fetch,
    head: Arc<Head>,
    content: F,
}

impl<F: Future<Output = Option<Content>>> Arriving<F> {
    /// Receives the body, and stores the response.
    pub(super) async fn receive(self) {
        let Self { fetch, head, content } = self;
        match content.await {
            Some(content) => fetch.store(&Arc::new(Page::new(Head::clone(&head), content))),
            None => {
                fetch.pause(None);
                fetch.refresh_failed("response", format_args!("the body did not arrive whole, or is too large"));
            }
        }
    }
}
