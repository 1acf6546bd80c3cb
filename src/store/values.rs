//! The place where processes share values.

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;

/// A place where processes share values: a `RedisStore` (feature `redis`), a [`MemoryStore`](super::MemoryStore), or
/// one of your own.
///
/// Each operation is atomic: no other operation comes between its read and its write of a key. A value expires after
/// its time, which a store may round up to a whole millisecond. A value that is put for [`Duration::ZERO`] expires at
/// once, so it only removes the value that it replaces. A value that is put for [`Duration::MAX`] never expires.
///
/// A store may forget a value earlier, because it needs the room or has lost its data.
///
/// The layer bounds the time of each request and observes errors, panics included, so a store needs no timeout of its
/// own. After an error, or if the future was dropped, it is unknown whether the operation has happened.
pub trait ValueStore: Send + Sync + 'static {
    /// Why the store could not do it.
    type Error: fmt::Display;

    /// Returns the value of `key`.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Bytes>, Self::Error>> + Send;

    /// Puts a value for the time `ttl`, in place of an earlier one.
    fn put(&self, key: &str, value: Bytes, ttl: Duration) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Puts a value for the time `ttl`, unless the key has one. Returns the one that it has.
    ///
    /// Of many callers at once, one gets `None`. Each should put a value that no other puts, such as a random number:
    /// then a store that repeats a request whose answer was lost recognizes the value as its own.
    fn put_new(
        &self,
        key: &str,
        value: Bytes,
        ttl: Duration,
    ) -> impl Future<Output = Result<Option<Bytes>, Self::Error>> + Send;

    /// Replaces the value of `key` if it is `current`, by another one for the time `ttl`, or removes it (`None`).
    /// Returns whether it was `current`.
    fn replace(
        &self,
        key: &str,
        current: &[u8],
        new: Option<Bytes>,
        ttl: Duration,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Removes the value of `key`.
    fn remove(&self, key: &str) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
