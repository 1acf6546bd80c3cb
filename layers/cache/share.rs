//! What those are told who wait for a call of another one's.

use std::{any::Any, fmt, sync::Arc};

use crate::{
    outcome::{Class, Classify, Reject, Rejection},
    telemetry::LayerInfo,
};

/// What a call brought, for those who made it not, and for memory.
#[derive(Clone)]
pub(super) enum Landed<R> {
    Answered(R),
    /// It failed, and this says how to those whose error cannot be copied.
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

/// What the others get of an error when they share a call that fails: [`DescribeErrors`] or [`CloneErrors`].
#[diagnostic::on_unimplemented(
    message = "with `.clone_errors()` all who share a call get a copy of its error, and `{E}` cannot be copied for them",
    note = "the error has to be `Clone + Send + Sync + 'static`; without `.clone_errors()` the others get a rejection that says what it said"
)]
pub trait ShareErrors<E> {
    #[doc(hidden)]
    fn keep(&self, error: &E) -> Option<KeptError>;
    #[doc(hidden)]
    fn copy(&self, kept: &KeptError) -> Option<E>;
}

/// The error goes to the caller that made the call. The others get [`Reason::Shared`](crate::Reason::Shared), with its
/// message. The default.
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

/// All who share a call get a copy of its error: see [`CacheLayer::clone_errors`](super::CacheLayer::clone_errors).
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

/// How outcomes are judged and shared.
#[derive(Debug, Clone)]
pub struct Outcomes<C, H> {
    pub(super) classify: C,
    pub(super) share: H,
}

impl<C, H> Outcomes<C, H> {
    /// What the others learn of an outcome of this class.
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
