//! Settings: a value, or a function of the request.

use std::time::Duration;

/// A value that is the same for every request, or a function of the request.
///
/// A plain value is a setting. So is a function of the request that returns the value or an `Option` of it. `None`
/// means that the layer does not apply to this request. The function runs before the call. It may read
/// [`Scope::current`](crate::Scope::current), so settings can change while the program runs.
///
/// A closure must name the type of its argument, `|req: &Request<_>| ..`. A bare `|req|` is never inferred.
///
/// ```
/// use std::time::Duration;
/// use ziggurat::timeout::TimeoutLayer;
///
/// let fixed = TimeoutLayer::new(Duration::from_secs(2));
/// let by_size = TimeoutLayer::new(|req: &http::Request<String>| Duration::from_millis(100 + req.body().len() as u64));
/// let not_for_uploads = TimeoutLayer::new(|req: &http::Request<String>| {
///     (req.method() != http::Method::PUT).then_some(Duration::from_secs(2))
/// });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a setting of type `{T}` for a request of type `{Req}`",
    note = "give a value of type `{T}`, or a closure that names its argument's type: `|req: &{Req}| ..`, returning `{T}` or `Option<{T}>`"
)]
pub trait Setting<Req, T> {
    /// Returns the value for this request, or `None` if the layer does not apply to it.
    fn get(&self, request: &Req) -> Option<T>;
}

impl<Req> Setting<Req, Duration> for Duration {
    fn get(&self, _: &Req) -> Option<Duration> {
        Some(*self)
    }
}

impl<Req> Setting<Req, u32> for u32 {
    fn get(&self, _: &Req) -> Option<u32> {
        Some(*self)
    }
}

#[diagnostic::do_not_recommend]
impl<Req, T, F, O> Setting<Req, T> for F
where
    F: Fn(&Req) -> O,
    O: Into<Option<T>>,
{
    fn get(&self, request: &Req) -> Option<T> {
        self(request).into()
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<Req, T, F> Setting<Req, T> for F
where
    [Req]: Sized,
{
    fn get(&self, _: &Req) -> Option<T> {
        None
    }
}
