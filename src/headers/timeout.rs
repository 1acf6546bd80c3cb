//! Headers that carry the remaining time of a request.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request};

use crate::{debug::impl_debug, setting::Setting};

/// A header that carries the remaining time of a request to a server, and its format.
///
/// A server takes the smaller of its own limit and the header's, with [`at_most`](Self::at_most). A client sends its
/// remaining time with [`PropagateLayer::deadline`](crate::propagate::PropagateLayer::deadline).
///
/// ```
/// use std::time::Duration;
/// use http::{HeaderMap, HeaderName};
/// use ziggurat::headers::TimeoutHeader;
///
/// let mut headers = HeaderMap::new();
/// TimeoutHeader::grpc().write(Duration::from_millis(1500), &mut headers);
/// assert_eq!(headers["grpc-timeout"], "1500000u");
/// assert_eq!(TimeoutHeader::grpc().read(&headers), Some(Duration::from_millis(1500)));
///
/// let own = TimeoutHeader::millis(HeaderName::from_static("x-request-timeout-ms"));
/// own.write(Duration::from_micros(1_500_700), &mut headers);
/// assert_eq!(headers["x-request-timeout-ms"], "1500");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeoutHeader {
    name: HeaderName,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Grpc,
    Millis,
}

impl TimeoutHeader {
    /// Selects `grpc-timeout`, as gRPC over HTTP/2 defines it: one to eight digits and a letter for the unit, `H`, `M`,
    /// `S`, `m`, `u` or `n`, from hours to nanoseconds.
    ///
    /// More than 99,999,999 hours (11,415 years) are written as 99,999,999 hours.
    #[must_use]
    pub const fn grpc() -> Self {
        Self { name: HeaderName::from_static("grpc-timeout"), form: Form::Grpc }
    }

    /// Selects a header of your choice that holds a whole number of milliseconds.
    #[must_use]
    pub const fn millis(name: HeaderName) -> Self {
        Self { name, form: Form::Millis }
    }

    /// Returns the name of the header.
    #[must_use]
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Returns the remaining time of a request, or `None` if the header is absent or malformed. If there are several
    /// valid headers, the smallest value counts.
    ///
    /// Zero means that no time is left. gRPC's specification does not allow zero, but implementations have sent it for
    /// years.
    #[must_use]
    pub fn read(&self, headers: &HeaderMap) -> Option<Duration> {
        headers.get_all(&self.name).iter().filter_map(|value| self.form.parse(value.as_bytes())).min()
    }

    /// Writes the remaining time, replacing any previous value.
    ///
    /// It is rounded down to the finest unit that can hold it, so that the next hop gives up no later than this one.
    /// `grpc-timeout` loses less than a hundred-thousandth of the time. Less than one of the finest unit is written as
    /// 1, never as zero: some servers refuse zero, and others treat it as no limit.
    pub fn write(&self, left: Duration, headers: &mut HeaderMap) {
        if let Some(value) = self.form.format(left) {
            headers.insert(self.name.clone(), value);
        }
    }

    /// Returns a setting for a server's [`TimeoutLayer`](crate::timeout::TimeoutLayer): the time in the request's
    /// header, but at most `limit`.
    ///
    /// `limit` is itself a value or a function of the request. Without a valid header, `limit` applies alone. If
    /// `limit` is a function that returns `None`, the header applies alone.
    ///
    /// Callers thereby choose how soon the server gives up. A caller that asks for very little time can open a circuit
    /// breaker inside that counts timeouts. Read the header only from callers that you trust.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ziggurat::{timeout::TimeoutLayer, headers::TimeoutHeader};
    ///
    /// let layer = TimeoutLayer::new(TimeoutHeader::grpc().at_most(Duration::from_secs(30)));
    /// ```
    pub fn at_most<L>(self, limit: L) -> AtMost<L> {
        AtMost { header: self, limit }
    }
}

/// The smaller of a limit and a header's value: see [`TimeoutHeader::at_most`].
#[derive(Clone)]
#[must_use]
pub struct AtMost<L> {
    header: TimeoutHeader,
    limit: L,
}

impl<B, L> Setting<Request<B>, Duration> for AtMost<L>
where
    L: Setting<Request<B>, Duration>,
{
    fn get(&self, request: &Request<B>) -> Option<Duration> {
        let incoming = self.header.read(request.headers());
        self.limit.get(request).into_iter().chain(incoming).min()
    }
}

impl_debug!(AtMost<L> { header, limit: L });

/// The units of `grpc-timeout`, from finest to coarsest.
const UNITS: [(u8, Duration); 6] = [
    (b'n', Duration::from_nanos(1)),
    (b'u', Duration::from_micros(1)),
    (b'm', Duration::from_millis(1)),
    (b'S', Duration::from_secs(1)),
    (b'M', Duration::from_secs(60)),
    (b'H', Duration::from_secs(60 * 60)),
];

/// The maximum number of digits in a `grpc-timeout`, and the largest such number.
const DIGITS: usize = 8;
const LARGEST: u128 = 99_999_999;

impl Form {
    fn parse(self, value: &[u8]) -> Option<Duration> {
        match self {
            Self::Grpc => {
                let (letter, digits) = value.split_last()?;
                let (_, unit) = UNITS.iter().find(|(unit, _)| unit == letter)?;
                if digits.len() > DIGITS {
                    return None;
                }
                unit.checked_mul(number(digits)?.try_into().ok()?)
            }
            Self::Millis => number(value).map(Duration::from_millis),
        }
    }

    fn format(self, time: Duration) -> Option<HeaderValue> {
        match self {
            Self::Grpc => {
                let in_unit = |(letter, unit): (u8, Duration)| (time.as_nanos() / unit.as_nanos(), char::from(letter));
                let fits = UNITS.into_iter().map(in_unit).find(|(number, _)| *number <= LARGEST);
                let (number, letter) = fits.unwrap_or((LARGEST, 'H'));
                HeaderValue::try_from(format!("{}{letter}", number.max(1))).ok()
            }
            Self::Millis => Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1).into()),
        }
    }
}

/// Parses digits only: no sign, no space, no point. `None` also if the number overflows.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests;
