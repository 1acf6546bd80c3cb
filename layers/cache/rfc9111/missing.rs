//! The path of a request for which the cache has no response that it may use.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{RANGE, SET_COOKIE},
};
use http_body::Body;
use tokio::sync::oneshot;

use super::{
    super::http::HttpKey,
    PATIENCE, Settings,
    body::CacheBody,
    count,
    fetch::{Fetch, Instead, Replied, Reply, Upstream},
    flights::{Arrival, Landed, Lead},
    page::{Head, Page},
    pages::Found,
    rules::{Asked, Reuse, Terms},
    status::{Forward, Status, Why, take, write},
};
use crate::{
    body::BoxError,
    clock,
    outcome::{Reason, Reject},
    telemetry::LayerEvent,
};

/// How long no other request is made behind a stale response beside one that is not shared.
const ALONE: Duration = Duration::from_secs(10);

/// A request that found nothing that it may use.
pub(super) struct Missing<S, A> {
    pub(super) settings: Arc<Settings>,
    pub(super) service: S,
    pub(super) request: Request<A>,
    pub(super) key: HttpKey,
    pub(super) asked: Asked,
    pub(super) found: Found,
}

impl<S, A> Missing<S, A> {
    /// Decides why the request is sent on.
    fn why(&self) -> Why {
        let wants = &self.asked.directives;
        match &self.found.page {
            Some(page) if !page.head.terms.are_for(&self.asked) => Why::Bypass,
            Some(page) if page.head.terms.are_fresh(clock::now()) => Why::Request,
            Some(_) => Why::Stale,
            None if wants.no_cache => Why::Request,
            None if self.found.has_others => Why::VaryMiss,
            None => Why::UriMiss,
        }
    }

    /// Returns the stored response that this caller may get if it is validated.
    fn stale(&self) -> Option<Arc<Page>> {
        self.found.page.clone().filter(|page| page.head.terms.are_for(&self.asked))
    }

    /// Returns whether the request may share that of another caller.
    fn may_share(&self, stale: Option<&Arc<Page>>) -> bool {
        let wants = &self.asked.directives;
        let has_demands = wants.no_cache || wants.max_age.is_some() || wants.min_fresh.is_some();
        let is_part = stale.is_none() && self.request.headers().contains_key(RANGE);
        // The stored response is for others, so that of another caller would be too.
        let is_for_others = stale.is_none() && self.found.page.is_some();
        // Most responses to a request with credentials are for one caller alone.
        let is_private = self.asked.has_authorization;
        // One that needs a validation for each request.
        let is_validated = stale.is_some_and(|page| !page.head.terms.are_for_many());
        !(has_demands || is_part || is_for_others || is_private || is_validated || self.found.pass)
    }

