//! One binary, a module for each subject.

mod circuit_breaker;
mod timeout;
