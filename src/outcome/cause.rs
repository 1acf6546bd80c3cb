//! Why a call failed, in words.

use std::fmt;

use super::{Classify, Reject};

/// Displays why a call failed: the reason of a rejection, the message of an error, or the status of a response.
pub(crate) struct Cause<'a, R, E, C> {
    pub(crate) outcome: &'a Result<R, E>,
    pub(crate) classify: &'a C,
}

impl<R, E, C> fmt::Display for Cause<'_, R, E, C>
where
    E: Reject<R> + fmt::Display,
    C: Classify<R, E>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (E::rejection(self.outcome), self.outcome) {
            (Some(rejection), _) => f.write_str(rejection.reason().as_str()),
            (None, Err(error)) => error.fmt(f),
            (None, Ok(response)) => self.classify.describe(response, f),
        }
    }
}
