//! A store in Redis or Valkey.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use ::redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ServerErrorKind, aio::ConnectionLike, cmd,
};

use super::{
    quota::Quota,
    store::{Store, Taken, amounts},
};
use crate::debug::impl_debug;

/// The decision, in the server, where no other request comes between.
///
/// A bucket is the time at which it will be full (GCRA), in microseconds of the server's clock, as a decimal number.
/// Its key expires at that time: a bucket without a key is full. All numbers are whole and below 2^53, so that they are
/// exact in Lua.
///
/// Arguments: the time in which an empty bucket becomes full; the time of tokens that come back, and when they were
/// taken; then numbers of tokens with their times, of which the first that fits is granted. Returns the number that is
/// granted and the present time, or zero and the wait for the last one.
///
/// A bucket that lacks more than it can hold comes from a clock that was set back, or from a larger quota. It becomes
/// an empty one, or else calls would be denied until the clock is there again.
///
/// Before Redis 5, a script that reads the clock may write only if its effects are replicated instead of the script.
const SCRIPT: &str = r"
if redis.replicate_commands then redis.replicate_commands() end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local room, back, at = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local before = (tonumber(redis.call('GET', KEYS[1]) or now) or now) - now
local lacking = math.min(math.max(before, 0), room)
local wait = 0
local granted = 0
if back > 0 then
    lacking = math.max(lacking - math.max(back - math.max(now - at, 0), 0), 0)
end
for i = 4, #ARGV, 2 do
    local after = lacking + tonumber(ARGV[i + 1])
    if after <= room then
        lacking = after
        granted = tonumber(ARGV[i])
        break
    end
    wait = after - room
end
if lacking == 0 then
    redis.call('DEL', KEYS[1])
elseif lacking ~= before then
    local expiry = math.ceil(lacking / 1000)
    redis.call('SET', KEYS[1], string.format('%.0f', now + lacking), 'PX', string.format('%.0f', expiry))
end
if granted > 0 then return {granted, now} end
return {0, wait}
";

/// Where the keys are, unless [`prefix`](RedisStore::prefix) sets another place.
const PREFIX: &str = "rate_limit:";

/// A [`Store`] in Redis or Valkey.
///
/// `C` is an asynchronous connection of the crate [`redis`](https://docs.rs/redis), best a `ConnectionManager`, which
/// connects again by itself (that crate's feature `connection-manager`). A connection to a cluster works too, because
/// each request has a single key. Clones of the connection have to share it, as those of that crate do.
///
/// Each key is a string below [`prefix`](Self::prefix) that expires when its bucket is full.
///
/// The server has to be Redis 3.2 or later, or Valkey. The time is that of the server: the clocks of the processes do
/// not matter. If the server's clock is set back, buckets count as empty until they are full again.
///
/// # Data that the server forgets
///
/// - A server that is killed forgets its counters, unless it persists them. All buckets are then full again: a limit
///   admits at most one further burst for each such loss. The same holds for a replica that takes over before it has
///   received the latest writes, and for `FLUSHALL`.
/// - A server that evicts keys under memory pressure (`maxmemory-policy allkeys-..` or `volatile-..`) forgets the
///   buckets that it evicts. `noeviction` makes it fail instead, which [`WhenAway`](super::WhenAway) then handles.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use redis::{Client, aio::ConnectionManager};
/// use ziggurat::shared_rate_limit::{Quota, RedisStore, SharedRateLimitLayer, WhenAway};
///
/// # async fn connect() -> redis::RedisResult<()> {
/// let connection = ConnectionManager::new(Client::open("redis://127.0.0.1/")?).await?;
/// let quota = Quota::new(100, Duration::from_secs(1));
/// let limit = SharedRateLimitLayer::new(RedisStore::new(connection), "api", quota, WhenAway::Reject);
/// # drop(limit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore<C> {
    connection: C,
    prefix: Arc<str>,
    hash: Arc<str>,
}

impl<C> RedisStore<C> {
    /// Creates a store over this connection.
    #[must_use]
    pub fn new(connection: C) -> Self {
        Self { connection, prefix: PREFIX.into(), hash: Script::new(SCRIPT).get_hash().into() }
    }

    /// Sets what all keys begin with. The default is `rate_limit:`.
    ///
    /// Programs that share a server, but no limits, need different ones.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }
}

impl_debug!(RedisStore<C> { connection: C, prefix });

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisStore<C> {
    /// Runs the script.
    async fn run<T: FromRedisValue>(&self, key: &str, arguments: &[u64]) -> RedisResult<T> {
        let key = format!("{}{key}", self.prefix);
        let command = |name, script: &str| -> Cmd {
            let mut command = cmd(name);
            command.arg(script).arg(1).arg(&key).arg(arguments);
            command
        };
        let mut connection = self.connection.clone();
        let by_hash = command("EVALSHA", &self.hash);
        let mut result = by_hash.query_async(&mut connection).await;
        // A connection that was closed while it was idle fails at its next use only.
        if result.as_ref().is_err_and(RedisError::is_connection_dropped) {
            result = by_hash.query_async(&mut connection).await;
        }
        match result {
            // A server that has restarted, or that sees the script for the first time.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                command("EVAL", SCRIPT).query_async(&mut connection).await
            }
            result => result,
        }
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Store for RedisStore<C> {
    type Error = RedisError;

    async fn take(&self, key: &str, tokens: RangeInclusive<u32>, quota: &Quota) -> RedisResult<Taken> {
        let mut arguments = vec![micros(quota.time(quota.capacity())), 0, 0];
        arguments.extend(amounts(&tokens).flat_map(|tokens| [tokens.into(), micros(quota.time(tokens))]));
        let (granted, time): (u32, u64) = self.run(key, &arguments).await?;
        Ok(match granted {
            0 => Taken::Denied { wait: Duration::from_micros(time) },
            tokens => Taken::Granted { tokens, at: time },
        })
    }

    async fn give_back(&self, key: &str, tokens: u32, at: u64, quota: &Quota) -> RedisResult<()> {
        // Rounded down: no more than was taken.
        let back = quota.time(tokens).as_micros() as u64;
        let _: (u32, u64) = self.run(key, &[micros(quota.time(quota.capacity())), back, at]).await?;
        Ok(())
    }
}

/// Rounded up: the rate is never exceeded.
fn micros(time: Duration) -> u64 {
    time.as_nanos().div_ceil(1_000) as u64
}
