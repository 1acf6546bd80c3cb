//! The callers who wait for a response, or read it while it arrives.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::clock;

/// Counts the callers that are interested in a response.
#[derive(Default)]
pub(super) struct Callers(Arc<watch::Sender<usize>>);

impl Callers {
    /// Counts a caller, for as long as the returned value lives.
    pub(super) fn interest(&self) -> Interest {
        self.0.send_modify(|count| *count += 1);
        Interest(Arc::clone(&self.0))
    }

    /// Waits until there has been no caller for this time.
    pub(super) async fn gone_for(&self, time: Duration) {
        let mut count = self.0.subscribe();
        // The sender is alive.
        while count.wait_for(|count| *count == 0).await.is_ok() {
            let back = async { count.wait_for(|count| *count > 0).await.is_ok() };
            let is_over = match clock::now().checked_add(time) {
                Some(end) => clock::within(end, back).await.is_none(),
                // It never is. The sender is alive.
                None => !back.await,
            };
            if is_over {
                return;
            }
        }
    }
}

/// A caller's interest.
pub(super) struct Interest(Arc<watch::Sender<usize>>);

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
