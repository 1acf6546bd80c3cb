//! What travels in headers: whose request it is, and how much time is left for it.
//!
//! These are readers and writers of headers, for your own code and for the layers:
//! [`RequestIdLayer`](crate::request_id::RequestIdLayer) takes over who a request is at a server,
//! [`PropagateLayer`](crate::propagate::PropagateLayer) passes that and the time that is left on to the next hop, and a
//! [`TimeoutLayer`](crate::timeout::TimeoutLayer) takes a [`TimeoutHeader`] into account.
//!
//! Headers come from outside: what is malformed counts as absent, and nothing here panics or fails.

use http::{HeaderMap, HeaderName, HeaderValue, header::Entry};

mod request_id;
mod timeout;
mod trace;

pub use request_id::RequestIdHeader;
pub use timeout::{AtMost, TimeoutHeader};
pub use trace::Traceparent;

/// Whose request it is: its id, and the trace that it belongs to if its caller is traced.
///
/// An [`RequestIdLayer`](crate::request_id::RequestIdLayer) puts it into the request's extensions, and into the scope of the
/// request:
///
/// ```
/// use ziggurat::{Scope, headers::RequestIds};
///
/// fn request_id() -> Option<String> {
///     let ids = Scope::current()?.get::<RequestIds>()?;
///     Some(ids.request_id().as_str().to_owned())
/// }
/// # assert_eq!(request_id(), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestIds {
    request_id: RequestIdHeader,
    trace: Option<Traceparent>,
}

impl RequestIds {
    /// What the headers say: the id in the header `request_id`, or a new one if there is none that can be taken over, and a
    /// valid `traceparent` with its `tracestate`.
    ///
    /// ```
    /// use http::{HeaderMap, HeaderName};
    /// use ziggurat::headers::RequestIds;
    ///
    /// const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    ///
    /// let mut headers = HeaderMap::new();
    /// headers.insert(REQUEST_ID, "order-17".parse().unwrap());
    /// assert_eq!(RequestIds::read(&headers, REQUEST_ID).request_id().as_str(), "order-17");
    /// assert_eq!(RequestIds::read(&HeaderMap::new(), REQUEST_ID).request_id().as_str().len(), 32);
    /// ```
    #[must_use]
    pub fn read(headers: &HeaderMap, request_id: HeaderName) -> Self {
        let trace = Traceparent::read(headers);
        let request_id =
            RequestIdHeader::read(headers, &request_id).unwrap_or_else(|| RequestIdHeader::random(request_id));
        Self { request_id, trace }
    }

    /// The id of the request, under the name of the header that it came in.
    #[must_use]
    pub fn request_id(&self) -> &RequestIdHeader {
        &self.request_id
    }

    pub(crate) fn into_request_id(self) -> RequestIdHeader {
        self.request_id
    }

    /// The trace that the request belongs to, if its caller said so.
    #[must_use]
    pub fn trace(&self) -> Option<&Traceparent> {
        self.trace.as_ref()
    }

    /// Writes it into headers, but for what they say already: an id that is there stays, and so does a `traceparent`, together
    /// with the `tracestate` beside it.
    pub fn write(&self, headers: &mut HeaderMap) {
        self.request_id.write(headers);
        if let Some(trace) = &self.trace {
            trace.write(headers);
        }
    }
}

/// Whether the header was put there: one of this name that is there already stays.
fn insert_absent(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) -> bool {
    match headers.entry(name) {
        Entry::Occupied(_) => false,
        Entry::Vacant(absent) => {
            absent.insert(value.clone());
            true
        }
    }
}
