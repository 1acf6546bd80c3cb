//! The tear-down of a value that a scope owns.

use std::{any::type_name, future::poll_fn};

use super::{
    Ending,
    catch::{self, BoxFuture},
    error::{BoxError, ScopeFailureKind},
};

/// Undoes the set-up of a value.
pub(super) struct TearDown {
    type_name: &'static str,
    run: Box<dyn FnOnce(Ending) -> BoxFuture<Result<(), BoxError>> + Send>,
}

impl TearDown {
    pub(super) fn new<T>(run: impl FnOnce(Ending) -> BoxFuture<Result<(), BoxError>> + Send + 'static) -> Self {
        Self { type_name: type_name::<T>(), run: Box::new(run) }
    }

    /// The type of the value.
    pub(super) fn type_name(&self) -> &'static str {
        self.type_name
    }

    /// Runs the tear-down to its end.
    pub(super) async fn run(self, ending: Ending) -> Result<(), ScopeFailureKind> {
        let Self { type_name, run } = self;
        let mut future: Option<BoxFuture<_>> = Some(Box::pin(async move { run(ending).await }));
        let outcome = poll_fn(|cx| catch::poll(&mut future, cx)).await;
        outcome.map_err(|error| ScopeFailureKind::tear_down(type_name, error))
    }
}
