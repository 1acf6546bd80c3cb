//! The request to the upstream, on a task of its own: it goes on if its caller leaves, because others may wait for the
//! response, and the cache wants it.

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    slice,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use futures_util::future::{Either, select};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE},
};
use http_body::Body;
use tokio::sync::oneshot;
use tower_service::Service;

use self::received::Arriving;
use super::{
    super::{leads::Leads, policy::REFRESH_PAUSE},
    Settings,
    body::CacheBody,
    count,
    fill::Content,
    flights::{Flight, Landed, Lead},
    page::Page,
    rules::{Asked, Reuse, Times, has_validator, validate},
    second::{Looked, Ticket},
    status::Why,
};
use crate::{
    body::BoxError,
    call::Call,
    caught::{tried, undisturbed, unwound},
    clock,
    outcome::{Class, HttpStatus, Reject, reason_of, retry_after},
    scope::{Scope, behind},
    telemetry::LayerEvent,
};

mod received;

/// A service behind the cache.
pub(super) trait Upstream<A, B>:
    Service<Request<A>, Response = Response<B>, Error: Reject<Response<B>> + fmt::Display + Send, Future: Send>
    + Send
    + 'static
{
}

impl<S, A, B> Upstream<A, B> for S where
    S: Service<Request<A>, Response = Response<B>, Error: Reject<Response<B>> + fmt::Display + Send, Future: Send>
        + Send
        + 'static
{
}

/// The reply to the caller whose request was sent on.
pub(super) enum Reply<B, E> {
    /// The outcome of the inner service. The body may arrive by way of the cache.
    Ran(Box<Result<Response<CacheBody<B>>, E>>, Stored),
    /// A fresh response of the second level.
    Hit(Arc<Page>),
    /// A stored response: a validated one, or one in place of a failure.
    Page(Arc<Page>, Instead),
    Panicked(Box<dyn Any + Send>),
}

/// A reply, and why a response of the second level did not do, if there was one.
pub(super) type Replied<B, E> = (Reply<B, E>, Option<Why>);

type ReplyTo<B, E> = oneshot::Sender<Replied<B, E>>;

/// The use of a response in the cache.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stored {
    /// Whether it is being stored.
    pub(super) is_stored: bool,
    /// Whether it is the whole response, whatever its caller has asked for.
    pub(super) is_whole: bool,
}

/// The response that a stored one replaces.
#[derive(Debug)]
pub(super) enum Instead {
    /// A 304, with its fields that are for the caller alone.
    NotModified { cookies: Vec<HeaderValue>, cache_status: Option<HeaderValue> },
    /// A failure, or a 304 about another version, with the status of the response if there is one.
    Failure(Option<StatusCode>),
}

/// A request to the second level and to the upstream, and the use of its response.
pub(super) struct Fetch {
    pub(super) settings: Arc<Settings>,
    pub(super) lead: Lead,
    pub(super) asked: Asked,
    /// The stored response that is stale.
    pub(super) stale: Option<Arc<Page>>,
    /// Whether it runs while its caller has a stale response.
    pub(super) is_behind: bool,
    /// Whether the second level may have a response.
    pub(super) looks: bool,
    /// `None` before the lookup, or if there was none.
    pub(super) ticket: Option<Ticket>,
    /// Why a response of the second level did not do, if there was one.
    pub(super) why: Option<Why>,
    /// How long the request goes on without a caller.
    pub(super) patience: Duration,
}

