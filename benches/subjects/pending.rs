//! Services that do not respond at once, and how they are driven.

use std::{
    fmt::Debug,
    future::{Future, poll_fn},
    hint::black_box,
    marker::PhantomData,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{runtime::Builder, task::JoinSet, time::sleep};
use tower::{Service, service_fn};

use crate::{
    Failed, Word,
    subject::{Collect, Inner, Subject},
};

/// Its response is pending this number of times, and wakes its task each time.
#[derive(Debug, Clone, Copy)]
pub struct Pending(pub u32);

/// The response of [`Pending`].
#[derive(Debug)]
pub struct PendingResponse {
    left: u32,
    word: Word,
}

impl Service<Word> for Pending {
    type Response = Word;
    type Error = Failed;
    type Future = PendingResponse;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, word: Word) -> PendingResponse {
        PendingResponse { left: self.0, word }
    }
}

impl Future for PendingResponse {
    type Output = Result<Word, Failed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(Ok(self.word));
        }
        self.left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Subjects whose calls are made in another way than at once.
pub struct Driven<D>(Vec<Subject>, PhantomData<D>);

pub trait Driver {
    /// Returns a function that makes the given number of calls.
    fn drive<S>(service: S) -> Box<dyn FnMut(u32)>
    where
        S: Service<Word, Response = Word, Error: Debug, Future: Send> + 'static;
}

impl<D> Default for Driven<D> {
    fn default() -> Self {
        Self(Vec::new(), PhantomData)
    }
}

impl<D> IntoIterator for Driven<D> {
    type Item = Subject;
    type IntoIter = std::vec::IntoIter<Subject>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<D: Driver> Collect for Driven<D> {
    fn add<S>(&mut self, what: &'static str, whose: &'static str, service: S)
    where
        S: Service<Word, Response = Word, Error: Debug, Future: Send> + Clone + Send + 'static,
    {
        self.0.push(Subject { what, whose, run: D::drive(service) });
    }
}

/// Polls each response until it is ready.
pub struct Polled;

impl Driver for Polled {
    fn drive<S>(mut service: S) -> Box<dyn FnMut(u32)>
    where
        S: Service<Word, Response = Word, Error: Debug, Future: Send> + 'static,
    {
        let waker = Waker::from(Arc::new(Woken));
        Box::new(move |calls| {
            let mut cx = Context::from_waker(&waker);
            for _ in 0..calls {
                assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))), "not ready");
                let mut response = pin!(service.call(black_box(42)));
                let response = loop {
                    if let Poll::Ready(response) = response.as_mut().poll(&mut cx) {
                        break response;
                    }
                };
                black_box(response.expect("a response"));
            }
        })
    }
}

/// Its waker counts references, as that of a task does.
struct Woken;

impl Wake for Woken {
    fn wake(self: Arc<Self>) {}
}

/// Makes [`AT_ONCE`] calls at a time, in tasks on a runtime of this thread.
pub struct Tasks;

/// Fewer than the permits of the policies.
const AT_ONCE: u32 = 50;

impl Driver for Tasks {
    fn drive<S>(mut service: S) -> Box<dyn FnMut(u32)>
    where
        S: Service<Word, Response = Word, Error: Debug, Future: Send> + 'static,
    {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        Box::new(move |calls| {
            runtime.block_on(async {
                for _ in 0..calls / AT_ONCE {
                    let mut tasks = JoinSet::new();
                    for _ in 0..AT_ONCE {
                        poll_fn(|cx| service.poll_ready(cx)).await.expect("a service that is ready");
                        let response = service.call(black_box(42));
                        tasks.spawn(async { black_box(response.await.expect("a response")) });
                    }
                    tasks.join_all().await;
                }
            });
        })
    }
}

/// Responds after a millisecond.
pub fn sleepy() -> impl Inner {
    service_fn(|word: Word| async move {
        sleep(Duration::from_millis(1)).await;
        Ok::<_, Failed>(word)
    })
}
