//! Panics of user code inside the cache, which reach the caller whose request it was.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, SizeHint};

use super::*;

/// A body or an error that panics in one of its methods, and again when it is dropped, which must not end the process.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Panics {
    IsEndStream,
    SizeHint,
    Display,
}

struct Panicking(Panics);

impl Body for Panicking {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        assert_ne!(self.0, Panics::IsEndStream, "by the user");
        false
    }

    fn size_hint(&self) -> SizeHint {
        assert_ne!(self.0, Panics::SizeHint, "by the user");
        SizeHint::new()
    }
}

impl fmt::Display for Panicking {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("Display: by the user");
    }
}

impl Drop for Panicking {
    fn drop(&mut self) {
        panic!("in drop");
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_a_panic_of_the_call() {
    for place in [Panics::IsEndStream, Panics::SizeHint, Panics::Display] {
        let origin = service_fn(move |_: Request<Empty<Bytes>>| async move {
            match place {
                Panics::Display => Err(Error::Service(Panicking(place))),
                _ => Ok(Response::builder().header("cache-control", "max-age=60").body(Panicking(place)).unwrap()),
            }
        });
        let service = CacheLayer::http().layer(origin);
        let call = service.oneshot(request(Method::GET, "/", &[]));
        let panic = tokio::spawn(async move { std::mem::forget(call.await) }).await.unwrap_err().into_panic();
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        assert!(text.is_some_and(|text| text.contains("by the user")), "{place:?}: {text:?}");
    }
}
