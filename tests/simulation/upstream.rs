//! A service with a bounded number of workers and a queue, whose state of health follows a schedule.

use std::{
    fmt,
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, sleep, sleep_until},
};

/// The number of a request.
pub(crate) type Request = u64;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Fixed(Duration),
    /// Exponentially distributed, with this mean.
    Random(Duration),
    /// Half as long to half as long again, but one call in fifty takes twenty times as long.
    Tail(Duration),
}

impl Work {
    pub(crate) fn mean(self) -> Duration {
        match self {
            Self::Fixed(mean) | Self::Random(mean) => mean,
            Self::Tail(usual) => usual.mul_f64(1.38),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Weather {
    /// Work takes this many times as long.
    Slow(f64),
    /// Every call fails at once.
    Refuses,
    /// This share of the calls fails at once, at random.
    Fails(f64),
    /// No call that starts now ends before the weather does.
    Hangs,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) workers: usize,
    pub(crate) work: Work,
    /// The number of calls that may wait for a worker. A call beyond it fails at once.
    pub(crate) queue: usize,
    /// Whether a call that was dropped is taken out of the queue, and gives up its worker.
    pub(crate) notices_callers_leaving: bool,
    pub(crate) weather: Vec<(Range<f64>, Weather)>,
    pub(crate) seed: u64,
}

#[derive(Clone)]
pub(crate) struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    plan: Plan,
    start: Instant,
    workers: Arc<Semaphore>,
    inside: AtomicUsize,
    /// When each call arrived.
    received: Mutex<Vec<Duration>>,
    random: Mutex<fastrand::Rng>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    Unavailable,
    Full,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Failed {}

impl Upstream {
    pub(crate) fn new(plan: Plan) -> Self {
        let shared = Shared {
            start: Instant::now(),
            workers: Arc::new(Semaphore::new(plan.workers)),
            inside: AtomicUsize::new(0),
            received: Mutex::default(),
            random: Mutex::new(fastrand::Rng::with_seed(plan.seed ^ 0x5eed)),
            plan,
        };
        Self { shared: Arc::new(shared) }
    }

    /// When each call arrived, since the start.
    pub(crate) fn received(&self) -> Vec<Duration> {
        self.shared.received.lock().unwrap().clone()
    }
}

impl Shared {
    fn weather(&self) -> Option<(f64, Weather)> {
        let now = self.start.elapsed().as_secs_f64();
        self.plan.weather.iter().find(|(when, _)| when.contains(&now)).map(|(when, weather)| (when.end, *weather))
    }

    fn work(&self) -> Duration {
        match self.plan.work {
            Work::Fixed(time) => time,
            Work::Random(mean) => mean.mul_f64(-(1.0 - self.random.lock().unwrap().f64()).ln()),
            Work::Tail(usual) => {
                let mut random = self.random.lock().unwrap();
                let times = if random.u32(0..50) == 0 { 20.0 } else { 1.0 };
                usual.mul_f64(times * (0.5 + random.f64()))
            }
        }
    }

    async fn serve(&self, answer: oneshot::Sender<()>) {
        let mut answer = answer;
        let work = async {
            let _worker = self.workers.acquire().await;
            let mut work = self.work();
            match self.weather() {
                Some((end, Weather::Hangs)) => sleep_until(self.start + Duration::from_secs_f64(end)).await,
                Some((_, Weather::Slow(factor))) => work = work.mul_f64(factor),
                Some((_, Weather::Refuses | Weather::Fails(_))) | None => {}
            }
            sleep(work).await;
        };
        if self.plan.notices_callers_leaving {
            tokio::select! {
                // Not at random.
                biased;
                () = work => {}
                () = answer.closed() => {}
            }
        } else {
            work.await;
        }
        self.inside.fetch_sub(1, Relaxed);
        let _ = answer.send(());
    }
}

impl tower::Service<Request> for Upstream {
    type Response = ();
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        shared.received.lock().unwrap().push(shared.start.elapsed());
        let fails = match shared.weather() {
            Some((_, Weather::Refuses)) => true,
            Some((_, Weather::Fails(share))) => shared.random.lock().unwrap().f64() < share,
            Some((_, Weather::Slow(_) | Weather::Hangs)) | None => false,
        };
        if fails {
            return Box::pin(async { Err(Failed::Unavailable) });
        }
        if shared.inside.load(Relaxed) >= shared.plan.workers + shared.plan.queue {
            return Box::pin(async { Err(Failed::Full) });
        }
        shared.inside.fetch_add(1, Relaxed);
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move { shared.serve(answer).await });
        Box::pin(async { answered.await.map_err(|_| Failed::Unavailable) })
    }
}
