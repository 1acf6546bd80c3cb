//! A stored response, and the responses that are made from it.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE, DATE, SET_COOKIE},
};

use super::{
    body::CacheBody,
    fill::Content,
    rules::{
        Asked, Part, Rules, Terms, Times, Vary, allows_range, has_validator, is_current, of_not_modified, part, update,
    },
    status::{CACHE_STATUS, set},
};
use crate::{
    clock::{self, Instant},
    mutex::Mutex,
};

/// The head of a response that may be stored.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    /// With a place for `Age` and `Cache-Status`, so that they need no memory when the response is served.
    pub(super) headers: HeaderMap,
    /// The `Cache-Status` of the caches behind this one.
    pub(super) cache_status: Option<HeaderValue>,
    pub(super) terms: Terms,
    pub(super) vary: Vary,
}

impl Head {
    /// Makes a head whose values share no memory with anything else: those of a server are slices of a buffer that is
    /// many times larger.
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, terms: Terms, vary: Vary) -> Self {
        let mut values = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
        headers.values().for_each(|value| values.put_slice(value.as_bytes()));
        let mut values = values.freeze();
        let mut compact = HeaderMap::with_capacity(headers.keys_len() + 2);
        let mut cache_status = None;
        for (name, value) in headers {
            let copy = values.split_to(value.len());
            // The bytes of a value are a value.
            let mut copy = HeaderValue::from_maybe_shared(copy).unwrap_or_else(|_| value.clone());
            copy.set_sensitive(value.is_sensitive());
            if name == CACHE_STATUS {
                cache_status = Some(join(cache_status, copy));
            } else if name != AGE {
                compact.append(copy_name(name), copy);
            }
        }
        compact.insert(AGE, HeaderValue::from_static("0"));
        compact.insert(CACHE_STATUS, HeaderValue::from_static(""));
        Self { status, headers: compact, cache_status, terms, vary }
    }

    /// Returns the bytes that the head takes in memory, about.
    fn weight(&self) -> usize {
        let field = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 96;
        let others = self.cache_status.as_ref().map_or(0, HeaderValue::len);
        self.headers.iter().map(field).sum::<usize>() + others + self.vary.weight() + size_of::<Page>()
    }

    fn respond<B>(
        &self,
        status: StatusCode,
        headers: HeaderMap,
        now: Instant,
        body: CacheBody<B>,
    ) -> Response<CacheBody<B>> {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        set(response.headers_mut(), AGE, format_args!("{}", self.terms.age(now).as_secs()));
        response
    }

    /// Returns whether the response to a request with the headers `from` is for another request too.
    pub(super) fn is_for(&self, asked: &Asked, from: &HeaderMap, headers: &HeaderMap) -> bool {
        let is_selected = self.vary.is_empty() || self.vary.select(from) == self.vary.select(headers);
        is_selected && self.terms.are_for(asked) && self.terms.are_for_many()
    }

    /// Returns the 304 for a caller that has this response already, which was not asked for conditionally.
    pub(super) fn not_modified_like<B, T>(response: &Response<T>, asked: &HeaderMap) -> Option<Response<CacheBody<B>>> {
        is_current(asked, response.headers()).then(|| {
            let mut not_modified = Response::new(CacheBody::empty());
            *not_modified.status_mut() = StatusCode::NOT_MODIFIED;
            *not_modified.headers_mut() = of_not_modified(response.headers());
            let status = response.headers().get(CACHE_STATUS).map(|status| (CACHE_STATUS, status.clone()));
            not_modified.headers_mut().extend(status);
            for cookie in response.headers().get_all(SET_COOKIE) {
                not_modified.headers_mut().append(SET_COOKIE, cookie.clone());
            }
            not_modified
        })
    }

    /// Returns the 304 for a caller that has the response already.
    pub(super) fn not_modified<B>(&self, asked: &HeaderMap, now: Instant) -> Option<Response<CacheBody<B>>> {
        let is_current = self.status.is_success() && is_current(asked, &self.headers);
        is_current.then(|| {
            let headers = of_not_modified(&self.headers);
            self.respond(StatusCode::NOT_MODIFIED, headers, now, CacheBody::empty())
        })
    }

    pub(super) fn whole<B>(&self, now: Instant, body: CacheBody<B>) -> Response<CacheBody<B>> {
        self.respond(self.status, self.headers.clone(), now, body)
    }
}

/// Adds the date of a response that has none (RFC 9110, section 6.6.1).
pub(super) fn add_date(headers: &mut HeaderMap, times: Times) {
    if !headers.contains_key(DATE) {
        let date = httpdate::fmt_http_date(times.date);
        headers.extend(HeaderValue::from_str(&date).ok().map(|date| (DATE, date)));
    }
}

