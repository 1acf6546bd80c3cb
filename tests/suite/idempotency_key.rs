//! The key that makes a `POST` repeatable.

use std::{
    collections::HashSet,
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{Error, hedge::HedgeLayer, idempotency_key::IdempotencyKeyLayer, retry::RetryLayer, stack::ClientStack};

type Keys = Arc<Mutex<Vec<Option<HeaderValue>>>>;

/// A service that fails once and remembers the keys of its requests.
fn upstream(
    keys: &Keys,
) -> impl Service<Request<String>, Response = Response<String>, Error = Error<Infallible>, Future: Send> + Clone + Send + use<>
{
    let keys = keys.clone();
    service_fn(move |request: Request<String>| {
        let mut keys = keys.lock().unwrap();
        keys.push(request.headers().get("idempotency-key").cloned());
        let status = if keys.len() == 1 { 503 } else { 200 };
        ready(Ok(Response::builder().status(status).body(String::new()).unwrap()))
    })
}

fn request(method: Method) -> Request<String> {
    Request::builder().method(method).uri("/").body(String::new()).unwrap()
}

/// Shows: Y1
#[tokio::test(start_paused = true)]
async fn a_post_has_one_key_on_all_attempts_and_is_repeated() {
    for method in [Method::POST, Method::PATCH] {
        let keys = Keys::default();
        let stack = (IdempotencyKeyLayer::new(), ClientStack::http("orders"));
        let client = ServiceBuilder::new().layer(stack).service(upstream(&keys));
        assert_eq!(client.oneshot(request(method)).await.unwrap().status(), 200);
        let keys = keys.lock().unwrap();
        let key = keys[0].as_ref().unwrap().to_str().unwrap();
        assert_eq!((keys.len(), &keys[1]), (2, &keys[0]));
        let digits = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap();
        assert!(digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{key}");
    }
}

/// Shows: Y1
#[tokio::test(start_paused = true)]
async fn a_hedge_has_the_key_of_the_first_attempt() {
    let keys = Keys::default();
    let seen = keys.clone();
    let slow_at_first = service_fn(move |request: Request<String>| {
        let mut keys = seen.lock().unwrap();
        keys.push(request.headers().get("idempotency-key").cloned());
        let is_first = keys.len() == 1;
        async move {
            if is_first {
                std::future::pending::<()>().await;
            }
            Ok::<_, Error<Infallible>>(Response::new(String::new()))
        }
    });
    let hedge = HedgeLayer::after(Duration::from_millis(50)).http();
    let client = ServiceBuilder::new().layer((IdempotencyKeyLayer::new(), hedge)).service(slow_at_first);
    assert_eq!(client.oneshot(request(Method::POST)).await.unwrap().status(), 200);
    let keys = keys.lock().unwrap();
    assert!(keys.len() == 2 && keys[0].is_some() && keys[0] == keys[1], "{keys:?}");
}

/// Shows: Y1
#[tokio::test(start_paused = true)]
async fn without_the_layer_a_post_is_sent_once() {
    let keys = Keys::default();
    let client = ServiceBuilder::new().layer(ClientStack::http("orders")).service(upstream(&keys));
    assert_eq!(client.oneshot(request(Method::POST)).await.unwrap().status(), 503);
    assert_eq!(*keys.lock().unwrap(), [None]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_needs_no_key_or_has_one_is_left_alone() {
    let sent = async |request| {
        let keys = Keys::default();
        let client = ServiceBuilder::new()
            .layer((IdempotencyKeyLayer::new(), RetryLayer::http().max_attempts(1)))
            .service(upstream(&keys));
        client.oneshot(request).await.unwrap();
        keys.lock().unwrap().remove(0)
    };
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS, Method::CONNECT] {
        assert_eq!(sent(request(method.clone())).await, None, "{method}");
    }
    let mut order = request(Method::POST);
    order.headers_mut().insert("idempotency-key", HeaderValue::from_static("order-17"));
    assert_eq!(sent(order).await.unwrap(), "order-17");
}

#[tokio::test(start_paused = true)]
async fn each_request_has_a_key_of_its_own() {
    let keys = Keys::default();
    let client = ServiceBuilder::new().layer(IdempotencyKeyLayer::new().unquoted()).service(upstream(&keys));
    for _ in 0..1000 {
        client.clone().oneshot(request(Method::POST)).await.unwrap();
    }
    let keys: HashSet<_> = keys.lock().unwrap().drain(..).flatten().collect();
    assert_eq!(keys.len(), 1000);
    assert!(keys.iter().all(|key| key.len() == 32));
}
