//! Bodies: what lasts until a response's body has ended, and not only until its head is there.

mod guard;

pub use guard::GuardBody;
