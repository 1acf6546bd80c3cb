//! Checking the laws of a layer.

use std::{
    error::Error as StdError,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, Uri};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    act::ScriptedError,
    checks,
    law::{Broken, Law},
    script::{Script, Scripted},
    trial::{Fault, Outcome, Refusal, Subject, Value},
};
use crate::{
    debug::impl_debug,
    outcome::{Error, Rejection},
};

/// Creates the check of a layer's laws, over HTTP requests and responses with `String` bodies.
///
/// Request number 7 is `GET http://inner.test/7`, an [`http::Request<String>`](Request) without headers whose body is
/// the 9 bytes `body of 7`, and its response an [`http::Response<String>`](Response) that says so in a header
/// ([`HttpNumber`]). A layer whose closures take another request, for example with another body, does not compile here:
/// use [`over`](Laws::over) for other types.
///
/// A layer that rejects requests by their content must admit these. Check its rejections with
/// [`rejects`](Laws::rejects), and their reasons in tests of your own, over the service of a [`Script`].
///
/// `make` creates a new layer value. Each trial has its own, over a
/// [`Script`]. Configure the layer as tightly as possible, for example with a limit of one, or a circuit that opens at
/// the first failure: a trial shows whether the second call still gets through.
///
/// The layer is created within a scope, and called from there. A layer that opens scopes takes
/// [`Scope::current`](crate::Scope::current) as their parent.
///
/// ```
/// use std::time::Duration;
/// use ziggurat::{testing, timeout::TimeoutLayer};
///
/// testing::laws(|| TimeoutLayer::new(Duration::from_secs(1))).check();
/// ```
///
/// A layer that holds closures works too, and so does a whole stack:
///
/// ```
/// # use std::time::Duration;
/// # use ziggurat::{testing, timeout::TimeoutLayer};
/// use http::Request;
/// use tower::ServiceBuilder;
///
/// testing::laws(|| {
///     ServiceBuilder::new()
///         .layer(TimeoutLayer::new(Duration::from_secs(3)))
///         .layer(TimeoutLayer::new(|_: &Request<String>| Duration::from_secs(1)))
///         .into_inner()
/// })
/// .check();
/// ```
///
/// That a layer and its services are `Clone`, `Send` and `Sync`, and its futures `Send`, is a law that the compiler
/// checks:
///
/// ```compile_fail,E0277
/// # use tower::layer::layer_fn;
/// let shared = std::rc::Rc::new(());
/// ziggurat::testing::laws(move || { let shared = shared.clone(); layer_fn(move |s| { let _ = &shared; s }) }).check();
/// ```
pub fn laws<L>(make: impl Fn() -> L) -> Laws<impl Fn() -> (L, fn())> {
    laws_with_gauges(move || (make(), (|| {}) as fn()))
}

/// Creates the check of a layer's laws, with gauges: a function that returns, for example, the numbers in use and in
/// the queue.
///
/// Whenever no call is in progress, the gauges have to show the same value as for a new layer. See [`laws`] for the
/// rest.
///
/// ```
/// use ziggurat::{concurrency_limit::ConcurrencyLimitLayer, testing};
///
/// testing::laws_with_gauges(|| {
///     let layer = ConcurrencyLimitLayer::new(1);
///     let gate = layer.handle();
///     (layer, move || (gate.in_flight(), gate.waiting()))
/// })
/// .stateful()
/// .check();
/// ```
pub fn laws_with_gauges<M>(make: M) -> Laws<M> {
    Laws {
        make,
        request: http_request,
        answer: http_answer,
        number: HttpNumber,
        stateful: false,
        rejects: false,
        except: Vec::new(),
    }
}

/// The check of one layer's laws: see [`laws`].
#[derive(Clone)]
#[must_use = "nothing is checked before `check`"]
pub struct Laws<M, Q = fn(u64) -> Request<String>, A = fn(u64) -> Response<String>, N = HttpNumber> {
    make: M,
    request: Q,
    answer: A,
    number: N,
    stateful: bool,
    rejects: bool,
    except: Vec<Law>,
}

impl<M, Q, A, N> Laws<M, Q, A, N> {
    /// Checks the laws over other requests and responses.
    ///
    /// `request` creates the request of a number, and `answer` the inner service's response of a number. `number`
    /// returns the number of a response of the layer. Requests of the same number have to be alike.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ziggurat::{testing, timeout::TimeoutLayer};
    /// testing::laws(|| TimeoutLayer::new(Duration::from_secs(1)))
    ///     .over(|number| format!("question {number}"), |number| number, |answer: &u64| *answer)
    ///     .check();
    /// ```
    ///
    /// # Panics
    ///
    /// After [`rejects`](Self::rejects), whose requests it would replace.
    #[track_caller]
    pub fn over<Q2, A2, N2, Req, R>(self, request: Q2, answer: A2, number: N2) -> Laws<M, Q2, A2, N2>
    where
        Q2: Fn(u64) -> Req,
        A2: Fn(u64) -> R,
    {
        self.has_no_other_requests();
        let Self { make, stateful, rejects, except, .. } = self;
        Laws { make, request, answer, number, stateful, rejects, except }
    }

