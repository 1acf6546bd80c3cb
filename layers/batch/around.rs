//! The surroundings of a call that is made for several callers.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use crate::{
    ambient::{self, Deadline, Told},
    scope::{self, Scope},
};

/// The surroundings of a waiting caller, or of the call that is made for all callers.
#[derive(Debug, Clone, Default)]
pub(super) struct Around {
    pub(super) scope: Option<Scope>,
    pub(super) deadline: Option<Deadline>,
}

impl Around {
    /// Combines two: the nearest scope that contains both scopes, and the later deadline. `None` if either has none.
    fn both(self, other: &Self) -> Self {
        let scope = self.scope.zip(other.scope.as_ref()).and_then(|(scope, other)| {
            let mut outwards = std::iter::successors(Some(&scope), |scope| scope.parent());
            outwards.find(|scope| other.is_within(scope)).cloned()
        });
        Self { scope, deadline: self.deadline.zip(other.deadline).map(|(one, other)| one.max(other)) }
    }

    /// Combines the surroundings of all callers.
    pub(super) fn all<'a>(mut each: impl Iterator<Item = &'a Self>) -> Self {
        let first = each.next().cloned().unwrap_or_default();
        each.fold(first, Self::both)
    }

    pub(super) fn within<F>(self, future: F) -> Within<F> {
        let told = self.deadline.map(Deadline::told).unwrap_or_default();
        Within { future: Some(future), scope: self.scope, told }
    }
}

pin_project! {
    /// A future that runs in these surroundings alone.
    pub(super) struct Within<F> {
        // `None` after its end.
        #[pin]
        future: Option<F>,
        scope: Option<Scope>,
        told: Told,
    }

    impl<F> PinnedDrop for Within<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _scope = scope::enter(this.scope);
            let _told = ambient::enter(this.told);
            this.future.set(None);
        }
    }
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let _scope = scope::enter(this.scope);
        let _told = ambient::enter(this.told);
        let Some(future) = this.future.as_mut().as_pin_mut() else { return Poll::Pending };
        let output = ready!(future.poll(cx));
        this.future.set(None);
        Poll::Ready(output)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_right_for_all_is_the_common_scope_and_the_latest_deadline() {
        let app = Scope::root("app");
        let (one, other, foreign) = (app.child("one"), app.child("other"), Scope::root("foreign"));
        let deadline = |seconds| Some(Deadline::after(Duration::from_secs(seconds)));
        let around = |scope: &Scope, deadline| Around { scope: Some(scope.clone()), deadline };
        for (all, scope, latest) in [
            (vec![], None, None),
            (vec![around(&one, deadline(1))], Some(&one), deadline(1)),
            (
                vec![around(&one, deadline(1)), around(&one, deadline(3)), around(&one, deadline(2))],
                Some(&one),
                deadline(3),
            ),
            (vec![around(&one, deadline(1)), around(&other, None)], Some(&app), None),
            (vec![around(&app, deadline(1)), around(&other, deadline(1))], Some(&app), deadline(1)),
            (vec![around(&one.child("inner"), None), around(&one, deadline(1))], Some(&one), None),
            (vec![around(&one, None), around(&foreign, None)], None, None),
            (vec![around(&one, None), Around::default(), around(&one, None)], None, None),
        ] {
            let found = Around::all(all.iter());
            assert_eq!(
                (found.scope.map(|scope| scope.id()), found.deadline),
                (scope.map(Scope::id), latest),
                "{all:?}"
            );
        }
    }
}
