//! The kinds of fallback, and what each remembers of a request.

use std::{
    future::{Future, Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    budget::{Budget, Withdrawal},
    call::Call,
    clock,
    copy::{Cloned, CopyRequest},
    debug::impl_debug,
    outcome::{Class, Reject, Rejection, was_unprocessed},
};

/// A failed call, as passed to the function of a [`FallbackLayer`](super::FallbackLayer).
#[derive(Debug)]
#[non_exhaustive]
pub struct Failed<'a, R, E, M = ()> {
    /// The outcome: an error, a rejection, or a response that was judged a failure.
    pub outcome: &'a Result<R, E>,
    /// The class of the outcome.
    pub class: Class,
    /// The parts of the request that were [remembered](super::FallbackLayer::remember).
    pub remembered: M,
}

impl<'a, R, E: Reject<R>, M> Failed<'a, R, E, M> {
    /// Returns the rejection, if a layer rejected the call.
    pub fn rejection(&self) -> Option<&'a Rejection> {
        E::rejection(self.outcome)
    }
}

/// Produces a response in place of a service that failed. [`FallbackLayer`](super::FallbackLayer) has a constructor
/// for each kind.
#[diagnostic::on_unimplemented(
    message = "this fallback does not return a response of type `{R}` for a request of type `{Req}`: `{Self}`",
    label = "not a fallback of this service",
    note = "a value: `FallbackLayer::value(..)`, of type `{R}`, which must be `Clone`",
    note = "a function: `FallbackLayer::new(|failed: Failed<'_, _, _>| ..)`, which returns `{R}` or `Option<{R}>`; `FallbackLayer::future(..)` if it returns a future of `Result<{R}, {E}>`",
    note = "with `.remember(|req: &{Req}| ..)` the argument's type is `Failed<'_, _, _, _>`; the last parameter is the remembered type",
    note = "a service: `FallbackLayer::service(..)`, which is `Clone`, takes `{Req}`, and has the same response and error types as this one; a request that is not `Clone` needs `.copy(|req: &{Req}| ..)`"
)]
pub trait Alternative<Req, R, E> {
    /// The data that is kept of a request until its outcome is known.
    type Memory;

    /// The future of the fallback's outcome.
    type Future: Future<Output = Result<R, E>>;

    /// Inspects a request before it is sent. On the happy path, this is the only cost.
    fn remember(&self, request: &Req) -> Self::Memory;

    /// Starts the fallback. A fallback that makes a call takes it from `budget`.
    ///
    /// # Errors
    ///
    /// If there is none for this outcome. The error is the reason, if it is worth an event.
    fn answer(
        &self,
        failed: Failed<'_, R, E, Self::Memory>,
        budget: Option<&Budget>,
    ) -> Result<Self::Future, Option<&'static str>>;
}

/// A fixed response for every failed call: see [`FallbackLayer::value`](super::FallbackLayer::value).
pub struct Value<R>(pub(super) Arc<R>);

// Manual impl, so that a response that is not `Clone` is reported at the service, which requires it.
impl<R> Clone for Value<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[diagnostic::do_not_recommend]
impl<Req, R: Clone, E> Alternative<Req, R, E> for Value<R> {
    type Memory = ();
    type Future = Ready<Result<R, E>>;

    fn remember(&self, _: &Req) {}

