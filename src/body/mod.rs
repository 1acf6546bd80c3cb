//! Bodies: what lasts until a response's body has ended, and not only until its head is there; and requests' bodies that can be
//! sent again.

mod copy;
mod guard;
mod replay;
mod until;
mod verdict;

pub use copy::CopyBody;
pub use guard::{End, Guard, GuardBody, PollFrame};
pub(crate) use replay::Allowance;
pub use replay::ReplayBody;
pub use until::{BodyEnd, ResponseEnd, Until};
pub(crate) use verdict::{Said, Verdict, without_trailers};