impl Fetch {
    /// Starts the request. It has the scope of its caller, but neither its deadline nor its cancellation.
    ///
    /// That scope may end before those of other callers. It waits for the response, which may need its values, but not
    /// for the body: its end cuts off no caller who reads it.
    pub(super) fn start<S, A, B>(self, service: S, request: Request<A>) -> oneshot::Receiver<Replied<B, S::Error>>
    where
        S: Upstream<A, B>,
        A: Send + 'static,
        B: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        let (leads, patience) = (self.lead.leads(), self.patience);
        let run = async move {
            let flight = Arc::clone(&self.lead.flight);
            let work = self.run(service, behind(request), reply);
            let Some(Some(arriving)) = attended(work, &flight, patience, leads.clone()).await else { return };
            let rest = async move { attended(arriving.receive(), &flight, patience, leads).await.unwrap_or_default() };
            match Scope::current() {
                Some(scope) => drop(tokio::spawn(scope.within(rest))),
                None => rest.await,
            }
        };
        match Scope::current() {
            Some(scope) => scope.spawn_behind("http_cache", run),
            None => drop(tokio::spawn(run)),
        }
        receiver
    }

    /// Returns the body if it is to be received.
    async fn run<S, A, B>(
        mut self,
        service: S,
        mut request: Request<A>,
        reply: ReplyTo<B, S::Error>,
    ) -> Option<Arriving<impl Future<Output = Option<Content>> + Send>>
    where
        S: Upstream<A, B>,
        B: Body<Error: Into<BoxError>> + Send,
    {
        if let Some(page) = self.look().await {
            self.reply(reply, Reply::Hit(page));
            return None;
        }
        if !self.is_behind {
            count(&self.settings.counts.misses);
            self.settings.info.emit(LayerEvent::Miss);
        }
        let validates = self.prepare(request.headers_mut());
        let is_whole = validates || self.lead.is_open();
        let sent = clock::now();
        let outcome = match unwound(Call::new(service, request)).await {
            Ok(outcome) => outcome,
            Err(panic) => return self.panicked(panic, reply),
        };
        let times = Times { sent, received: clock::now(), date: SystemTime::now() };
        if is_failure(&outcome) {
            self.pause(outcome.as_ref().ok().and_then(|response| retry_after(response.headers())));
            if let Some(page) = self.stand_in() {
                self.note_failed_refresh(&outcome);
                let status = outcome.as_ref().ok().map(Response::status);
                undisturbed(|| drop(outcome));
                self.reply(reply, Reply::Page(page, Instead::Failure(status)));
                return None;
            }
        }
        let replied = match outcome {
            Ok(mut response) if validates && response.status() == StatusCode::NOT_MODIFIED => {
                let (reply, is_stored) = self.validated(&mut response, times);
                if !is_stored {
                    self.note_failed_refresh(&Ok::<_, S::Error>(response));
                }
                reply
            }
            Ok(response) => return self.receive(response, times, is_whole, reply),
            Err(error) => {
                let outcome = Err(error);
                let described = tried(|| self.settings.info.shared(&outcome, Class::of(&outcome, &HttpStatus)));
                let rejection = match described {
                    Ok(rejection) => rejection,
                    Err(panic) => {
                        undisturbed(|| drop(outcome));
                        return self.panicked(panic, reply);
                    }
                };
                self.note_failed_refresh(&outcome);
                self.lead.close();
                self.lead.land(Landed::Failed(rejection));
                let outcome = outcome.map(|response: Response<B>| response.map(CacheBody::inner));
                Reply::Ran(Box::new(outcome), Stored::default())
            }
        };
        self.reply(reply, replied);
        None
    }

    pub(super) fn reply<B, E>(&self, to: ReplyTo<B, E>, reply: Reply<B, E>) {
        let _ = to.send((reply, self.why));
    }

    /// Passes a panic of user code on to the caller. Those who wait make their own requests.
    pub(super) fn panicked<T, B, E>(mut self, panic: Box<dyn Any + Send>, reply: ReplyTo<B, E>) -> Option<T> {
        self.lead.close();
        self.lead.land(Landed::Alone);
        self.reply(reply, Reply::Panicked(panic));
        None
    }

    /// Looks the response up in the second level. Returns it if it is fresh. A stale one is validated.
    async fn look(&mut self) -> Option<Arc<Page>> {
        let Self { settings, lead, asked, .. } = self;
        let second = settings.second.get().filter(|_| self.looks)?;
        let Looked { page, ticket } = second.look(&lead.key, lead.asked(), (&settings.rules, asked)).await;
        self.ticket = ticket;
        let page = Arc::new(page?);
        let terms = &page.head.terms;
        // A copy may be older than the response in memory, and fresh for longer.
        if self.stale.as_ref().is_some_and(|known| !terms.are_newer_than(&known.head.terms)) {
            return None;
        }
        if terms.reuse(asked, clock::now()) == Reuse::Fresh {
            if !self.is_behind {
                count(&settings.counts.second_level);
                settings.info.emit(LayerEvent::Hit);
            }
            settings.store(lead, Arc::clone(&page));
            lead.land(Landed::Hit(Arc::clone(&page)));
            return Some(page);
        }
        self.why = Some(if terms.are_fresh(clock::now()) { Why::Request } else { Why::Stale });
        self.stale = Some(page);
        None
    }

    /// Changes the request into one for the whole response, or into the question whether the stored one is current.
    /// Returns whether it is that question.
    fn prepare(&self, headers: &mut HeaderMap) -> bool {
        match self.stale.as_ref().filter(|page| has_validator(&page.head.headers)) {
            Some(page) => {
                validate(headers, &page.head.headers);
                headers.remove(RANGE);
                headers.remove(IF_RANGE);
                true
            }
            None => {
                if self.lead.is_open() || self.is_behind {
                    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE, RANGE] {
                        headers.remove(name);
                    }
                }
                false
            }
        }
    }

    /// Stores the response in both levels, unless an invalidation has overtaken the request.
    pub(super) fn store(&self, page: &Arc<Page>) {
        let Self { settings, lead, ticket, .. } = self;
        let is_stored = settings.store(lead, Arc::clone(page));
        if let (true, Some(second), Some(ticket)) = (is_stored, settings.second.get(), ticket) {
            second.put(ticket, &lead.key, lead.asked(), page);
        }
    }

    /// Removes the response that an answer has superseded.
    pub(super) fn remove(&self, page: &Arc<Page>) {
        let Self { settings, lead, ticket, .. } = self;
        if ticket.as_ref().is_some_and(Ticket::has_others) {
            settings.forget(slice::from_ref(&lead.key));
        }
        drop(lead.store(|| settings.pages.remove_page(&lead.key, lead.asked(), page)));
    }

    /// Returns the stored response that may be used in place of a failure.
    pub(super) fn stand_in(&self) -> Option<Arc<Page>> {
        let page = self.stale.as_ref()?;
        // Not one that was invalidated in the meantime.
        self.lead.store(|| ())?;
        page.head.terms.replace_failure(&self.asked, clock::now()).then(|| {
            self.lead.land(Landed::StandIn(Arc::clone(page)));
            Arc::clone(page)
        })
    }

    /// Reports a request behind a stale response that has brought nothing to store.
    pub(super) fn note_failed_refresh<B, E>(&self, outcome: &Result<Response<B>, E>)
    where
        E: Reject<Response<B>> + fmt::Display,
    {
        // User code that panics has no part in the request.
        undisturbed(|| match outcome {
            _ if !self.is_behind => {}
            Ok(_) => self.refresh_failed(reason_of(outcome), format_args!("the response may not be stored")),
            Err(error) => self.refresh_failed(reason_of(outcome), format_args!("{error}")),
        });
    }

    pub(super) fn refresh_failed(&self, reason: &'static str, error: fmt::Arguments<'_>) {
        if self.is_behind {
            self.settings.info.emit(LayerEvent::RefreshFailed { reason, error });
        }
    }

    /// Suspends requests behind a stale response after one that has brought nothing.
    pub(super) fn pause(&self, retry_after: Option<Duration>) {
        if let Some(page) = &self.stale {
            page.pause(retry_after.map_or(REFRESH_PAUSE, |wait| wait.max(REFRESH_PAUSE)));
        }
    }
}

