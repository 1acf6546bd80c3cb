//! The name of a layer, which may be created at run time, for example from a host name.

use std::{borrow::Cow, fmt, ops::Deref, sync::Arc};

/// A string that is cheap to clone in either form, and two words long: a service carries its layer's name, and is
/// cloned for each call.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Static(&'static str),
    // One word, so that the enum needs no third one.
    Shared(Arc<Box<str>>),
}

impl Name {
    pub(crate) fn new(name: impl Into<Cow<'static, str>>) -> Self {
        match name.into() {
            Cow::Borrowed(name) => Self::Static(name),
            Cow::Owned(name) => Self::Shared(Arc::new(name.into())),
        }
    }

    /// Returns the name, unless there is none.
    pub(crate) fn get(&self) -> Option<&str> {
        Some(&**self).filter(|name| !name.is_empty())
    }
}

// Two words, which every service carries.
const _: () = assert!(size_of::<Name>() == size_of::<&str>());

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Static(name) => name,
            Self::Shared(name) => name,
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
