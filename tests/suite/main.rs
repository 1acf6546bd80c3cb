//! One binary, a module for each subject.

mod context;
mod retry;
mod scope;
mod timeout;
