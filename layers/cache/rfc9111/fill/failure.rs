//! Why a body has no more bytes for a reader.

use std::{error::Error, fmt, sync::Arc};

use crate::body::BoxError;

/// The end of a body that did not arrive whole, or not for this reader.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The original error, which all readers share.
    Body(Arc<BoxError>),
    /// The body is shorter than its head said.
    Short { arrived: u64, size: u64 },
    /// The body is longer than its head said.
    Long { size: u64 },
    /// The task that received the body is gone, because its runtime or its scope has ended, it took too long, or the
    /// body has panicked.
    Lost,
    /// The reader is too far behind another one.
    Lagging,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(error) => error.fmt(f),
            Self::Short { arrived, size } => write!(f, "the response ended after {arrived} of {size} bytes"),
            Self::Long { size } => write!(f, "the response is longer than the {size} bytes that it announced"),
            Self::Lost => f.write_str("the call was dropped before its response ended"),
            Self::Lagging => f.write_str(
                "the cache no longer holds the next bytes of this response: the response is too large to be kept, and \
                 another caller reads it faster",
            ),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Body(error) => Some(&***error),
            _ => None,
        }
    }
}
