//! A store whose behaviour can be changed.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::time::sleep;
use ziggurat::store::{MemoryStore, ValueStore};

const MILLI: Duration = Duration::from_millis(1);

/// How a store behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Behaviour {
    Answers,
    /// Each operation happens after a random time of at most this, and is answered after another one.
    Delays(Duration),
    /// Each operation takes this time.
    Takes(Duration),
    PutsHang,
    Fails,
    Panics,
    Hangs,
}

/// A store of the test. Clones are the connections of several processes to one server.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) memory: MemoryStore,
    behaviour: Arc<Mutex<Behaviour>>,
    pub(crate) requests: Arc<AtomicU32>,
}

impl Server {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        Self { memory: MemoryStore::new(), behaviour: Arc::new(Mutex::new(behaviour)), requests: Arc::default() }
    }

    pub(crate) fn becomes(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    async fn run<T>(&self, is_put: bool, operation: impl Future<Output = T>) -> Result<T, &'static str> {
        self.requests.fetch_add(1, SeqCst);
        let behaviour = *self.behaviour.lock().unwrap();
        let delay = async || match behaviour {
            Behaviour::Delays(most) => sleep(MILLI * fastrand::u32(0..=most.as_millis() as u32)).await,
            Behaviour::Takes(time) => sleep(time / 2).await,
            _ => {}
        };
        match behaviour {
            Behaviour::Fails => return Err("refused"),
            Behaviour::Panics => panic!("at the disco"),
            Behaviour::Hangs => pending().await,
            Behaviour::PutsHang if is_put => pending().await,
            _ => {}
        }
        delay().await;
        let result = operation.await;
        delay().await;
        Ok(result)
    }
}

impl ValueStore for Server {
    type Error = &'static str;

    async fn get(&self, key: &str) -> Result<Option<Bytes>, &'static str> {
        self.run(false, async { self.memory.get(key).await.unwrap() }).await
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), &'static str> {
        self.run(true, async { self.memory.put(key, value, ttl).await.unwrap() }).await
    }

    async fn put_new(&self, key: &str, value: Bytes, ttl: Duration) -> Result<Option<Bytes>, &'static str> {
        self.run(true, async { self.memory.put_new(key, value, ttl).await.unwrap() }).await
    }

    async fn replace(
        &self,
        key: &str,
        current: &[u8],
        new: Option<Bytes>,
        ttl: Duration,
    ) -> Result<bool, &'static str> {
        self.run(true, async { self.memory.replace(key, current, new, ttl).await.unwrap() }).await
    }

    async fn remove(&self, key: &str) -> Result<(), &'static str> {
        self.run(true, async { self.memory.remove(key).await.unwrap() }).await
    }
}
