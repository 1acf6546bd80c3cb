//! One binary, a module for each subject.

mod retry;
mod timeout;
