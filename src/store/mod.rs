//! State that many processes share: stores of tokens and of values.
//!
//! A layer whose state has to be the same in all processes keeps it in a store. There are two kinds, and `RedisStore`
//! (feature `redis`) and [`MemoryStore`] are both:
//!
//! - A [`TokenStore`] has buckets of tokens, for the [`shared_rate_limit`](crate::shared_rate_limit).
//! - A [`ValueStore`] has values by key, as bytes, for a time.
//!
//! For another place, such as a database, implement the trait of the layer that you need.
//!
//! # Sharing a store
//!
//! A clone of a store refers to the same data. A bucket never meets a value of the same key, but the values of two
//! layers in one store meet if their keys are equal. Give each layer a `RedisStore` with a prefix of its own, as in
//! `store.clone().prefix("app:cache:")`, or a [`MemoryStore`] of its own.
//!
//! # While a store is away
//!
//! A store can fail, hang or restart. A layer gives each request a bounded time, and takes a panic for a failure, so a
//! store needs neither. After a failure, the store counts as away: no call waits for it, and a request that no call
//! waits for finds out whether it is back, after a pause of up to 100 ms, and after longer ones of up to 2 s while it
//! stays away. Each layer describes the fate of calls meanwhile. An observer of the layer receives
//! [`LayerEvent::StoreFailed`](crate::LayerEvent::StoreFailed) for each failure, and a transition between `answering`
//! and `away`.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use ziggurat::store::{MemoryStore, ValueStore};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let store = MemoryStore::new();
//! let minute = Duration::from_secs(60);
//!
//! // Of many processes at once, one gets `None`: it has won.
//! assert_eq!(store.put_new("job", "process 1".into(), minute).await.unwrap(), None);
//! assert_eq!(store.put_new("job", "process 2".into(), minute).await.unwrap(), Some("process 1".into()));
//!
//! assert!(store.replace("job", b"process 1", Some("done".into()), minute).await.unwrap());
//! assert_eq!(store.get("job").await.unwrap(), Some("done".into()));
//! tokio::time::sleep(minute).await;
//! assert_eq!(store.get("job").await.unwrap(), None);
//! # }
//! ```

mod codec;
mod headers;
mod health;
mod key;
mod link;
mod memory;
mod quota;
#[cfg(feature = "redis")]
mod redis;
mod tokens;
mod values;

#[cfg(feature = "http-cache")]
pub(crate) use self::headers::{put_text, take_text};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::RedisStore;
pub use self::{
    codec::Codec,
    key::Key,
    memory::MemoryStore,
    quota::Quota,
    tokens::{Taken, TokenStore, amounts},
    values::ValueStore,
};
pub(crate) use self::{
    headers::{put_headers, take_headers},
    health::Advice,
    link::{Awaited, Link, start},
};
