//! The accessors that every service has.

/// `get_ref`, `get_mut` and `into_inner`, for a service with a field `inner` of the type `S`.
macro_rules! inner_accessors {
    () => {
        /// Returns a reference to the inner service.
        #[must_use]
        pub fn get_ref(&self) -> &S {
            &self.inner
        }

        /// Returns a mutable reference to the inner service. A service that was polled ready must not be replaced through it: the next call
        /// expects the service that is ready.
        #[must_use]
        pub fn get_mut(&mut self) -> &mut S {
            &mut self.inner
        }

        /// Returns the inner service. Calls that are in flight go on.
        #[must_use]
        pub fn into_inner(self) -> S {
            self.inner
        }
    };
}

pub(crate) use inner_accessors;
