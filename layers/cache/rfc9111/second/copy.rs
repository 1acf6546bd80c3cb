//! A stored response as bytes: the copy that other processes read.
//!
//! It says how old the response was when the copy was written, and when that was. A process that reads it treats it as
//! a response with that `Age`, by its own settings.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header::AGE};

use super::{
    super::{
        fill::Content,
        page::{Head, Page},
        rules::{Asked, Rules, Times, Vary},
        status::CACHE_STATUS,
    },
    record::millis,
};
use crate::{
    clock::Instant,
    store::{put_headers, put_text, take_headers, take_text},
};

/// The version of the format.
const VERSION: u8 = 1;

/// The time on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) date: SystemTime,
}

/// Returns whether a response has a value that is to be written nowhere.
pub(super) fn has_secret(page: &Page) -> bool {
    let Head { headers, cache_status, .. } = &page.head;
    let trailers = page.content.trailers().into_iter().flat_map(HeaderMap::values);
    headers.values().chain(cache_status).chain(trailers).any(HeaderValue::is_sensitive)
}

/// Returns the bytes of a response.
pub(super) fn encode(page: &Page, number: u128, identity: &[u8], now: Now) -> Bytes {
    let Head { status, headers, cache_status, terms, .. } = &page.head;
    let mut headers = headers.clone();
    headers.remove(AGE);
    headers.remove(CACHE_STATUS);
    headers.extend(cache_status.clone().map(|status| (CACHE_STATUS, status)));
    let trailers = page.content.trailers().cloned().unwrap_or_default();
    let mut to = BytesMut::with_capacity(identity.len() + page.weight());
    to.put_u8(VERSION);
    to.put_u128(number);
    put_text(&mut to, identity);
    to.put_u64(millis(now.date));
    to.put_u64(terms.age(now.instant).as_millis() as u64);
    // Rounded up, so that no request counts as sent after a time that it was sent before.
    to.put_u64(terms.since_sent(now.instant).as_nanos().div_ceil(1_000_000) as u64);
    to.put_u16(status.as_u16());
    put_headers(&mut to, &headers);
    put_headers(&mut to, &trailers);
    to.put_u32(page.content.len() as u32);
    page.content.chunks().for_each(|chunk| to.put_slice(chunk));
    to.freeze()
}

/// Returns when the request of a response was sent.
pub(super) fn sent(page: &Page, now: Now) -> SystemTime {
    now.date.checked_sub(page.head.terms.since_sent(now.instant)).unwrap_or(UNIX_EPOCH)
}

/// Returns whether a copy has this identity and number, and its request was sent after this time.
pub(super) fn is_newer(copy: Bytes, (number, identity): (u128, &[u8]), than: SystemTime) -> bool {
    Read::take(copy).is_some_and(|read| read.is(number, identity) && read.sent() > than)
}

/// The result of reading a copy.
#[derive(Debug)]
pub(super) enum Decoded {
    Page(Box<Page>),
    /// It is no response for this request: it is from before an invalidation, another one has the same name, or the
    /// settings do not permit it.
    Other,
    /// These are not the bytes of a copy, or those of another version.
    Unknown,
}

/// Reads the response with this number of a record, this identity and this `Vary` for a request.
pub(super) fn decode(
    from: Bytes,
    (number, identity, vary): (u128, &[u8], &Vary),
    (rules, asked): (&Rules, &Asked),
    not_before: SystemTime,
    now: Now,
) -> Decoded {
    let Some(read) = Read::take(from) else { return Decoded::Unknown };
    if !read.is(number, identity) || read.sent() < not_before {
        return Decoded::Other;
    }
    let Read { written, age, since_sent, status, mut headers, trailers, body, .. } = read;
    // A clock that is ahead of this one makes a copy of the future, which is new.
    let elapsed = now.date.duration_since(written).unwrap_or_default();
    let age = age.saturating_add(elapsed);
    headers.insert(AGE, HeaderValue::from(age.as_secs()));
    let times = Times { sent: now.instant, received: now.instant, date: now.date };
    let Some(mut terms) = rules.terms(asked, status, &mut headers, times) else { return Decoded::Other };
    terms.copied(age, since_sent.saturating_add(elapsed), now.instant);
    let trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
    // A slice would keep the whole copy.
    let content = Content::from_bytes(Bytes::copy_from_slice(&body), trailers);
    Decoded::Page(Box::new(Page::new(Head::new(status, &headers, terms, vary.clone()), content)))
}

struct Read {
    number: u128,
    identity: Bytes,
    written: SystemTime,
    age: Duration,
    since_sent: Duration,
    status: StatusCode,
    headers: HeaderMap,
    trailers: HeaderMap,
    body: Bytes,
}

impl Read {
    fn is(&self, number: u128, identity: &[u8]) -> bool {
        self.number == number && self.identity == identity
    }

    /// When the request was sent.
    fn sent(&self) -> SystemTime {
        self.written.checked_sub(self.since_sent).unwrap_or(UNIX_EPOCH)
    }

    fn take(mut from: Bytes) -> Option<Self> {
        if from.try_get_u8().ok()? != VERSION {
            return None;
        }
        let (number, identity) = (from.try_get_u128().ok()?, take_text(&mut from)?);
        let mut millis = || from.try_get_u64().ok().map(Duration::from_millis);
        let (written, age, since_sent) = (UNIX_EPOCH.checked_add(millis()?)?, millis()?, millis()?);
        let status = StatusCode::from_u16(from.try_get_u16().ok()?).ok()?;
        let (headers, trailers) = (take_headers(&mut from)?, take_headers(&mut from)?);
        let body = take_text(&mut from)?;
        from.is_empty().then_some(Self { number, identity, written, age, since_sent, status, headers, trailers, body })
    }
}

#[cfg(test)]
mod tests;
