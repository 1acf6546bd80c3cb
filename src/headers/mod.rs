//! Headers that carry the identity of a request and its remaining time.
//!
//! These types read and write headers, for your own code and for the layers:
//!
//! - A [`RequestIdLayer`](crate::request_id::RequestIdLayer) reads the identity of a request at a server.
//! - A [`PropagateLayer`](crate::propagate::PropagateLayer) passes the identity and the remaining time on to the next
//!   hop.
//! - A [`TimeoutLayer`](crate::timeout::TimeoutLayer) can take its limit from a [`TimeoutHeader`].
//!
//! Headers are untrusted input: a malformed header counts as absent, and nothing here panics or fails.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::debug::impl_debug;

mod request_id;
mod timeout;
mod trace;

pub use request_id::RequestIdHeader;
pub use timeout::{AtMost, TimeoutHeader};
pub use trace::Traceparent;

/// The identity of a request: its id, and its trace if the caller is traced.
///
/// A [`RequestIdLayer`](crate::request_id::RequestIdLayer) stores it in the request's extensions and in the request's
/// scope:
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
#[derive(Clone, PartialEq, Eq)]
pub struct RequestIds {
    // Shared: a request has them in its extensions, in its scope and in the future of its response, and a retry copies
    // the extensions.
    ids: Arc<Ids>,
}

#[derive(PartialEq, Eq)]
struct Ids {
    request_id: RequestIdHeader,
    trace: Option<Traceparent>,
}

impl RequestIds {
    /// Reads the identity from headers: the id in the header `request_id`, and a valid `traceparent` with its
    /// `tracestate`. Without a valid id, a new one is generated.
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
        Self { ids: Arc::new(Ids { request_id, trace }) }
    }

    /// Returns the request's id, with the name of its header.
    #[must_use]
    pub fn request_id(&self) -> &RequestIdHeader {
        &self.ids.request_id
    }

    /// Returns the trace that the request belongs to, if the caller sent one.
    #[must_use]
    pub fn trace(&self) -> Option<&Traceparent> {
        self.ids.trace.as_ref()
    }

    /// Writes the identity into headers without overwriting: an existing id stays, and so does an existing
    /// `traceparent` together with its `tracestate`.
    pub fn write(&self, headers: &mut HeaderMap) {
        self.ids.request_id.write(headers);
        if let Some(trace) = &self.ids.trace {
            trace.write(headers);
        }
    }
}

impl_debug!(RequestIds { request_id = |this| &this.ids.request_id, trace = |this| &this.ids.trace });

/// Inserts a header unless its name is present. Returns whether it was inserted.
fn insert_absent(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) -> bool {
    let is_absent = !headers.contains_key(name);
    if is_absent {
        headers.insert(name.clone(), value.clone());
    }
    is_absent
}
