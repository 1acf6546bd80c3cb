//! Catches panics of user code, and extracts their messages.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

/// Returns the output of `future`, or a message if it panicked. The future is dropped first, and a panic in its `Drop`
/// counts too.
pub(crate) async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    unwound(future).await.map_err(|panic| {
        let text = text(panic).unwrap_or_else(|| "(no message)".to_owned());
        format!("panicked: {text}")
    })
}

/// Returns the output of `future`, or the payload of its panic.
pub(crate) async fn unwound<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut future = pin!(Some(future));
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let polled = future.as_mut().as_pin_mut().map_or(Poll::Pending, |future| future.poll(cx));
            if polled.is_ready() {
                future.set(None);
            }
            polled
        }));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => {
                // Dropping the rest may panic again, which adds no information.
                let _ = catch_unwind(AssertUnwindSafe(|| future.set(None)));
                Poll::Ready(Err(panic))
            }
        }
    })
    .await
}

/// Runs user code whose panic must not affect the caller. The panic hook has reported it.
pub(crate) fn undisturbed(f: impl FnOnce()) {
    let _ = contained(f);
}

/// Returns the result of user code, or `None` if it panicked. The panic hook has reported it.
pub(crate) fn contained<T>(f: impl FnOnce() -> T) -> Option<T> {
    tried(f).map_err(text).ok()
}

/// Returns the result of user code, or the payload of its panic.
pub(crate) fn tried<T>(f: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(f))
}

/// Returns the message of a panic, if the payload is a string.
pub(crate) fn message(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.map(str::to_owned)
}

/// Returns the message of a panic, if the payload is a string. Any other payload is dropped, and a panic in its
/// `Drop` is ignored.
pub(crate) fn text(panic: Box<dyn Any + Send>) -> Option<String> {
    let text = message(&*panic);
    let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct PanicsInDrop(bool);

    impl Future for PanicsInDrop {
        type Output = ();

        fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<()> {
            assert!(!self.0, "in poll");
            Poll::Ready(())
        }
    }

    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("in {}", "drop");
        }
    }

    #[tokio::test]
    async fn a_panic_becomes_its_message_wherever_it_is() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        assert_eq!(caught(PanicsInDrop(false)).await, Err("panicked: in drop".into()));
        assert_eq!(caught(PanicsInDrop(true)).await, Err("panicked: in poll".into()));
        let silent = caught(async { std::panic::resume_unwind(Box::new(7)) }).await;
        assert_eq!(silent, Err::<(), _>("panicked: (no message)".into()));
        let again = caught(async { std::panic::panic_any(PanicsInDrop(false)) }).await;
        assert_eq!(again, Err::<(), _>("panicked: (no message)".into()));
    }
}
