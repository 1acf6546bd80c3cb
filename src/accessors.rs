//! The accessors that every service has.

/// Defines `get_ref`, `get_mut` and `into_inner`, for a service with a field `inner` of type `S`.
macro_rules! inner_accessors {
    () => {
        /// Returns a reference to the inner service.
        #[must_use]
        pub fn get_ref(&self) -> &S {
            &self.inner
        }

        /// Returns a mutable reference to the inner service.
        ///
        /// Do not replace an inner service that was polled ready: the next call expects that service.
        #[must_use]
        pub fn get_mut(&mut self) -> &mut S {
            &mut self.inner
        }

        /// Returns the inner service. Calls in flight continue.
        #[must_use]
        pub fn into_inner(self) -> S {
            self.inner
        }
    };
}

pub(crate) use inner_accessors;
