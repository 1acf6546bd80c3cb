//! Takes over batches whose task is on a runtime that is no longer driven.

use std::{fmt, hash::Hash, sync::Arc};

use tokio::runtime::Handle;
use tower_service::Service;

use super::send::{Open, Shared, send};
use crate::{
    caught::undisturbed,
    clock,
    outcome::{Classify, Reject},
};

/// Takes over all batches whose task is abandoned. They continue in tasks on `runtime`.
///
/// A batch that was not sent is sent with a clone of `service`. A call that was sent is not repeated: it continues.
pub(super) fn take_over<S, Req, R, I, K, C>(shared: &Arc<Shared<Req, R, S::Error, K, C>>, service: &S, runtime: &Handle)
where
    S: Service<Vec<Req>, Response = Vec<Result<R, I>>> + Clone + Send + 'static,
    S::Error: Reject<R> + fmt::Display + Send + 'static,
    S::Future: Send + 'static,
    Req: Send + 'static,
    R: Send + 'static,
    I: Into<S::Error> + Send + 'static,
    K: Hash + Eq + Send + Sync + 'static,
    C: Classify<R, S::Error> + Send + Sync + 'static,
{
    for (batch, ride) in shared.watch.abandoned(clock::now()) {
        if let Some(left) = ride.seize() {
            match Open::again(shared, batch) {
                Some(open) => {
                    let sending = send(open, Arc::clone(ride.pulse()), service.clone());
                    ride.start(runtime, async move {
                        // Releases its resources, such as a permit, before the service acquires new ones.
                        undisturbed(|| drop(left));
                        sending.await;
                    });
                }
                None => ride.carry_on(runtime, left),
            }
        }
        // If its last caller has left in the meantime, this drops its call.
        undisturbed(|| drop(ride));
    }
}
