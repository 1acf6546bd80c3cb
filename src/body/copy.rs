//! Bodies of requests that may be sent more than once.

/// A body that can be copied, if not in all cases: every body that is `Clone`, and
/// [`ReplayBody`](super::ReplayBody).
///
/// A body of your own that is not `Clone` can implement it too.
pub trait CopyBody: Sized {
    /// A copy of the whole body; `None` if there is none.
    fn copy_body(&self) -> Option<Self>;

    /// A copy that is sent only if the service did not process the request. It need not be whole once this body was
    /// read, so nothing has to be kept for it. `None` if there is none.
    ///
    /// As [`copy_body`](Self::copy_body), unless it says otherwise.
    fn copy_unread(&self) -> Option<Self> {
        self.copy_body()
    }

    /// An attempt has failed, and this body is what will be sent next. Answers whether it still can be, and if it shares anything
    /// with the body that was sent, that is its own from now on.
    fn claim_body(&self) -> bool {
        true
    }
}

#[diagnostic::do_not_recommend]
impl<B: Clone> CopyBody for B {
    fn copy_body(&self) -> Option<Self> {
        Some(self.clone())
    }
}
