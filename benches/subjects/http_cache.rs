//! The HTTP cache, and that of http-cache-tower, with the same responses.

use std::{
    future::{Ready, poll_fn, ready},
    hint::black_box,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::Full;
use tokio::runtime::{Builder, Runtime};
use tower::{Service, ServiceBuilder};
use ziggurat::{Error, cache::CacheLayer};
#[cfg(feature = "peers")]
use {
    http_cache::{MokaCache, MokaManager},
    http_cache_tower::HttpCacheLayer,
};

use crate::{Failed, subject::Subject};

const GIBIBYTE: usize = 1 << 30;

type Asked = Request<Full<Bytes>>;
type Answer = Result<Response<Full<Bytes>>, Failed>;

/// A hit on a response without and with `Vary`. The first subject of each kind responds at once with an empty response.
pub fn hits() -> Vec<Subject> {
    all([("a hit", 1, None), ("a hit with Vary", 1, Some("accept-language"))])
}

/// A hit among few and many responses with `Vary`, in an order without a pattern.
pub fn among_many() -> Vec<Subject> {
    all([("a hit among 100", 100, Some("accept-language")), ("a hit among 100,000", 100_000, Some("accept-language"))])
}

fn all(kinds: [(&'static str, u64, Option<&'static str>); 2]) -> Vec<Subject> {
    let runtime = Rc::new(Builder::new_current_thread().enable_time().build().expect("a runtime"));
    kinds.into_iter().flat_map(|(what, responses, vary)| of_a_kind(&runtime, what, responses, vary)).collect()
}

fn of_a_kind(runtime: &Rc<Runtime>, what: &'static str, responses: u64, vary: Option<&'static str>) -> Vec<Subject> {
    let service = move || {
        let asked = Arc::new(AtomicU64::new(0));
        move |_: Asked| {
            assert!(asked.fetch_add(1, Relaxed) < responses, "not a hit");
            answer(vary)
        }
    };
    let bare = tower::service_fn(|_| ready(Ok::<_, Failed>(Response::new(Full::<Bytes>::default()))));
    let ours = ServiceBuilder::new().layer(CacheLayer::http().capacity(GIBIBYTE)).map_err(Error::Service);
    vec![
        subject(runtime, what, "", responses, bare),
        subject(runtime, what, "ziggurat", responses, ours.service_fn(service())),
        #[cfg(feature = "peers")]
        subject(runtime, what, "http-cache-tower", responses, {
            let layer = HttpCacheLayer::new(MokaManager::new(MokaCache::new(1_000_000)));
            ServiceBuilder::new().layer(layer).service_fn(service())
        }),
    ]
}

/// A fresh response of 1 KiB, with the headers that most have.
fn answer(vary: Option<&'static str>) -> Ready<Answer> {
    let response = Response::builder().header("cache-control", "max-age=3600").header("content-type", "text/plain");
    let response = response.header("etag", "\"a\"").header("server", "test").header("content-length", "1024");
    let response = vary.into_iter().fold(response, |response, vary| response.header("vary", vary));
    ready(response.body(Full::new(Bytes::from_static(&[b'x'; 1024]))).map_err(|_| Failed))
}

/// Fills the cache. After that, the requests take the resources in an order without a pattern.
fn subject<S, B>(
    runtime: &Rc<Runtime>,
    what: &'static str,
    whose: &'static str,
    responses: u64,
    mut service: S,
) -> Subject
where
    S: Service<Asked, Response = Response<B>, Error: std::fmt::Debug> + 'static,
    B: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let uri = |number| format!("http://shop.test/prices?page={number}").parse().expect("a URI");
    let uris: Vec<Uri> = (0..responses).map(uri).collect();
    runtime.block_on(async {
        for uri in &uris {
            round_trip(&mut service, uri).await;
            // A task may store it.
            tokio::task::yield_now().await;
        }
    });
    let (runtime, mut number) = (Rc::clone(runtime), 1_u64);
    let run = move |times| {
        runtime.block_on(async {
            for _ in 0..times {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                round_trip(&mut service, &uris[((number >> 33) % responses) as usize]).await;
            }
        });
    };
    Subject { what, whose, run: Box::new(run) }
}

async fn round_trip<S, B>(service: &mut S, uri: &Uri)
where
    S: Service<Asked, Response = Response<B>, Error: std::fmt::Debug>,
    B: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let request = Request::get(uri.clone()).header("accept-language", "de, en");
    let request = request.body(Full::default()).expect("a request");
    poll_fn(|cx| service.poll_ready(cx)).await.expect("a service that is ready");
    let mut body = pin!(service.call(black_box(request)).await.expect("a response").into_body());
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        black_box(frame.expect("a frame"));
    }
}