fn join(before: Option<HeaderValue>, more: HeaderValue) -> HeaderValue {
    let Some(before) = before else { return more };
    let joined = [before.as_bytes(), b", ", more.as_bytes()].concat();
    HeaderValue::from_bytes(&joined).unwrap_or(more)
}

/// A name that is no slice of a buffer.
fn copy_name(name: &HeaderName) -> HeaderName {
    HeaderName::from_bytes(name.as_str().as_bytes()).unwrap_or_else(|_| name.clone())
}

/// A stored response.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) head: Head,
    pub(super) content: Content,
    /// When the next request behind a stale response may start.
    paused_until: Mutex<Option<Instant>>,
}

impl Page {
    pub(super) fn new(head: Head, content: Content) -> Self {
        Self { head, content, paused_until: Mutex::default() }
    }

    /// Suspends requests behind this response.
    pub(super) fn pause(&self, pause: Duration) {
        *self.paused_until.lock() = clock::now().checked_add(pause);
    }

    pub(super) fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.lock().is_some_and(|until| now < until)
    }

    /// Returns the page as a stale one, which an answer to a request of that time says that it is.
    pub(super) fn expired(&self, times: Times) -> Self {
        let mut head = self.head.clone();
        head.terms.expire(times);
        Self::new(head, self.content.clone())
    }

    pub(super) fn weight(&self) -> usize {
        self.head.weight() + self.content.weight()
    }

    /// Returns how long the page is worth its memory.
    pub(super) fn useful(&self) -> Duration {
        if has_validator(&self.head.headers) { Duration::MAX } else { self.head.terms.useful() }
    }

    /// Returns the page after a 304 with these headers, which says that its content is current, and whether it may
    /// still be stored.
    pub(super) fn updated(&self, not_modified: &HeaderMap, rules: &Rules, asked: &Asked, times: Times) -> (Self, bool) {
        let (status, before) = (self.head.status, &self.head);
        let mut headers = before.headers.clone();
        update(&mut headers, not_modified);
        if !not_modified.contains_key(AGE) {
            headers.remove(AGE);
        }
        if !not_modified.contains_key(DATE) {
            headers.remove(DATE);
        }
        add_date(&mut headers, times);
        let terms = rules.terms(asked, status, &mut headers, times);
        let vary = Vary::read(&headers).filter(|vary| *vary == before.vary);
        let is_stored = terms.as_ref().is_some_and(|terms| terms.is_worth_storing) && vary.is_some();
        let (terms, vary) = (terms.unwrap_or_else(|| before.terms.clone()), before.vary.clone());
        let head = Head { cache_status: None, ..Head::new(status, &headers, terms, vary) };
        (Self::new(head, self.content.clone()), is_stored)
    }

    /// Makes the response to a request with these headers.
    pub(super) fn respond<B>(&self, asked: &HeaderMap, is_head: bool, now: Instant) -> Response<CacheBody<B>> {
        let head = &self.head;
        if let Some(response) = head.not_modified(asked, now) {
            return response;
        }
        if is_head {
            let length = self.content.len();
            let mut response = head.whole(now, CacheBody::empty());
            if head.status != StatusCode::NO_CONTENT {
                response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
            }
            return response;
        }
        let wanted = match head.status {
            StatusCode::OK if allows_range(asked, &head.headers) => part(asked, self.content.len()),
            _ => Part::Whole,
        };
        let length = self.content.len();
        match wanted {
            Part::Whole => head.whole(now, CacheBody::stored(self.content.clone())),
            Part::Bytes(bytes) => {
                let mut headers = head.headers.clone();
                set(&mut headers, CONTENT_RANGE, format_args!("bytes {}-{}/{length}", bytes.start, bytes.end - 1));
                headers.insert(CONTENT_LENGTH, (bytes.end - bytes.start).into());
                let body = CacheBody::part(self.content.clone(), bytes);
                head.respond(StatusCode::PARTIAL_CONTENT, headers, now, body)
            }
            Part::Unsatisfiable => {
                let mut headers = HeaderMap::new();
                for name in [DATE, ACCEPT_RANGES] {
                    headers.extend(head.headers.get(&name).map(|value| (name, value.clone())));
                }
                set(&mut headers, CONTENT_RANGE, format_args!("bytes */{length}"));
                head.respond(StatusCode::RANGE_NOT_SATISFIABLE, headers, now, CacheBody::empty())
            }
        }
    }
}
