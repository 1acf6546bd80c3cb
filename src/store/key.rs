//! The key of a request in a store.

use std::borrow::Cow;

/// The key of a request in a store: the same for every request (a string), or a function of the request.
///
/// The function returns a `String` or an `Option` of one, where `None` means that the layer does not apply to the
/// request. A closure must name the type of its argument, `|req: &Request<_>| ..`. A bare `|req|` is never inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the key in a store of a request of type `{Req}`",
    note = "give a string, or a closure that names its argument's type: `|req: &{Req}| ..`, returning `String` or `Option<String>`"
)]
pub trait Key<Req> {
    /// Returns the key of this request, or `None` if the layer does not apply to it.
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
