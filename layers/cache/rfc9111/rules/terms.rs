//! Whether a response may be stored (RFC 9111, section 3), and when it may be used (section 4).

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{AGE, AUTHORIZATION, COOKIE, DATE, EXPIRES, LAST_MODIFIED, SET_COOKIE},
};

use super::{
    conditions::has_validator,
    date::date,
    directives::{Fields, RequestDirectives, ResponseDirectives, seconds},
    list::{Backslash, elements},
    targeted,
};
use crate::clock::Instant;

/// The longest time for which a response is fresh by a guess.
const LONGEST_GUESS: Duration = Duration::from_secs(24 * 60 * 60);

/// The settings of a cache.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) default_ttl: Duration,
    pub(crate) stale_if_error: Duration,
    pub(crate) stale_while_revalidate: Duration,
    /// The field that counts in place of `Cache-Control`.
    pub(crate) targeted: Option<HeaderName>,
}

/// The properties of a request that the rules depend on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) directives: RequestDirectives,
    pub(crate) has_authorization: bool,
    pub(crate) has_cookie: bool,
}

impl Asked {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        Self {
            directives: RequestDirectives::read(headers),
            has_authorization: headers.contains_key(AUTHORIZATION),
            has_cookie: headers.contains_key(COOKIE),
        }
    }
}

/// When a request was sent, and its response arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) sent: Instant,
    pub(crate) received: Instant,
    pub(crate) date: SystemTime,
}

/// The terms on which a stored response may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// When its request was sent.
    sent: Instant,
    received: Instant,
    /// Its age when it was received.
    age: Duration,
    lifetime: Duration,
    /// Whether the lifetime is a guess, or the cache's default: the response does not say that it may be reused.
    is_guess: bool,
    /// Whether it says that it may be used for requests with credentials.
    for_authorized: bool,
    /// Whether it can be used again.
    pub(crate) is_worth_storing: bool,
    /// Whether each use needs a validation.
    no_cache: bool,
    /// Whether it must not be used when it is stale.
    must_revalidate: bool,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
}

/// How a stored response may be used for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    Fresh,
    /// It is stale, and may be used as it is.
    Stale,
    /// It is stale, and may be used while it is validated behind.
    Refresh,
    Validate,
}

impl Rules {
    /// Returns the terms of a response to a GET, or `None` if it is for its caller alone.
    ///
    /// `headers` loses the fields that must not be stored along with it.
    pub(crate) fn terms(
        &self,
        asked: &Asked,
        status: StatusCode,
        headers: &mut HeaderMap,
        times: Times,
    ) -> Option<Terms> {
        let targeted = self.targeted.as_ref().and_then(|name| targeted::read(headers, name));
        let is_targeted = targeted.is_some();
        let said = targeted.unwrap_or_else(|| ResponseDirectives::read(headers));
        let is_forbidden = asked.directives.no_store
            // The last ones are about the range or the condition of one request.
            || matches!(status.as_u16(), 0..200 | 206 | 304 | 412 | 416 | 417)
            || if said.must_understand { !is_understood(status) } else { said.no_store }
            || said.private == Some(Fields::All);
        // For all callers, and not only by a lifetime, which many frameworks add to everything.
        let is_shared = said.public || said.s_maxage.is_some();
        let for_authorized = is_shared || said.must_revalidate;
        if is_forbidden
            || (headers.contains_key(SET_COOKIE) && !is_shared)
            || (asked.has_authorization && !for_authorized)
        {
            return None;
        }
        let said_lifetime = said.s_maxage.or(said.max_age).or_else(|| {
            if is_targeted { None } else { headers.contains_key(EXPIRES).then(|| until_expiry(headers, times)) }
        });
        let (lifetime, is_guess) = match said_lifetime {
            Some(lifetime) => (lifetime, false),
            None if is_default(status) || said.public => (guess(headers, times).unwrap_or(self.default_ttl), true),
            None => (Duration::ZERO, true),
        };
        if is_guess && (asked.has_cookie || asked.has_authorization) {
            return None;
        }
        let must_revalidate = said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some();
        // The defaults apply only to a response that may be reused at all.
        let may_be_stale = said_lifetime.is_some() || !lifetime.is_zero();
        let window =
            |said: Option<Duration>, default| said.unwrap_or(if may_be_stale { default } else { Duration::ZERO });
        let terms = Terms {
            sent: times.sent,
            received: times.received,
            age: age(headers, times),
            lifetime,
            is_guess,
            for_authorized,
            is_worth_storing: true,
            no_cache: said.no_cache == Some(Fields::All),
            must_revalidate,
            stale_while_revalidate: window(said.stale_while_revalidate, self.stale_while_revalidate),
            stale_if_error: window(said.stale_if_error, self.stale_if_error),
        };
        // By its status, or because it says so (section 3).
        let is_cacheable = said_lifetime.is_some() || said.public || is_default(status);
        let is_worth_storing = is_cacheable && (has_validator(headers) || !terms.useful().is_zero());
        // One that is stale on arrival, because the service is slow, is still for all who have waited for it.
        let is_for_many = said_lifetime.is_some() && terms.are_for_many();
        for fields in [said.no_cache, said.private].into_iter().flatten() {
            if let Fields::Named(names) = fields {
                for name in names {
                    headers.remove(name);
                }
            }
        }
        (is_worth_storing || is_for_many).then_some(Terms { is_worth_storing, ..terms })
    }
}