    fn answer(&self, _: Failed<'_, R, E>, _: Option<&Budget>) -> Result<Self::Future, Option<&'static str>> {
        Ok(ready(Ok(R::clone(&self.0))))
    }
}

impl_debug!(Value<R>(R));

/// A function of the failed call: see [`FallbackLayer::new`](super::FallbackLayer::new) and
/// [`FallbackLayer::future`](super::FallbackLayer::future).
#[derive(Clone)]
pub struct Function<F, M = Nothing, K = AtOnce> {
    pub(super) function: F,
    pub(super) remember: M,
    pub(super) kind: K,
}

/// Marks a [`Function`] that returns a response.
#[derive(Debug, Clone, Copy)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct AtOnce;

/// Marks a [`Function`] that returns a future.
#[derive(Debug, Clone, Copy)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Later;

impl<F, K> Function<F, Nothing, K> {
    pub(super) fn new(function: F, kind: K) -> Self {
        Self { function, remember: Nothing, kind }
    }
}

#[diagnostic::do_not_recommend]
impl<F, M, Req, R, E, O> Alternative<Req, R, E> for Function<F, M, AtOnce>
where
    M: Remember<Req>,
    F: Fn(Failed<'_, R, E, M::Memory>) -> O,
    O: Into<Option<R>>,
{
    type Memory = M::Memory;
    type Future = Ready<Result<R, E>>;

    fn remember(&self, request: &Req) -> M::Memory {
        self.remember.remember(request)
    }

    fn answer(
        &self,
        failed: Failed<'_, R, E, M::Memory>,
        _: Option<&Budget>,
    ) -> Result<Self::Future, Option<&'static str>> {
        (self.function)(failed).into().map(|response| ready(Ok(response))).ok_or(None)
    }
}

#[diagnostic::do_not_recommend]
impl<F, M, Req, R, E, O> Alternative<Req, R, E> for Function<F, M, Later>
where
    M: Remember<Req>,
    F: Fn(Failed<'_, R, E, M::Memory>) -> O,
    O: Future<Output = Result<R, E>>,
{
    type Memory = M::Memory;
    type Future = O;

    fn remember(&self, request: &Req) -> M::Memory {
        self.remember.remember(request)
    }

    fn answer(&self, failed: Failed<'_, R, E, M::Memory>, _: Option<&Budget>) -> Result<O, Option<&'static str>> {
        Ok((self.function)(failed))
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<F, M, K, Req, R, E> Alternative<Req, R, E> for Function<F, M, K>
where
    [Req]: Sized,
{
    type Memory = ();
    type Future = Ready<Result<R, E>>;

    fn remember(&self, _: &Req) {}

    fn answer(&self, _: Failed<'_, R, E, ()>, _: Option<&Budget>) -> Result<Self::Future, Option<&'static str>> {
        Err(None)
    }
}

impl_debug!(Function<F, M, K> { function: F, remember: M });

/// Extracts the data to keep of a request: a closure that names the request's type, `|req: &Request<_>| ..`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot remember parts of a request of type `{Req}`",
    note = "write `.remember(|req: &{Req}| ..)`, with the type of the argument; its result must not borrow from the request"
)]
pub trait Remember<Req> {
    /// The data that is kept.
    type Memory;

    /// Inspects the request before it is sent.
    fn remember(&self, request: &Req) -> Self::Memory;
}

/// Remembers nothing of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Nothing;

impl<Req> Remember<Req> for Nothing {
    type Memory = ();

    fn remember(&self, _: &Req) {}
}

#[diagnostic::do_not_recommend]
impl<Req, M, F> Remember<Req> for F
where
    F: Fn(&Req) -> M,
{
    type Memory = M;

    fn remember(&self, request: &Req) -> M {
        self(request)
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<Req, F> Remember<Req> for F
where
    [Req]: Sized,
{
    type Memory = ();

    fn remember(&self, _: &Req) {}
}

/// Another service, which receives a copy of the request: see
/// [`FallbackLayer::service`](super::FallbackLayer::service).
#[derive(Clone)]
pub struct Backup<B, P = Cloned> {
    pub(super) service: B,
    pub(super) copy: P,
}

/// A copy of a request for a backup.
#[derive(Debug)]
pub struct Copied<Req> {
    request: Req,
    // Whether the copy may be sent even if the service processed the request.
    may_repeat: bool,
}

#[diagnostic::do_not_recommend]
impl<B, P, Req, R, E> Alternative<Req, R, E> for Backup<B, P>
where
    B: Service<Req, Response = R, Error = E> + Clone,
    E: Reject<R>,
    P: CopyRequest<Req>,
{
    type Memory = Option<Copied<Req>>;
    type Future = Call<Granted<B>, Req>;

    fn remember(&self, request: &Req) -> Option<Copied<Req>> {
        let may_repeat = |request| Copied { request, may_repeat: true };
        let unprocessed = |request| Copied { request, may_repeat: false };
        let copy = self.copy.copy(request).map(may_repeat);
        copy.or_else(|| self.copy.copy_unprocessed(request).map(unprocessed))
    }

    fn answer(
        &self,
        failed: Failed<'_, R, E, Option<Copied<Req>>>,
        budget: Option<&Budget>,
    ) -> Result<Call<Granted<B>, Req>, Option<&'static str>> {
        let may_be_sent = |copied: &Copied<Req>| copied.may_repeat || was_unprocessed(failed.outcome);
        let Copied { request, .. } = failed.remembered.filter(may_be_sent).ok_or(None)?;
        let withdrawal = match budget {
            Some(budget) => Some(budget.withdraw(clock::now()).ok_or(Some("budget"))?),
            None => None,
        };
        // Last, because a successful claim ends the call that failed.
        if !self.copy.claim(&request) {
            return Err(None);
        }
        Ok(Call::new(Granted { service: self.service.clone(), withdrawal }, request))
    }
}

/// A backup whose withdrawal is spent when it is called. Until then, it is returned if the call is dropped.
#[derive(Debug)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Granted<B> {
    service: B,
    withdrawal: Option<Withdrawal>,
}

impl<B: Service<Req>, Req> Service<Req> for Granted<B> {
    type Response = B::Response;
    type Error = B::Error;
    type Future = B::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), B::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> B::Future {
        if let Some(withdrawal) = self.withdrawal.take() {
            withdrawal.spend();
        }
        self.service.call(request)
    }
}

impl_debug!(Backup<B, P> { service: B, copy: P });