    /// Checks the rejections of the layer in place of all else: it has to reject each of these requests, without
    /// sending it ([`Law::Rejects`]).
    ///
    /// A call that was rejected must not keep anything, also if it was dropped before its first poll, and neither may
    /// the service ([`Law::Release`]): an inner service that was made ready for the call is dropped, and the next call
    /// is rejected by the same layer for the same reason. A layer that loses a permit with each rejection would soon be
    /// overloaded, which shows if it has at most three.
    ///
    /// [The page of short answers](crate::docs::how_to#write-a-layer-that-rejects) has an example.
    ///
    /// # Panics
    ///
    /// If it is called twice. Check requests that are rejected for different reasons separately.
    #[track_caller]
    pub fn rejects<Q2, Req>(self, request: Q2) -> Laws<M, Q2, A, N>
    where
        Q2: Fn(u64) -> Req,
    {
        self.has_no_other_requests();
        let Self { make, answer, number, stateful, except, .. } = self;
        Laws { make, request, answer, number, stateful, rejects: true, except }
    }

    #[track_caller]
    fn has_no_other_requests(&self) {
        assert!(!self.rejects, "`rejects` comes last, and once: other requests would replace those to reject");
    }

    /// Declares that the layer has state: then [`Law::State`] also demands that some call affects the next one.
    ///
    /// Otherwise the law would hold for a limit that no trial reaches, for example of a hundred.
    pub fn stateful(mut self) -> Self {
        self.stateful = true;
        self
    }

    /// Leaves out a law, for example [`Law::Unchanged`] for a layer that changes responses.
    pub fn except(mut self, law: Law) -> Self {
        self.except.push(law);
        self
    }

    /// Asserts that the layer keeps the laws. It takes no real time, because it runs on a paused clock of its own.
    ///
    /// # Panics
    ///
    /// If the layer breaks a law, with a list of all broken laws. Also inside an asynchronous test, which has a runtime
    /// already.
    #[track_caller]
    pub fn check<L, P, G, Req, R>(&self)
    where
        M: Fn() -> (L, P),
        L: Layer<Scripted<A>> + Clone + Send + Sync + 'static,
        L::Service: Service<Req, Error: Into<BoxError>, Future: Send + 'static> + Clone + Send + Sync + 'static,
        P: Fn() -> G + 'static,
        G: fmt::Debug,
        Q: Fn(u64) -> Req + Clone + 'static,
        A: Fn(u64) -> R + Clone + Send + Sync + 'static,
        N: Number<<L::Service as Service<Req>>::Response> + Clone + 'static,
    {
        let broken: Vec<_> = self.broken().iter().map(Broken::to_string).collect();
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }

    /// Returns the laws that the layer breaks, each once, with the first case found.
    ///
    /// # Panics
    ///
    /// Inside an asynchronous test, which has a runtime already.
    #[must_use]
    pub fn broken<L, P, G, Req, R>(&self) -> Vec<Broken>
    where
        M: Fn() -> (L, P),
        L: Layer<Scripted<A>> + Clone + Send + Sync + 'static,
        L::Service: Service<Req, Error: Into<BoxError>, Future: Send + 'static> + Clone + Send + Sync + 'static,
        P: Fn() -> G + 'static,
        G: fmt::Debug,
        Q: Fn(u64) -> Req + Clone + 'static,
        A: Fn(u64) -> R + Clone + Send + Sync + 'static,
        N: Number<<L::Service as Service<Req>>::Response> + Clone + 'static,
    {
        let make = || -> Box<dyn Value> {
            let (layer, gauges) = (self.make)();
            let (request, answer, number) = (self.request.clone(), self.answer.clone(), self.number.clone());
            Box::new(OfType { layer, gauges: Rc::new(gauges), request, answer, number })
        };
        checks::faults(&make, self.stateful, self.rejects, &self.except)
            .into_iter()
            .map(|Fault { law, how }| Broken { law, how })
            .collect()
    }
}

impl_debug!(Laws<M, Q, A, N> { of: M, except });

type BoxError = Box<dyn StdError + Send + Sync>;

/// Returns the number of the inner service's response that a layer's response was made from. Implemented for closures.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not return the number of a response of type `{R}`",
    note = "write `|response: &{R}| ..`, with the type of the argument, returning `u64` or `Option<u64>`",
    note = "`HttpNumber` reads the header `x-number` of an `http::Response`"
)]
pub trait Number<R> {
    /// Returns the number, or `None` if the response does not come from the inner service.
    fn number(&self, response: &R) -> Option<u64>;
}

