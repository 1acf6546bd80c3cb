//! An open load: requests arrive at their times, however the earlier ones fare.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tower::{BoxError, Service, ServiceExt, util::BoxCloneService};
use ziggurat::Error;

use crate::{
    report::Call,
    upstream::{Failed, Request},
};

pub(crate) type Client = BoxCloneService<Request, (), BoxError>;

pub(crate) fn boxed<S>(service: S) -> Client
where
    S: Service<Request, Response = (), Error = Error<Failed>, Future: Send> + Clone + Send + 'static,
{
    BoxCloneService::new(service.map_err(BoxError::from))
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Arrivals {
    /// Evenly spaced.
    Steady,
    /// At random, independent of each other.
    Poisson,
    /// This number at a time.
    Bursts(u32),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) per_second: f64,
    pub(crate) arrivals: Arrivals,
    pub(crate) length: Duration,
    pub(crate) seed: u64,
}

impl Load {
    fn gap(&self, random: &mut fastrand::Rng) -> f64 {
        match self.arrivals {
            Arrivals::Steady => 1.0 / self.per_second,
            Arrivals::Poisson => -(1.0 - random.f64()).ln() / self.per_second,
            Arrivals::Bursts(size) => f64::from(size) / self.per_second,
        }
    }

    /// Sends the load to `client`, and returns how each request fared, in order of arrival.
    pub(crate) async fn offer(&self, client: &Client) -> Vec<Call> {
        let (start, mut random) = (Instant::now(), fastrand::Rng::with_seed(self.seed));
        let calls: Arc<Mutex<Vec<Option<Call>>>> = Arc::default();
        let (mut under_way, mut at, mut number) = (JoinSet::new(), 0.0, 0);
        let together = if let Arrivals::Bursts(size) = self.arrivals { size } else { 1 };
        while at < self.length.as_secs_f64() {
            sleep_until(start + Duration::from_secs_f64(at)).await;
            for _ in 0..together {
                let (calls, client, sent) = (Arc::clone(&calls), client.clone(), start.elapsed());
                calls.lock().unwrap().push(None);
                under_way.spawn(async move {
                    let outcome = client.oneshot(number).await;
                    let took = start.elapsed() - sent;
                    let error = outcome.err().map(|error| error.to_string());
                    let before = calls.lock().unwrap()[number as usize].replace(Call { sent, took, error });
                    assert!(before.is_none(), "request {number} has two outcomes");
                });
                number += 1;
            }
            at += self.gap(&mut random);
            while under_way.try_join_next().is_some() {}
        }
        while let Some(ended) = under_way.join_next().await {
            ended.expect("no client panics");
        }
        let calls = std::mem::take(&mut *calls.lock().unwrap());
        calls.into_iter().map(|call| call.expect("every request has an outcome")).collect()
    }
}
