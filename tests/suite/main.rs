//! One binary, a module for each subject.

mod concurrency_limit;
mod context;
mod retry;
mod scope;
mod timeout;
