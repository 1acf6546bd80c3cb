//! Bodies: guards that last until the end of a response's body, and request bodies that can be sent again.

mod copy;
mod frames;
mod guard;
mod replay;
mod until;
mod verdict;

pub use copy::CopyBody;
pub(crate) use frames::{left, poll_frame};
pub use guard::{End, Guard, GuardBody, PollFrame};
pub(crate) use replay::Allowance;
pub use replay::ReplayBody;
pub use until::{BodyEnd, ResponseEnd, Until};
pub(crate) use verdict::{Said, Verdict, without_trailers};

/// The error of a body that has no error type of its own.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
