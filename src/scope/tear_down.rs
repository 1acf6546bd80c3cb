//! How a value of a scope is torn down.

use std::{any::type_name, future::poll_fn};

use super::{
    Ending,
    catch::{self, BoxFuture},
    error::{BoxError, ScopeFailureKind},
};

/// How a value that was set up is undone.
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

    /// Runs it to its end.
    pub(super) async fn run(self, ending: Ending) -> Result<(), ScopeFailureKind> {
        let Self { type_name, run } = self;
        let mut future: Option<BoxFuture<_>> = Some(Box::pin(async move { run(ending).await }));
        let outcome = poll_fn(|cx| catch::poll(&mut future, cx)).await;
        outcome.map_err(|error| ScopeFailureKind::tear_down(type_name, error))
    }
}
