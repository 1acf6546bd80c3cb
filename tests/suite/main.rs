//! One binary, a module for each subject.

mod timeout;
