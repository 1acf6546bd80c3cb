//! A store of any type.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;

use crate::store::ValueStore;

/// A request to the store.
pub(super) type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// A [`ValueStore`], without its type. The layer has no parameter for it.
pub(in super::super) trait AnyStore: Send + Sync {
    fn get<'a>(&'a self, key: &'a str) -> Asking<'a, Option<Bytes>>;
    fn put<'a>(&'a self, key: &'a str, value: Bytes, ttl: Duration) -> Asking<'a, ()>;
    fn put_new<'a>(&'a self, key: &'a str, value: Bytes, ttl: Duration) -> Asking<'a, Option<Bytes>>;
    fn replace<'a>(&'a self, key: &'a str, current: &'a [u8], new: Bytes, ttl: Duration) -> Asking<'a, bool>;
}

impl<St: ValueStore> AnyStore for St {
    fn get<'a>(&'a self, key: &'a str) -> Asking<'a, Option<Bytes>> {
        told(async move { ValueStore::get(self, key).await })
    }

    fn put<'a>(&'a self, key: &'a str, value: Bytes, ttl: Duration) -> Asking<'a, ()> {
        told(async move { ValueStore::put(self, key, value, ttl).await })
    }

    fn put_new<'a>(&'a self, key: &'a str, value: Bytes, ttl: Duration) -> Asking<'a, Option<Bytes>> {
        told(async move { ValueStore::put_new(self, key, value, ttl).await })
    }

    fn replace<'a>(&'a self, key: &'a str, current: &'a [u8], new: Bytes, ttl: Duration) -> Asking<'a, bool> {
        told(async move { ValueStore::replace(self, key, current, Some(new), ttl).await })
    }
}

/// Makes an error a text.
fn told<'a, T, E: std::fmt::Display>(asking: impl Future<Output = Result<T, E>> + Send + 'a) -> Asking<'a, T> {
    Box::pin(async move { asking.await.map_err(|error| error.to_string()) })
}
