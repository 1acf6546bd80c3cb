//! HTTP responses as bytes.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, SET_COOKIE},
};
use http_body::Body;

use crate::store::{Codec, put_headers, take_headers};

/// Encodes HTTP responses with a body in memory, such as `Full<Bytes>`: the status, the headers and the body.
///
/// Extensions and the version of HTTP are not encoded. A response whose body is not there at once, fails or has
/// trailers is not stored. Neither is a server error, or a response that is meant for one caller (`Set-Cookie`,
/// `private`, `no-store`, a header that is marked as sensitive), whatever the classifier says.
///
/// Use it together with `HttpStorable` and `http_key` of the [`cache`](crate::cache):
///
/// ```
/// use std::time::Duration;
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower::{Layer, service_fn};
/// use ziggurat::{
///     Error,
///     cache::{HttpStorable, http_key},
///     shared_cache::{HttpCodec, SharedCacheLayer},
///     store::MemoryStore,
/// };
///
/// let key = |request: &Request<Full<Bytes>>| Some(http_key(request)?.to_string());
/// let (store, ttl) = (MemoryStore::new(), Duration::from_secs(60));
/// let layer = SharedCacheLayer::new(store, ttl, key, HttpCodec).classify(HttpStorable);
/// let service = layer.layer(service_fn(|_: Request<Full<Bytes>>| async {
///     Ok::<_, Error<std::io::Error>>(Response::new(Full::new(Bytes::from("hello"))))
/// }));
/// # use tower::ServiceExt;
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// # service.oneshot(Request::new(Full::default())).await.unwrap();
/// # assert_eq!(layer.handle().misses(), 1);
/// # });
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HttpCodec;

impl<B> Codec<Response<B>> for HttpCodec
where
    B: Body<Data = Bytes> + Clone + From<Bytes>,
{
    type Error = &'static str;

    fn encode(&self, response: &Response<B>) -> Option<Bytes> {
        let headers = response.headers();
        if is_personal(headers) || response.status().is_server_error() {
            return None;
        }
        let mut bytes = BytesMut::new();
        bytes.put_u16(response.status().as_u16());
        put_headers(&mut bytes, headers);
        let mut body = pin!(response.body().clone());
        loop {
            match body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(frame))) => bytes.put(frame.into_data().ok()?),
                Poll::Ready(None) => return Some(bytes.freeze()),
                Poll::Ready(Some(Err(_))) | Poll::Pending => return None,
            }
        }
    }

    fn decode(&self, mut bytes: Bytes) -> Result<Response<B>, &'static str> {
        decode(&mut bytes).ok_or("these are not the bytes of an HTTP response")
    }
}

/// Returns whether a response is meant for its caller alone, or has a value that should be written nowhere.
fn is_personal(headers: &HeaderMap) -> bool {
    let forbids = |value: &HeaderValue| {
        let value = value.as_bytes().to_ascii_lowercase();
        ["private", "no-store"].iter().any(|word| value.windows(word.len()).any(|part| part == word.as_bytes()))
    };
    headers.contains_key(SET_COOKIE)
        || headers.values().any(HeaderValue::is_sensitive)
        || headers.get_all(CACHE_CONTROL).iter().any(forbids)
}

fn decode<B: From<Bytes>>(bytes: &mut Bytes) -> Option<Response<B>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(bytes.try_get_u16().ok()?).ok()?;
    *response.headers_mut() = take_headers(bytes)?;
    Some(response.map(|()| std::mem::take(bytes).into()))
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
