//! An upstream that goes down and comes back, and faults that are switched on and off, as a caller sees them.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Router, routing::get as on_get};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client as Pooled;
use tokio::{sync::oneshot, task::JoinHandle};
use tower::{ServiceExt, service_fn};
use ziggurat::{
    Degraded,
    chaos::{ChaosHandle, ChaosLayer, Fault},
    circuit_breaker::{CircuitBreakerHandle, State},
    fallback::{Failed, FallbackLayer},
};

use super::*;

/// An axum server that can be stopped, and restarted at the same address.
struct Upstream {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    stopped: JoinHandle<()>,
}

async fn start(at: &str) -> Upstream {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/prices", on_get(|| async { "today's prices" }));
    let (stop, signal) = oneshot::channel::<()>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async { drop(signal.await) });
    let stopped = tokio::spawn(async { serving.await.unwrap() });
    Upstream { address, stop, stopped }
}

impl Upstream {
    /// After this returns, nothing listens there any more.
    async fn stop(self) -> String {
        self.stop.send(()).unwrap();
        self.stopped.await.unwrap();
        self.address.to_string()
    }
}

type Answered = Response<Full<Bytes>>;

struct Stack {
    service: BoxCloneSyncService<Request<Full<Bytes>>, Answered, Error<io::Error>>,
    address: SocketAddr,
    circuit: CircuitBreakerHandle,
    chaos: ChaosHandle,
    sent: Arc<AtomicUsize>,
}

impl Stack {
    fn new(address: SocketAddr, fault: Fault) -> Self {
        let sent = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&sent);
        let send = service_fn(move |request: Request<Full<Bytes>>| {
            count.fetch_add(1, Ordering::SeqCst);
            async {
                // Without a pool, each call notices anew whether the upstream is there.
                let client = Pooled::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
                let (head, body) = client.request(request).await.map_err(io::Error::other)?.into_parts();
                let body = body.collect().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>(Response::from_parts(head, Full::new(body.to_bytes())))
            }
        });
        let breaker = CircuitBreakerLayer::consecutive(1).classify(ziggurat::HttpStatus).open_for(FAR);
        let chaos = ChaosLayer::new(fault).rate(1.0).seed(42);
        let (circuit, switch) = (breaker.handle(), chaos.handle());
        let service = ServiceBuilder::new()
            .layer(
                FallbackLayer::new(|failed: Failed<'_, _, _, String>| {
                    Response::new(Full::new(Bytes::from(format!("yesterday's {}", failed.remembered))))
                })
                .remember(|request: &Request<_>| request.uri().path().trim_start_matches('/').to_owned())
                .http(),
            )
            .layer(TimeoutLayer::new(if fault == Fault::Hang { Duration::from_millis(50) } else { FAR }))
            .layer(RetryLayer::http().backoff(Duration::ZERO).budget(None))
            .layer(breaker)
            .layer(chaos)
            .map_err(Error::Service)
            .service(send);
        let service = BoxCloneSyncService::new(service);
        Self { service, address, circuit, chaos: switch, sent }
    }

    /// Returns the response, why it is degraded, and the number of requests that were sent for it.
    async fn ask(&self) -> (String, Option<String>, usize) {
        let before = self.sent.load(Ordering::SeqCst);
        let request = Request::get(format!("http://{}/prices", self.address)).body(Full::default()).unwrap();
        let response = self.service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let why = response.extensions().get::<Degraded>().map(Degraded::to_string);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let sent = self.sent.load(Ordering::SeqCst) - before;
        (String::from_utf8(body.to_vec()).unwrap(), why, sent)
    }

    /// Expects a fresh response.
    async fn is_well(&self) {
        assert_eq!(self.ask().await, ("today's prices".into(), None, 1));
    }

    /// Expects yesterday's response. Returns the cause, and the number of requests that were sent for it.
    async fn is_degraded(&self) -> (String, usize) {
        let (body, why, sent) = self.ask().await;
        assert_eq!(body, "yesterday's prices");
        (why.unwrap(), sent)
    }
}

/// Shows: G2
#[tokio::test]
async fn while_the_upstream_is_down_answers_are_degraded_and_when_it_is_back_they_are_fresh() {
    let upstream = start("127.0.0.1:0").await;
    let stack = Stack::new(upstream.address, Fault::Error);
    stack.is_well().await;

    let address = upstream.stop().await;
    // The first attempt fails and opens the circuit. The second finds it open, and is not retried.
    let (why, sent) = stack.is_degraded().await;
    assert!(why.contains("the circuit is open"), "{why}");
    assert_eq!((sent, stack.circuit.state()), (1, State::Open));
    // From now on no request is sent.
    assert_eq!(stack.is_degraded().await.1, 0);

    let _upstream = start(&address).await;
    stack.circuit.close();
    stack.is_well().await;
}

/// Shows: G3
#[tokio::test]
async fn while_faults_are_switched_on_answers_are_degraded_and_afterwards_they_are_fresh() {
    let upstream = start("127.0.0.1:0").await;
    for fault in [Fault::Error, Fault::Hang] {
        let stack = Stack::new(upstream.address, fault);
        stack.is_well().await;

        stack.chaos.on();
        let (why, sent) = stack.is_degraded().await;
        let expected = if fault == Fault::Hang { "no response within 50ms" } else { "the circuit is open" };
        assert!(why.contains(expected), "{why}");
        // The upstream is well, and received nothing.
        assert_eq!(sent, 0);
        assert!(stack.chaos.injected() > 0);

        stack.chaos.off();
        stack.circuit.close();
        stack.is_well().await;
    }
}
