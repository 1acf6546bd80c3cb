//! The key of a call's limit.

use std::borrow::Cow;

/// The key of the limit that a call belongs to: the same for every request (a string), or a function of the request.
///
/// The function returns a `String` or an `Option` of one, where `None` means that the call is not limited. A closure
/// must name the type of its argument, `|req: &Request<_>| ..`. A bare `|req|` is never inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the key of a shared limit for a request of type `{Req}`",
    note = "give a string, or a closure that names its argument's type: `|req: &{Req}| ..`, returning `String` or `Option<String>`"
)]
pub trait Key<Req> {
    /// Returns the key of this request's limit, or `None` if the request is not limited.
    fn get(&self, request: &Req) -> Option<Cow<'_, str>>;
}

impl<Req> Key<Req> for &str {
    fn get(&self, _: &Req) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(self))
    }
}

impl<Req> Key<Req> for String {
    fn get(&self, _: &Req) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(self))
    }
}

#[diagnostic::do_not_recommend]
impl<Req, F, O> Key<Req> for F
where
    F: Fn(&Req) -> O,
    O: Into<Option<String>>,
{
    fn get(&self, request: &Req) -> Option<Cow<'_, str>> {
        self(request).into().map(Cow::Owned)
    }
}
