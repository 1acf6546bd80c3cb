//! The cache layer, on a paused clock.

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::oneshot;
use tower::{Service, ServiceExt, service_fn};
use ziggurat::{
    Error, LayerEvent, LayerInfo, Observer,
    testing::{Strict, TestTask},
};

mod input;
mod memory;
mod over_http;
mod single_flight;
mod stale;
mod working_set;

const SECOND: Duration = Duration::from_secs(1);
const INSTANT: Duration = Duration::from_nanos(1);

type Outcome = Result<String, Error<&'static str>>;

/// Returns an observer of failed refreshes, and their reasons and errors.
pub(super) fn failed_refreshes() -> (Arc<Mutex<Vec<String>>>, impl Observer) {
    let failures = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&failures);
    let observer = move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::RefreshFailed { reason, error } = event {
            log.lock().unwrap().push(format!("{reason}: {error}"));
        }
    };
    (failures, observer)
}

type BoxFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A backend that responds to each call on demand.
#[derive(Clone, Default)]
struct Backend {
    calls: Arc<Mutex<Vec<Option<oneshot::Sender<Outcome>>>>>,
    is_busy: Arc<AtomicBool>,
}

impl Backend {
    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Responds to the call of this number, from 0.
    fn answer(&self, call: usize, outcome: Outcome) {
        let sender = self.calls.lock().unwrap()[call].take().unwrap();
        assert!(sender.send(outcome).is_ok(), "the call was dropped");
    }

    fn was_dropped(&self, call: usize) -> bool {
        self.calls.lock().unwrap()[call].as_ref().unwrap().is_closed()
    }
}

impl Service<&'static str> for Backend {
    type Response = String;
    type Error = Error<&'static str>;
    type Future = BoxFuture;

    /// Busy until the test says otherwise and polls again.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.is_busy.load(SeqCst) { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn call(&mut self, _: &'static str) -> Self::Future {
        let (sender, receiver) = oneshot::channel();
        self.calls.lock().unwrap().push(Some(sender));
        Box::pin(async { receiver.await.unwrap() })
    }
}

/// Returns a backend, and a strict handle to it.
fn backend() -> (Backend, Strict<Backend>) {
    let backend = Backend::default();
    (backend.clone(), Strict::new(backend))
}

/// Returns a service that responds at once with its request and the number of the call.
fn counter()
-> (Arc<AtomicUsize>, impl Service<&'static str, Response = String, Error = Error<&'static str>, Future: Send> + Clone)
{
    let calls = Arc::new(AtomicUsize::new(0));
    let service = {
        let calls = Arc::clone(&calls);
        service_fn(move |request: &'static str| ready(Ok(format!("{request} {}", calls.fetch_add(1, SeqCst) + 1))))
    };
    (calls, service)
}

fn itself(request: &&'static str) -> Option<&'static str> {
    Some(*request)
}

fn ok(answer: &str) -> Outcome {
    Ok(answer.to_owned())
}

/// Returns a call that is polled by hand.
fn task<S>(service: &S, request: &'static str) -> TestTask<impl Future<Output = Outcome> + use<S>>
where
    S: Service<&'static str, Response = String, Error = Error<&'static str>> + Clone,
{
    TestTask::new(service.clone().oneshot(request))
}

#[track_caller]
fn answered<T>(polled: Poll<T>) -> T {
    match polled {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it is still pending"),
    }
}
