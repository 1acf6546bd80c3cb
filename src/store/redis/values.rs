//! Values in Redis.

use std::time::Duration;

use ::redis::{RedisError, RedisResult, aio::ConnectionLike, cmd};
use bytes::Bytes;

use super::{Answer, RedisStore, Script};
use crate::store::values::ValueStore;

/// Arguments: the value, and its time. Returns the value that is there.
static PUT_NEW: Script = Script::new(
    r"
local present = redis.call('GET', KEYS[1])
if present then return present end
if ARGV[2] == 'never' then
    redis.call('SET', KEYS[1], ARGV[1])
elseif ARGV[2] ~= '0' then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return false
",
);

/// Arguments: the current value, the time of the new one, and the new one if there is one. Returns 1 if it has replaced
/// the current value, 2 if the key was already as it should be, and else 0.
static REPLACE: Script = Script::new(
    r"
local present = redis.call('GET', KEYS[1])
local new = ARGV[2] ~= '0' and ARGV[3] or false
if present ~= ARGV[1] then
    if present == new then return 2 end
    return 0
end
if not new then
    redis.call('DEL', KEYS[1])
elseif ARGV[2] == 'never' then
    redis.call('SET', KEYS[1], new)
else
    redis.call('SET', KEYS[1], new, 'PX', ARGV[2])
end
return 1
",
);

/// The longest time of a value that expires: 100 years. The server refuses times that do not fit into its numbers.
const LONGEST: u128 = 100 * 365 * 24 * 60 * 60 * 1000;

impl<C> RedisStore<C> {
    /// The key of a value.
    fn value(&self, key: &str) -> String {
        format!("{}value:{key}", self.prefix)
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> ValueStore for RedisStore<C> {
    type Error = RedisError;

    async fn get(&self, key: &str) -> RedisResult<Option<Bytes>> {
        let found: Option<Vec<u8>> = self.send(cmd("GET").arg(self.value(key))).await.it?;
        Ok(found.map(Bytes::from))
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> RedisResult<()> {
        let mut put = cmd("SET");
        put.arg(self.value(key)).arg(&*value);
        match millis(ttl).as_deref() {
            Some("0") => return ValueStore::remove(self, key).await,
            Some(millis) => put.arg("PX").arg(millis),
            None => &mut put,
        };
        self.send(&put).await.it
    }

    async fn put_new(&self, key: &str, value: Bytes, ttl: Duration) -> RedisResult<Option<Bytes>> {
        let ttl = argument(ttl);
        let answer: Answer<Option<Vec<u8>>> = self.run(&PUT_NEW, &self.value(key), &[&*value, ttl.as_bytes()]).await?;
        // If the first request put it, a second one finds it.
        Ok(answer.it.filter(|present| !(answer.is_repeated && *present == value)).map(Bytes::from))
    }

    async fn replace(&self, key: &str, current: &[u8], new: Option<Bytes>, ttl: Duration) -> RedisResult<bool> {
        let ttl = argument(ttl);
        let arguments = [Some(current), Some(ttl.as_bytes()), new.as_deref()];
        let arguments = Vec::from_iter(arguments.into_iter().flatten());
        let answer: Answer<u8> = self.run(&REPLACE, &self.value(key), &arguments).await?;
        Ok(answer.it == 1 || (answer.it == 2 && answer.is_repeated))
    }

    async fn remove(&self, key: &str) -> RedisResult<()> {
        self.send(cmd("DEL").arg(self.value(key))).await.it
    }
}

/// Returns the time in whole milliseconds, rounded up, or `None` if it never ends.
fn millis(ttl: Duration) -> Option<String> {
    let millis = ttl.as_nanos().div_ceil(1_000_000);
    (millis <= LONGEST).then(|| millis.to_string())
}

/// The argument of a script.
fn argument(ttl: Duration) -> String {
    millis(ttl).unwrap_or_else(|| "never".to_owned())
}
