//! Which calls have failed, how an answer is marked, and what the caller gets if the fallback failed too.

use std::fmt;

use http::Response;

use crate::outcome::{Class, Classify, Degraded, Reject};

/// Judges that only a layer's rejections are failures: what the service answered, an error too, is its own affair. For
/// [`FallbackLayer::classify`](super::FallbackLayer::classify).
///
/// An error with a rejection among its causes counts as the rejection: see [`Classify`].
///
/// Where callers share a call (a cache or a batch inside), its error goes to one of them, and to the others a rejection that says what it
/// said: these get the fallback, if the error was judged a failure in there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RejectionsOnly;

impl<R, E> Classify<R, E> for RejectionsOnly {
    fn classify(&self, _: Result<&R, &E>) -> Class {
        Class::Ignored
    }
}

/// What the caller gets if the fallback failed too. A closure is one:
/// `|primary: Option<Result<_, _>>, fallback: Result<_, _>| -> Result<_, _>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say what the caller of a service that answers `{R}` gets if the fallback fails too",
    note = "the default needs an error that is `Display`",
    note = "or write `.on_failure(|primary: Option<Result<{R}, {E}>>, fallback: Result<{R}, {E}>| ..)`, with the types of both arguments, returning one of the two, or an error that holds both"
)]
pub trait OnFailure<R, E> {
    /// The outcome of the call.
    ///
    /// `primary` is `None` if the service had answered with a response that was judged a failure: it was dropped before the fallback
    /// was asked. `fallback` is an error or a rejection.
    fn outcome(&self, primary: Option<Result<R, E>>, fallback: Result<R, E>) -> Result<R, E>;
}

/// The service's own error or rejection comes back, as if there was no fallback: it is where the trouble began. The default.
///
/// A rejection tells of the fallback's error too ([`Rejection::suppressed`](crate::Rejection::suppressed)), and so does an error type of yours
/// that has a place for it ([`Reject::suppress`]). Any other error of the service has none: [`LayerEvent::FallbackFailed`](crate::LayerEvent::FallbackFailed),
/// and so the log, has the fallback's. If the service had answered with a response, the fallback's outcome comes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepPrimary;

impl<R, E> OnFailure<R, E> for KeepPrimary
where
    E: Reject<R> + fmt::Display,
{
    fn outcome(&self, primary: Option<Result<R, E>>, fallback: Result<R, E>) -> Result<R, E> {
        let Some(primary) = primary else { return fallback };
        match said(&fallback) {
            Some(error) => E::suppress(primary, error),
            None => primary,
        }
    }
}

#[diagnostic::do_not_recommend]
impl<R, E, F> OnFailure<R, E> for F
where
    F: Fn(Option<Result<R, E>>, Result<R, E>) -> Result<R, E>,
{
    fn outcome(&self, primary: Option<Result<R, E>>, fallback: Result<R, E>) -> Result<R, E> {
        self(primary, fallback)
    }
}

/// How the fallback's answer says that it is one.
#[diagnostic::on_unimplemented(
    message = "a response of type `{R}` has no extensions, in which it could say that it is `Degraded`",
    note = "leave out `.http()`, and say with `.classify(..)` which outcomes are failures"
)]
pub trait Mark<R, E> {
    /// What there is to say.
    type Why;

    /// Looks at the outcome that something else answers for.
    fn why(outcome: &Result<R, E>) -> Self::Why;

    /// Marks the answer.
    fn mark(response: &mut R, why: Self::Why);
}

/// It does not say so: the default, for any response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unmarked;

impl<R, E> Mark<R, E> for Unmarked {
    type Why = ();

    fn why(_: &Result<R, E>) {}

    fn mark(_: &mut R, (): ()) {}
}

/// [`Degraded`] lies in the extensions of the response: see [`FallbackLayer::http`](super::FallbackLayer::http).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InExtensions;

impl<B, E> Mark<Response<B>, E> for InExtensions
where
    E: Reject<Response<B>> + fmt::Display,
{
    type Why = Degraded;

    fn why(outcome: &Result<Response<B>, E>) -> Degraded {
        Degraded::new(outcome)
    }

    fn mark(response: &mut Response<B>, why: Degraded) {
        response.extensions_mut().insert(why);
    }
}

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl<E> Mark<reqwest::Response, E> for InExtensions
where
    E: Reject<reqwest::Response> + fmt::Display,
{
    type Why = Degraded;

    fn why(outcome: &Result<reqwest::Response, E>) -> Degraded {
        Degraded::of(outcome, reqwest::Response::status)
    }

    fn mark(response: &mut reqwest::Response, why: Degraded) {
        response.extensions_mut().insert(why);
    }
}

/// What an outcome that is an error or a rejection says.
pub(super) fn said<R, E>(outcome: &Result<R, E>) -> Option<&dyn fmt::Display>
where
    E: Reject<R> + fmt::Display,
{
    match (E::rejection(outcome), outcome) {
        (Some(rejection), _) => Some(rejection),
        (None, Err(error)) => Some(error),
        (None, Ok(_)) => None,
    }
}