    pub(super) async fn run<B>(mut self) -> Result<Response<CacheBody<B>>, S::Error>
    where
        S: Upstream<A, B>,
        A: Send + 'static,
        B: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let settings = Arc::clone(&self.settings);
        let (mut may_share, mut failed) = (true, 0);
        loop {
            let (why, stale) = (self.why(), self.stale());
            if !(may_share && self.may_share(stale.as_ref())) {
                let lead = settings.flights.alone(&self.key, self.request.headers());
                return self.lead(lead, why, stale).await;
            }
            let headers = self.request.headers();
            let find = || Some(settings.pages.find(&self.key, headers)).filter(|found| self.is_fresh(found));
            let selected = self.selected();
            let arrival =
                settings.flights.arrive(&self.key, &selected, headers, |head| self.is_fresh_for(&head.terms), find);
            let (mut joined, forward) = match arrival {
                Arrival::Lead(lead) => return self.lead(lead, why, stale).await,
                Arrival::Found(found) => {
                    if let Some(page) = &found.page {
                        return Ok(settings.hit(page, &self.asked, headers, false));
                    }
                    continue;
                }
                Arrival::Join(joined) => (joined, Forward { collapsed: true, ..Forward::new(why) }),
            };
            if settings.flights.is_inside(&joined) {
                let rejection = settings.info.reject(Reason::Recursive);
                return S::Error::reject(rejection).map(|response| response.map(CacheBody::inner));
            }
            let landed = joined.landed().await;
            let vary = match &landed {
                Landed::Page(page) if page.head.is_for(&self.asked, joined.asked(), headers) => {
                    settings.shared();
                    return Ok(settings.answer(page, headers, Status::Forward(forward)));
                }
                Landed::Filling(head, fill) if head.is_for(&self.asked, joined.asked(), headers) => {
                    // Without a reader it is too large to be shared, or has failed.
                    if let Some(reader) = fill.reader() {
                        settings.shared();
                        let now = clock::now();
                        let respond = || head.whole(now, CacheBody::filling(reader, joined.interest));
                        let mut response = head.not_modified(headers, now).unwrap_or_else(respond);
                        settings.note(response.headers_mut(), head.cache_status.as_ref(), Status::Forward(forward));
                        return Ok(response);
                    }
                    None
                }
                Landed::Hit(page) if page.head.is_for(&self.asked, joined.asked(), headers) => {
                    settings.shared();
                    return Ok(settings.second_hit(page, headers));
                }
                Landed::StandIn(page)
                    if page.head.is_for(&self.asked, joined.asked(), headers)
                        && page.head.terms.replace_failure(&self.asked, clock::now()) =>
                {
                    settings.shared();
                    return Ok(settings.answer(page, headers, Status::Forward(forward)));
                }
                Landed::Page(page) | Landed::Hit(page) => Some(&page.head.vary),
                Landed::Filling(head, _) => Some(&head.vary),
                // A second failure is not the fault of the request that has failed.
                Landed::Failed(rejection) if failed > 0 => {
                    settings.shared();
                    return S::Error::reject(rejection.clone()).map(|response| response.map(CacheBody::inner));
                }
                Landed::Failed(_) | Landed::Lost if failed == 0 => {
                    failed += 1;
                    self.found = settings.pages.find(&self.key, headers);
                    continue;
                }
                Landed::StandIn(_) | Landed::Alone | Landed::Failed(_) | Landed::Lost => {
                    self.found = settings.pages.find(&self.key, headers);
                    may_share = false;
                    continue;
                }
            };
            // The response was for other requests, but its `Vary` may distinguish them from this one.
            let selected = vary.map(|vary| vary.select(headers)).unwrap_or_default();
            may_share = !selected.is_empty() && selected != self.found.selected;
            (self.found.selected, self.found.has_others) = (selected, true);
        }
    }

    fn is_fresh(&self, found: &Found) -> bool {
        found.page.as_ref().is_some_and(|page| self.is_fresh_for(&page.head.terms))
    }

    fn is_fresh_for(&self, terms: &Terms) -> bool {
        terms.are_for(&self.asked) && terms.reuse(&self.asked, clock::now()) == Reuse::Fresh
    }

    /// The values that a request must have in common with another one to share it.
    fn selected(&self) -> Vec<u8> {
        // Most responses to a request with a cookie are for it alone, and no other caller should wait for them.
        [&[u8::from(self.asked.has_cookie)], &*self.found.selected].concat()
    }

    /// Makes the request to the upstream.
    async fn lead<B>(self, lead: Lead, why: Why, stale: Option<Arc<Page>>) -> Result<Response<CacheBody<B>>, S::Error>
    where
        S: Upstream<A, B>,
        A: Send + 'static,
        B: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let settings = Arc::clone(&self.settings);
        let (asked, interest) = (self.request.headers().clone(), lead.flight.callers.interest());
        let reply = self.fetch(lead, stale, false).await;
        drop(interest);
        let Ok((reply, found)) = reply else {
            // The runtime of the task, or its scope, has ended.
            let rejection = settings.info.reject(Reason::Draining { grace: None });
            return S::Error::reject(rejection).map(|response| response.map(CacheBody::inner));
        };
        let mut forward = Forward::new(match (why, found) {
            (Why::UriMiss | Why::VaryMiss, Some(found)) => found,
            _ => why,
        });
        match reply {
            Reply::Ran(outcome, stored) => {
                let mut outcome = *outcome;
                if let Ok(response) = &mut outcome {
                    forward.stored = stored.is_stored;
                    let before = take(response.headers_mut());
                    settings.note(response.headers_mut(), before.as_ref(), Status::Forward(forward));
                    if stored.is_stored
                        && stored.is_whole
                        && response.status() == StatusCode::OK
                        && let Some(not_modified) = Head::not_modified_like(response, &asked)
                    {
                        return Ok(not_modified);
                    }
                }
                outcome
            }
            Reply::Hit(page) => Ok(settings.second_hit(&page, &asked)),
            Reply::Page(page, instead) => {
                let mut response = page.respond(&asked, false, clock::now());
                let headers = response.headers_mut();
                let before = match instead {
                    Instead::NotModified { cookies, cache_status } => {
                        count(&settings.counts.validated);
                        forward.status = Some(304);
                        for cookie in cookies {
                            // One that is too many is left out.
                            let _ = headers.try_append(SET_COOKIE, cookie);
                        }
                        cache_status
                    }
                    Instead::Failure(status) => {
                        count(&settings.counts.stale_on_error);
                        settings.stale("error");
                        forward.status = status.map(|status| status.as_u16());
                        page.head.cache_status.clone()
                    }
                };
                settings.note(headers, before.as_ref(), Status::Forward(forward));
                Ok(response)
            }
            Reply::Panicked(panic) => resume_unwind(panic),
        }
    }

    /// Starts the request, for a caller that waits or for one that has a stale response.
    fn fetch<B>(self, lead: Lead, stale: Option<Arc<Page>>, is_behind: bool) -> oneshot::Receiver<Replied<B, S::Error>>
    where
        S: Upstream<A, B>,
        A: Send + 'static,
        B: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let Self { settings, service, request, asked, found, .. } = self;
        // Looked up again: from now on the flight learns of an invalidation, but one may have come before.
        let known = |_| settings.pages.find(&lead.key, request.headers()).page;
        let stale = stale.and_then(known).filter(|page| page.head.terms.are_for(&asked));
        // No caller waits for one behind a stale response.
        let patience = if is_behind { settings.patience.max(PATIENCE) } else { settings.patience };
        let looks = !found.pass;
        Fetch { settings, lead, asked, stale, is_behind, looks, ticket: None, why: None, patience }
            .start(service, request)
    }

    /// Fetches a fresh response while a stale one is served.
    pub(super) fn refresh<B>(self)
    where
        S: Upstream<A, B>,
        A: Send + 'static,
        B: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let settings = Arc::clone(&self.settings);
        let headers = self.request.headers();
        let stale = self.stale();
        let lead = if self.may_share(stale.as_ref()) {
            let find = || Some(settings.pages.find(&self.key, headers)).filter(|found| self.is_fresh(found));
            let (selected, may_be_reused) = (self.selected(), |head: &Head| self.is_fresh_for(&head.terms));
            match settings.flights.arrive(&self.key, &selected, headers, may_be_reused, find) {
                Arrival::Lead(lead) => lead,
                Arrival::Join(_) | Arrival::Found(_) => return,
            }
        } else {
            // No other request finds out that this one is under way.
            if let Some(page) = &stale {
                page.pause(ALONE);
            }
            settings.flights.alone(&self.key, headers)
        };
        count(&settings.counts.refreshes);
        drop(self.fetch(lead, stale, true));
    }
}

