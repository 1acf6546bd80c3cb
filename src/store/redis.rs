//! A store in Redis or Valkey.

use std::sync::{Arc, OnceLock};

use ::redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, ToRedisArgs, aio::ConnectionLike, cmd,
};

use crate::debug::impl_debug;

mod tokens;
mod values;

/// The prefix of the keys, unless [`prefix`](RedisStore::prefix) sets another one.
const PREFIX: &str = "ziggurat:";

/// A [`TokenStore`](super::TokenStore) and [`ValueStore`](super::ValueStore) in Redis or Valkey.
///
/// `C` is an asynchronous connection of the crate [`redis`](https://docs.rs/redis), best a `ConnectionManager`, which
/// connects again by itself (that crate's feature `connection-manager`). A connection to a cluster works too, because
/// each request has a single key. Clones of the connection have to share it, as those of that crate do.
///
/// The key of a bucket is `tokens:` and its name, that of a value `value:` and its name, below the
/// [`prefix`](Self::prefix). Each is a string. That of a bucket expires when the bucket is full.
///
/// The server has to be Redis 3.2 or later, or Valkey. The time is that of the server: the clocks of the processes do
/// not matter. If the server's clock is set back, buckets count as empty until they are full again, and values live
/// longer by that time.
///
/// # Lost connections
///
/// If the connection was lost, a request is repeated once: a connection that was closed while it was idle fails at its
/// next use. The server may then see it twice. Tokens that it takes twice are missing until the bucket has gained them
/// again. For [`put_new`](super::ValueStore::put_new) and [`replace`](super::ValueStore::replace), a repeated request
/// that finds the key as it should be has succeeded. That is right if no other caller puts an equal value.
///
/// # Time limits
///
/// The layers bound the time of each request. A `ConnectionManager` has limits of its own, by default 500 ms for a
/// response and a second for a connection: a layer with a longer timeout needs a manager with longer ones, or none.
///
/// # Data that the server forgets
///
/// - A server that is killed forgets its data, unless it persists them. All buckets are then full again: a limit admits
///   at most one further burst for each such loss. The same holds for a replica that takes over before it has received
///   the latest writes, and for `FLUSHALL`.
/// - A server that evicts keys under memory pressure (`maxmemory-policy allkeys-..` or `volatile-..`) forgets the
///   buckets and values that it evicts. `noeviction` makes it fail instead, and the store then counts as away.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use redis::{Client, aio::ConnectionManager};
/// use ziggurat::{shared_rate_limit::{SharedRateLimitLayer, WhenAway}, store::{Quota, RedisStore}};
///
/// # async fn connect() -> redis::RedisResult<()> {
/// let store = RedisStore::new(ConnectionManager::new(Client::open("redis://127.0.0.1/")?).await?);
/// let quota = Quota::new(100, Duration::from_secs(1));
/// let limit = SharedRateLimitLayer::new(store, "api", quota, WhenAway::Reject);
/// # drop(limit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore<C> {
    connection: C,
    prefix: Arc<str>,
}

/// A script, which the server knows by its hash once it has seen it.
struct Script {
    text: &'static str,
    hash: OnceLock<String>,
}

/// The answer to a request.
struct Answer<T> {
    it: T,
    /// Whether the server may have seen the request twice.
    is_repeated: bool,
}

impl<C> RedisStore<C> {
    /// Creates a store over this connection.
    #[must_use]
    pub fn new(connection: C) -> Self {
        Self { connection, prefix: PREFIX.into() }
    }

    /// Sets the prefix of all keys, in place of an earlier one. The default is `ziggurat:`.
    ///
    /// Programs that share a server, but no limits and no values, need different ones.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }
}

impl_debug!(RedisStore<C> { connection: C, prefix });

impl Script {
    const fn new(text: &'static str) -> Self {
        Self { text, hash: OnceLock::new() }
    }

    fn hash(&self) -> &str {
        self.hash.get_or_init(|| ::redis::Script::new(self.text).get_hash().to_owned())
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisStore<C> {
    async fn send<T: FromRedisValue>(&self, command: &Cmd) -> Answer<RedisResult<T>> {
        let mut connection = self.connection.clone();
        let mut it = command.query_async(&mut connection).await;
        let is_repeated = it.as_ref().is_err_and(RedisError::is_connection_dropped);
        if is_repeated {
            it = command.query_async(&mut connection).await;
        }
        Answer { it, is_repeated }
    }

    async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        key: &str,
        arguments: &[impl ToRedisArgs],
    ) -> RedisResult<Answer<T>> {
        let command = |name, script: &str| -> Cmd {
            let mut command = cmd(name);
            command.arg(script).arg(1).arg(key).arg(arguments);
            command
        };
        let Answer { mut it, mut is_repeated } = self.send(&command("EVALSHA", script.hash())).await;
        // A server that has restarted, or that sees the script for the first time.
        let is_unknown = |error: &RedisError| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript);
        if it.as_ref().is_err_and(is_unknown) {
            let again = self.send(&command("EVAL", script.text)).await;
            it = again.it;
            // The server may have run the script before it forgot it, if `EVALSHA` was sent twice.
            is_repeated |= again.is_repeated;
        }
        Ok(Answer { it: it?, is_repeated })
    }
}
