//! Request bodies that may be sent more than once.

/// A body that can be copied, at least in some cases: any body that is `Clone`, and [`ReplayBody`](super::ReplayBody).
///
/// Your own body type can implement this trait even if it is not `Clone`.
pub trait CopyBody: Sized {
    /// Returns a copy of the whole body, or `None` if that is impossible.
    fn copy_body(&self) -> Option<Self>;

    /// Returns a copy that is sent only if the service did not process the request, or `None` if that is impossible.
    ///
    /// The copy need not be complete once this body has been read, so nothing has to be kept for it. The default is
    /// [`copy_body`](Self::copy_body).
    fn copy_unread(&self) -> Option<Self> {
        self.copy_body()
    }

    /// Claims this copy for the next attempt, after the previous one has failed. Returns whether the copy can still be
    /// sent.
    ///
    /// If it shares state with the body that was sent, that state belongs to the copy from now on.
    fn claim_body(&self) -> bool {
        true
    }

    /// Claims this copy for an attempt beside the previous one, which is still running. Returns `false` if that attempt
    /// still needs state that the two share, because it has not sent the whole body.
    ///
    /// The default is [`claim_body`](Self::claim_body).
    fn claim_body_beside(&self) -> bool {
        self.claim_body()
    }
}

#[diagnostic::do_not_recommend]
impl<B: Clone> CopyBody for B {
    fn copy_body(&self) -> Option<Self> {
        Some(self.clone())
    }
}