#[diagnostic::do_not_recommend]
impl<F, R, O> Number<R> for F
where
    F: Fn(&R) -> O,
    O: Into<Option<u64>>,
{
    fn number(&self, response: &R) -> Option<u64> {
        self(response).into()
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<F, R> Number<R> for F
where
    [R]: Sized,
{
    fn number(&self, _: &R) -> Option<u64> {
        None
    }
}

/// Returns the number of an HTTP response, whatever its body: the value of its header `x-number`, in decimal digits.
///
/// Over your own HTTP responses, set this header in the closure `answer` of [`Laws::over`].
#[derive(Debug, Clone, Copy)]
pub struct HttpNumber;

const NUMBER: &str = "x-number";

impl<B> Number<Response<B>> for HttpNumber {
    fn number(&self, response: &Response<B>) -> Option<u64> {
        response.headers().get(NUMBER)?.to_str().ok()?.parse().ok()
    }
}

fn http_request(number: u64) -> Request<String> {
    let mut request = Request::new(format!("body of {number}"));
    *request.uri_mut() = Uri::try_from(format!("http://inner.test/{number}")).unwrap_or_default();
    request
}

fn http_answer(number: u64) -> Response<String> {
    let mut response = Response::new(format!("answer {number}"));
    response.headers_mut().insert(NUMBER, HeaderValue::from(number));
    response
}

/// A layer value, of a type that only this module knows.
struct OfType<L, P, Q, A, N> {
    layer: L,
    gauges: Rc<P>,
    request: Q,
    answer: A,
    number: N,
}

impl<L, P, G, Q, Req, A, R, N> Value for OfType<L, P, Q, A, N>
where
    L: Layer<Scripted<A>> + Clone + 'static,
    L::Service: Service<Req, Error: Into<BoxError>, Future: 'static> + Clone + 'static,
    P: Fn() -> G + 'static,
    G: fmt::Debug,
    Q: Fn(u64) -> Req + Clone + 'static,
    A: Fn(u64) -> R + Clone + 'static,
    N: Number<<L::Service as Service<Req>>::Response> + Clone + 'static,
{
    fn service(&self, script: &Script) -> Box<dyn Subject> {
        let service = self.layer.layer(script.service(self.answer.clone()));
        Box::new(OfService { service, request: self.request.clone(), number: self.number.clone() })
    }

    fn another(&self) -> Box<dyn Value> {
        let Self { layer, gauges, request, answer, number } = self;
        Box::new(Self {
            layer: layer.clone(),
            gauges: Rc::clone(gauges),
            request: request.clone(),
            answer: answer.clone(),
            number: number.clone(),
        })
    }

    fn gauges(&self) -> String {
        format!("{:?}", (self.gauges)())
    }
}

struct OfService<S, Q, N> {
    service: S,
    request: Q,
    number: N,
}

impl<S, Q, Req, N> Subject for OfService<S, Q, N>
where
    S: Service<Req, Error: Into<BoxError>, Future: 'static> + Clone + 'static,
    Q: Fn(u64) -> Req + Clone + 'static,
    N: Number<S::Response> + Clone + 'static,
{
    fn another(&self) -> Box<dyn Subject> {
        let Self { service, request, number } = self;
        Box::new(Self { service: service.clone(), request: request.clone(), number: number.clone() })
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Outcome>> {
        self.service.poll_ready(cx).map_err(|error| Outcome::of_error(error.into().as_ref()))
    }

    fn call(&mut self, number: u64) -> Pin<Box<dyn Future<Output = Outcome>>> {
        let mut response = Box::pin(self.service.call((self.request)(number)));
        let number = self.number.clone();
        Box::pin(poll_fn(move |cx| {
            response.as_mut().poll(cx).map(|outcome| match outcome {
                Ok(answer) => match number.number(&answer) {
                    Some(number) => Outcome::Answered(number),
                    None => Outcome::Other("a response that does not come from the inner service".into()),
                },
                Err(error) => Outcome::of_error(error.into().as_ref()),
            })
        }))
    }
}

impl Outcome {
    fn of_error(error: &(dyn StdError + 'static)) -> Self {
        if let Some(rejection) = Rejection::find(error) {
            return Self::Rejected(Refusal::of(rejection));
        }
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(Error::Service(failure)) = error.downcast_ref::<Error<ScriptedError>>() {
                return Self::Failed(failure.0);
            }
            if let Some(failure) = error.downcast_ref::<ScriptedError>() {
                return Self::Failed(failure.0);
            }
            next = error.source();
        }
        Self::Other(format!("the error `{error}`, which does not come from the inner service"))
    }
}

#[cfg(test)]
mod tests {
    use tower::layer::layer_fn;

    use super::*;
    use crate::ambient::{self, Attempt};

    /// Only this crate can change ambient state and leave it changed, so this layer is not among the other faulty ones.
    #[test]
    fn what_is_left_ambient_is_found() {
        #[derive(Clone)]
        struct Leaves<S>(S);
        impl<S: Service<Req>, Req> Service<Req> for Leaves<S> {
            type Response = S::Response;
            type Error = S::Error;
            type Future = S::Future;
            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
                self.0.poll_ready(cx)
            }
            fn call(&mut self, request: Req) -> S::Future {
                ambient::set(Attempt(2));
                self.0.call(request)
            }
        }
        let broken = laws(|| layer_fn(Leaves)).broken();
        assert_eq!(broken.iter().map(Broken::law).collect::<Vec<_>>(), [Law::Ambient]);
        assert!(broken[0].to_string().contains("is not what it was before"), "{}", broken[0]);
    }
}
