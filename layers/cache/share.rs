//! The outcome that callers share when they wait for the call of another caller.

use std::{any::Any, fmt, sync::Arc};

use crate::{
    outcome::{Class, Classify, Reject, Rejection},
    telemetry::LayerInfo,
};

/// The outcome of a call, as it is shared and stored.
#[derive(Clone)]
pub(super) enum Landed<R> {
    Answered(R),
    /// A failure. The rejection describes it for callers that cannot get a copy of the error.
    Failed(Rejection, Option<KeptError>),
}

impl<R> Landed<R> {
    pub(super) fn answer(&self) -> Option<&R> {
        match self {
            Self::Answered(response) => Some(response),
            Self::Failed(..) => None,
        }
    }

    pub(super) fn outcome<E, C, H>(self, outcomes: &Outcomes<C, H>) -> Result<R, E>
    where
        E: Reject<R>,
        H: ShareErrors<E>,
    {
        match self {
            Self::Answered(response) => Ok(response),
            Self::Failed(rejection, kept) => {
                kept.and_then(|kept| outcomes.share.copy(&kept)).map_or_else(|| E::reject(rejection), Err)
            }
        }
    }
}

/// An error of any type.
pub(super) type KeptError = Arc<dyn Any + Send + Sync>;

/// Decides which error the other callers get when a shared call fails: [`DescribeErrors`] or [`CloneErrors`].
#[diagnostic::on_unimplemented(
    message = "`.clone_errors()` gives all callers that share a call a copy of its error, but `{E}` cannot be copied",
    note = "the error must be `Clone + Send + Sync + 'static`; without `.clone_errors()` the others get a rejection with its message"
)]
#[doc(hidden)] // implemented by `DescribeErrors` and `CloneErrors` alone
pub trait ShareErrors<E> {
    #[doc(hidden)]
    fn keep(&self, error: &E) -> Option<KeptError>;
    #[doc(hidden)]
    fn copy(&self, kept: &KeptError) -> Option<E>;
}

/// Gives the error to the caller that made the call, and a description of it to the others. This is the default.
///
/// The others get [`Reason::Shared`](crate::Reason::Shared) with its message and class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DescribeErrors;

impl<E> ShareErrors<E> for DescribeErrors {
    fn keep(&self, _: &E) -> Option<KeptError> {
        None
    }

    fn copy(&self, _: &KeptError) -> Option<E> {
        None
    }
}

/// Gives all callers a copy of the error: see [`CacheLayer::clone_errors`](super::CacheLayer::clone_errors).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CloneErrors;

impl<E: Clone + Send + Sync + 'static> ShareErrors<E> for CloneErrors {
    fn keep(&self, error: &E) -> Option<KeptError> {
        Some(Arc::new(error.clone()))
    }

    fn copy(&self, kept: &KeptError) -> Option<E> {
        kept.downcast_ref().cloned()
    }
}

/// The rules by which outcomes are classified and shared.
#[derive(Debug, Clone)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Outcomes<C, H> {
    pub(super) classify: C,
    pub(super) share: H,
}

impl<C, H> Outcomes<C, H> {
    /// Returns an outcome of this class as the other callers get it.
    pub(super) fn landed<R, E>(&self, info: &LayerInfo, outcome: &Result<R, E>, class: Class) -> Landed<R>
    where
        R: Clone,
        E: Reject<R> + fmt::Display,
        C: Classify<R, E>,
        H: ShareErrors<E>,
    {
        match outcome {
            Ok(response) => Landed::Answered(response.clone()),
            Err(error) => {
                let is_rejected = E::rejection(outcome).is_some();
                let kept = if is_rejected { None } else { self.share.keep(error) };
                Landed::Failed(info.shared(outcome, class), kept)
            }
        }
    }
}