impl Settings {
    /// Serves a stored response without a request to the upstream.
    pub(super) fn hit<B>(
        &self,
        page: &Page,
        asked: &Asked,
        headers: &HeaderMap,
        is_head: bool,
    ) -> Response<CacheBody<B>> {
        let now = clock::now();
        let freshness = page.head.terms.freshness(now);
        match freshness {
            Ok(_) => {
                count(&self.counts.hits);
                self.info.emit(LayerEvent::Hit);
            }
            Err(_) if asked.directives.max_stale.is_some() => self.stale("request"),
            Err(_) => self.stale("revalidate"),
        }
        let mut response = page.respond(headers, is_head, now);
        self.note(response.headers_mut(), page.head.cache_status.as_ref(), Status::Hit(freshness));
        response
    }

    /// Serves a fresh response of the second level.
    fn second_hit<B>(&self, page: &Page, asked: &HeaderMap) -> Response<CacheBody<B>> {
        self.answer(page, asked, Status::Hit(page.head.terms.freshness(clock::now())))
    }

    fn answer<B>(&self, page: &Page, asked: &HeaderMap, status: Status) -> Response<CacheBody<B>> {
        let mut response = page.respond(asked, false, clock::now());
        self.note(response.headers_mut(), page.head.cache_status.as_ref(), status);
        response
    }

    pub(super) fn note(&self, headers: &mut HeaderMap, before: Option<&HeaderValue>, status: Status) {
        write(headers, self.info.name(), before, status);
    }

    fn stale(&self, reason: &'static str) {
        count(&self.counts.stale);
        self.info.emit(LayerEvent::Stale { reason });
    }

    fn shared(&self) {
        count(&self.counts.shared);
        self.info.emit(LayerEvent::Shared);
    }
}
