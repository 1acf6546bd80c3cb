//! The error of sending to a stream that is no longer read.

use std::{error::Error, fmt};

use crate::debug::impl_debug;

/// The stream was dropped or has ended: the item will not be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Closed<T> {
    /// The item that was not sent.
    pub item: T,
}

impl<T> fmt::Display for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream was dropped or has ended: the item will not be read")
    }
}

impl_debug!(Closed<T> { .. });

impl<T> Error for Closed<T> {}
