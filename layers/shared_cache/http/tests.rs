use std::convert::Infallible;

use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;

use super::*;

fn response() -> Response<Full<Bytes>> {
    let response = Response::builder().status(404).header("x-a", "1").header("x-b", "2").header("x-a", "3");
    let response = response.header("x-raw", HeaderValue::from_bytes(b"\xff").unwrap()).header("x-empty", "");
    response.body(Full::new(Bytes::from_static(b"a body"))).unwrap()
}

/// Shows: M2
#[tokio::test]
async fn a_response_is_the_same_after_it_was_encoded_and_decoded() {
    for body in [Bytes::new(), Bytes::from(vec![7; 100_000])] {
        let response = response().map(|_| Full::new(body.clone()));
        let decoded: Response<Full<Bytes>> = HttpCodec.decode(HttpCodec.encode(&response).unwrap()).unwrap();
        assert_eq!((decoded.status(), decoded.headers()), (response.status(), response.headers()));
        assert_eq!(decoded.into_body().collect().await.unwrap().to_bytes(), body);
    }
}

/// A body of one frame, or of none that is there.
#[derive(Clone)]
struct Odd(Option<HeaderMap>);

impl Body for Odd {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.take().map_or(Poll::Pending, |trailers| Poll::Ready(Some(Ok(Frame::trailers(trailers)))))
    }
}

impl From<Bytes> for Odd {
    fn from(_: Bytes) -> Self {
        Self(None)
    }
}

/// Shows: M2
#[test]
fn a_body_that_is_not_all_data_is_not_stored() {
    for body in [Odd(None), Odd(Some(HeaderMap::new()))] {
        assert_eq!(HttpCodec.encode(&Response::new(body)), None);
    }
}

/// Shows: M2
#[test]
fn bytes_that_are_cut_off_in_the_head_are_no_response() {
    let bytes = HttpCodec.encode(&response()).unwrap();
    for length in 0..bytes.len() - b"a body".len() {
        let decoded: Result<Response<Full<Bytes>>, _> = HttpCodec.decode(bytes.slice(..length));
        assert!(decoded.is_err(), "{length}");
    }
}

proptest! {
    /// Shows: M2
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _: Result<Response<Full<Bytes>>, _> = HttpCodec.decode(bytes.into());
    }
}