impl Terms {
    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.age + now.saturating_duration_since(self.received)
    }

    /// Returns how long ago the request was sent.
    pub(crate) fn since_sent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.sent)
    }

    /// Notes how old the copy of a response is by its own account, and how long ago its request was sent.
    ///
    /// Its `Date` shows if that account is wrong, because a clock is. A date has whole seconds.
    pub(crate) fn copied(&mut self, age: Duration, since_sent: Duration, now: Instant) {
        self.age = self.age.saturating_sub(Duration::from_secs(1)).max(age);
        self.sent = now.checked_sub(since_sent).unwrap_or(now);
    }

    /// Returns whether the response is the answer to a later request than the other one.
    pub(crate) fn are_newer_than(&self, other: &Self) -> bool {
        self.sent > other.sent
    }

    /// Returns how long the response stays fresh, or how long it has been stale.
    pub(crate) fn freshness(&self, now: Instant) -> Result<Duration, Duration> {
        let age = self.age(now);
        if age < self.lifetime { Ok(self.lifetime - age) } else { Err(age - self.lifetime) }
    }

    /// Returns whether those who have waited for the response may have it without a validation of their own.
    pub(crate) fn are_for_many(&self) -> bool {
        !self.no_cache && !self.lifetime.is_zero()
    }

    /// Returns whether the response needs no validation unless a request asks for one.
    pub(crate) fn are_fresh(&self, now: Instant) -> bool {
        !self.no_cache && self.freshness(now).is_ok()
    }

    /// Returns whether the response is for callers such as the one of this request.
    pub(crate) fn are_for(&self, asked: &Asked) -> bool {
        (self.for_authorized || !asked.has_authorization) && !(self.is_guess && asked.has_cookie)
    }

    pub(crate) fn reuse(&self, asked: &Asked, now: Instant) -> Reuse {
        let wants = &asked.directives;
        let is_too_old = wants.max_age.is_some_and(|most| self.age(now) > most || most.is_zero());
        if self.no_cache || wants.no_cache || is_too_old {
            return Reuse::Validate;
        }
        match self.freshness(now) {
            Ok(left) if wants.min_fresh.is_none_or(|least| left >= least) => Reuse::Fresh,
            Err(stale) if !self.must_revalidate && wants.min_fresh.is_none() => match () {
                // A request that says how old a response may be says by `max-stale` how stale.
                () if stale < self.stale_while_revalidate && wants.max_age.is_none() => Reuse::Refresh,
                () if wants.max_stale.is_some_and(|most| stale <= most) => Reuse::Stale,
                () => Reuse::Validate,
            },
            _ => Reuse::Validate,
        }
    }

    /// Returns whether the response may be used in place of a failure.
    pub(crate) fn replace_failure(&self, asked: &Asked, now: Instant) -> bool {
        let wants = &asked.directives;
        let window = self.stale_if_error.max(wants.stale_if_error.unwrap_or_default());
        let is_recent = self.freshness(now).err().is_none_or(|stale| stale < window);
        !(self.no_cache || self.must_revalidate || wants.no_cache) && is_recent
    }

    /// Makes the response stale, as an answer to a request of that time says that it is.
    pub(crate) fn expire(&mut self, times: Times) {
        self.sent = times.sent;
        self.lifetime = Duration::ZERO;
        (self.stale_while_revalidate, self.stale_if_error) = (Duration::ZERO, Duration::ZERO);
    }

    /// Returns how long the response is of use from its arrival on if it cannot be validated.
    pub(crate) fn useful(&self) -> Duration {
        if self.no_cache {
            return Duration::ZERO;
        }
        let windows = self.stale_while_revalidate.max(self.stale_if_error);
        let stale = if self.must_revalidate { Duration::ZERO } else { windows };
        self.lifetime.saturating_add(stale).saturating_sub(self.age)
    }
}

/// Returns whether the rules of this status are known, which is what `must-understand` asks for.
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 302 | 303 | 307) || is_default(status)
}

/// Returns whether the status allows a guess of the lifetime (RFC 9110, section 15.1).
fn is_default(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// The time from `Date` to `Expires`. One that cannot be read has passed.
fn until_expiry(headers: &HeaderMap, times: Times) -> Duration {
    let date_of_response = date(headers, &DATE).unwrap_or(times.date);
    date(headers, &EXPIRES).and_then(|expires| expires.duration_since(date_of_response).ok()).unwrap_or_default()
}

/// A tenth of the time since the last modification (RFC 9111, section 4.2.2).
fn guess(headers: &HeaderMap, times: Times) -> Option<Duration> {
    let modified = date(headers, &LAST_MODIFIED)?;
    let unchanged = date(headers, &DATE).unwrap_or(times.date).duration_since(modified).ok()?;
    Some((unchanged / 10).min(LONGEST_GUESS))
}

/// The age of a response on arrival (RFC 9111, section 4.2.3).
fn age(headers: &HeaderMap, times: Times) -> Duration {
    let apparent = date(headers, &DATE).and_then(|date| times.date.duration_since(date).ok()).unwrap_or_default();
    // One with a parameter is not valid, and an age nevertheless.
    let without_parameters = |age: &[u8]| age.split(|byte| *byte == b';').next().and_then(seconds);
    let said = elements(headers, &AGE, Backslash::IsLiteral).next().and_then(without_parameters).unwrap_or_default();
    // A date has whole seconds.
    let apparent = Duration::from_secs(apparent.as_secs());
    apparent.max(said + times.received.saturating_duration_since(times.sent))
}

#[cfg(test)]
mod tests;