/// Runs `work` for a flight until it has had no caller for the time of `patience`.
async fn attended<T>(
    work: impl Future<Output = T>,
    flight: &Flight,
    patience: Duration,
    mut leads: Leads,
) -> Option<T> {
    let (mut work, deserted) = (pin!(Some(work)), pin!(flight.callers.gone_for(patience)));
    let working = poll_fn(|cx| {
        let _entered = leads.enter();
        work.as_mut().as_pin_mut().map_or(Poll::Pending, |work| work.poll(cx))
    });
    let done = match select(pin!(working), deserted).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    };
    undisturbed(|| work.set(None));
    done
}

/// Returns whether a stale response is better than this outcome (RFC 5861, section 4).
fn is_failure<B, E>(outcome: &Result<Response<B>, E>) -> bool {
    outcome.as_ref().map_or(true, |response| matches!(response.status().as_u16(), 500 | 502 | 503 | 504))
}

impl Settings {
    /// Stores the response that a flight has brought. Returns whether it was stored.
    pub(super) fn store(&self, lead: &Lead, page: Arc<Page>) -> bool {
        if !page.head.terms.is_worth_storing {
            return false;
        }
        let put = lead.store(|| self.pages.put(&lead.key, lead.asked(), page));
        let is_kept = put.is_some_and(|put| put.is_kept);
        if is_kept {
            count(&self.counts.stored);
            self.info.emit(LayerEvent::Stored);
        }
        is_kept
    }
}
