//! Which calls fail, how a fallback's response is marked, and which outcome the caller receives if the fallback fails
//! too.

use std::fmt;

use http::Response;

use crate::outcome::{Class, Classify, Degraded, Reject};

/// Falls back only for rejections of a layer, and leaves the service's own responses and errors alone.
///
/// For [`FallbackLayer::classify`](super::FallbackLayer::classify). An error with a rejection among its causes counts
/// as the rejection: see [`Classify`].
///
/// If callers share a call (inside a cache or a batch), its error goes to one of them, and the others receive a
/// rejection with the error's message. The fallback covers these others, if the error was judged a failure inside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RejectionsOnly;

impl<R, E> Classify<R, E> for RejectionsOnly {
    fn classify(&self, _: Result<&R, &E>) -> Class {
        Class::Ignored
    }
}

/// Chooses the outcome for the caller if the fallback fails too.
///
/// Implemented for closures: `|primary: Option<Result<_, _>>, fallback: Result<_, _>| -> Result<_, _>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an `on_failure` for a service with responses of type `{R}`",
    note = "the default requires an error that is `Display`",
    note = "or write `.on_failure(|primary: Option<Result<{R}, {E}>>, fallback: Result<{R}, {E}>| ..)`, with the types of both arguments; return one of the two, or an error that contains both"
)]
pub trait OnFailure<R, E> {
    /// Returns the outcome of the call.
    ///
    /// `primary` is `None` if the service returned a response that was judged a failure, because that response was
    /// dropped before the fallback ran. `fallback` is an error or a rejection.
    fn outcome(&self, primary: Option<Result<R, E>>, fallback: Result<R, E>) -> Result<R, E>;
}

/// Returns the service's own error or rejection, as if there were no fallback. The default, because the trouble began
/// in the service.
///
/// A rejection also carries the fallback's message ([`Rejection::suppressed`](crate::Rejection::suppressed)), and so
/// does an error type that implements [`Reject::suppress`]. Other errors have no place for it: the fallback's error
/// is then only in [`LayerEvent::FallbackFailed`](crate::LayerEvent::FallbackFailed), and therefore in the log. If
/// the service returned a response, the fallback's outcome is returned.
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

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<R, E, F> OnFailure<R, E> for F
where
    [R]: Sized,
{
    fn outcome(&self, _: Option<Result<R, E>>, fallback: Result<R, E>) -> Result<R, E> {
        fallback
    }
}

/// Marks the responses of a fallback.
#[diagnostic::on_unimplemented(
    message = "a response of type `{R}` has no extensions to carry the mark `Degraded`",
    note = "leave out `.http()`, and choose with `.classify(..)` which outcomes are failures"
)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub trait Mark<R, E> {
    /// The data for the mark.
    type Why;

    /// Extracts the data from the outcome that the fallback replaces.
    fn why(outcome: &Result<R, E>) -> Self::Why;

    /// Marks the fallback's response.
    fn mark(response: &mut R, why: Self::Why);
}

/// Does not mark responses. The default, for any response type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Unmarked;

impl<R, E> Mark<R, E> for Unmarked {
    type Why = ();

    fn why(_: &Result<R, E>) {}

    fn mark(_: &mut R, (): ()) {}
}

/// Marks responses with [`Degraded`] in their extensions: see [`FallbackLayer::http`](super::FallbackLayer::http).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
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

/// The message of an outcome that is an error or a rejection.
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
