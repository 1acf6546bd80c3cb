//! Takes over batches whose task is on a runtime that is no longer driven.

use std::{future::Future, hash::Hash, sync::Arc};

use tokio::runtime::Handle;

use super::send::{Open, Shared};
use crate::{caught::undisturbed, clock, pulse::Pulse};

/// Takes over all batches whose task is abandoned. They continue in tasks on `runtime`.
///
/// A batch that was not sent is sent by `send`, with a clone of `service`. A call that was sent is not repeated: it
/// continues.
pub(super) fn take_over<S, Req, R, E, K, C, F>(
    shared: &Arc<Shared<Req, R, E, K, C>>,
    service: &S,
    runtime: &Handle,
    send: impl Fn(Open<Req, R, E, K, C>, Arc<Pulse>, S) -> F,
) where
    S: Clone,
    K: Hash + Eq,
    F: Future<Output = ()> + Send + 'static,
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
