//! Buckets of tokens in Redis.

use std::{ops::RangeInclusive, time::Duration};

use ::redis::{RedisError, RedisResult, aio::ConnectionLike};

use super::{Answer, RedisStore, Script};
use crate::store::{
    quota::Quota,
    tokens::{Taken, TokenStore, amounts},
};

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
static BUCKET: Script = Script::new(
    r"
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
",
);

impl<C> RedisStore<C> {
    /// The key of a bucket.
    fn bucket(&self, key: &str) -> String {
        format!("{}tokens:{key}", self.prefix)
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> TokenStore for RedisStore<C> {
    type Error = RedisError;

    async fn take(&self, key: &str, tokens: RangeInclusive<u32>, quota: &Quota) -> RedisResult<Taken> {
        let mut arguments = vec![micros(quota.time(quota.capacity())), 0, 0];
        arguments.extend(amounts(&tokens).flat_map(|tokens| [tokens.into(), micros(quota.time(tokens))]));
        let (granted, time): (u32, u64) = self.run(&BUCKET, &self.bucket(key), &arguments).await?.it;
        Ok(match granted {
            0 => Taken::Denied { wait: Duration::from_micros(time) },
            tokens => Taken::Granted { tokens, at: time },
        })
    }

    async fn give_back(&self, key: &str, tokens: u32, at: u64, quota: &Quota) -> RedisResult<()> {
        // Rounded down: no more than was taken.
        let back = quota.time(tokens).as_micros() as u64;
        let arguments = [micros(quota.time(quota.capacity())), back, at];
        let _: Answer<(u32, u64)> = self.run(&BUCKET, &self.bucket(key), &arguments).await?;
        Ok(())
    }
}

/// Rounded up: the rate is never exceeded.
fn micros(time: Duration) -> u64 {
    time.as_nanos().div_ceil(1_000) as u64
}
