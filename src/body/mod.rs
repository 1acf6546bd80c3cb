//! Bodies: what lasts until a response's body has ended, and not only until its head is there.

mod guard;
mod until;

pub use guard::{End, Guard, GuardBody, PollFrame};
pub use until::{BodyEnd, ResponseEnd, Until};
