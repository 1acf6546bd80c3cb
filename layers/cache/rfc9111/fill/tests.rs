use std::{
    collections::VecDeque,
    error::Error as StdError,
    io,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::Wake,
};

use http::HeaderValue;

use super::*;

mod failed;
mod kept;
mod property;
mod streamed;

/// A step of an upstream body. After the last step it is pending.
enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Fail(BoxError),
    Panic,
    End,
}

#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    /// The frames that were taken.
    taken: usize,
    task: Option<Waker>,
    /// The body says that it ends, as soon as no step is left.
    says_end: bool,
    panics_in_drop: bool,
    is_dropped: bool,
}

/// A body that is scripted by a test, also while it is received.
#[derive(Clone, Default)]
struct Upstream(Arc<Mutex<Script>>);

impl Upstream {
    fn then(&self, step: Step) {
        let mut script = self.0.lock();
        script.steps.push_back(step);
        let task = script.task.take();
        drop(script);
        task.into_iter().for_each(Waker::wake);
    }

    fn taken(&self) -> usize {
        self.0.lock().taken
    }

    fn is_dropped(&self) -> bool {
        self.0.lock().is_dropped
    }
}

struct UpstreamBody(Upstream);

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut script = self.0.0.lock();
        let Some(step) = script.steps.pop_front() else {
            script.task = Some(cx.waker().clone());
            return Poll::Pending;
        };
        script.taken += 1;
        drop(script);
        Poll::Ready(match step {
            Step::Data(data) => Some(Ok(Frame::data(data))),
            Step::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            Step::Fail(error) => Some(Err(error)),
            Step::Panic => panic!("in poll"),
            Step::End => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        let script = self.0.0.lock();
        script.says_end && script.steps.is_empty()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        let mut script = self.0.0.lock();
        script.is_dropped = true;
        let panics = script.panics_in_drop;
        drop(script);
        assert!(!panics, "in drop");
    }
}

#[derive(Default)]
struct Woken {
    times: AtomicUsize,
    panics: bool,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.times.fetch_add(1, SeqCst);
        assert!(!self.panics, "in wake");
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.times.load(SeqCst)
    }
}

/// A fill, with its task and its upstream.
struct Rig {
    fill: Arc<Fill>,
    upstream: Upstream,
    task: Option<Pin<Box<dyn Future<Output = Option<Content>> + Send>>>,
    woken: Arc<Woken>,
    /// How often it had been woken when it last waited.
    seen: usize,
    content: Option<Content>,
}

impl Rig {
    fn new(max: usize) -> Self {
        Self::sized(max, SizeHint::new())
    }

    fn sized(max: usize, size: SizeHint) -> Self {
        Self::of(Fill::alone(max, size))
    }

    fn of(fill: Arc<Fill>) -> Self {
        let upstream = Upstream::default();
        let task = Arc::clone(&fill).receive(UpstreamBody(upstream.clone()));
        Self { fill, upstream, task: Some(Box::pin(task)), woken: Arc::default(), seen: 0, content: None }
    }

    fn reader(&self) -> Reading {
        self.try_reader().expect("the beginning is no longer there")
    }

    fn try_reader(&self) -> Option<Reading> {
        Some(Reading { reader: self.fill.reader()?, woken: Arc::default(), got: Vec::new() })
    }

    /// Runs the task until it waits. Returns whether it has ended.
    fn run(&mut self) -> bool {
        let waker = Arc::clone(&self.woken).into();
        while let Some(task) = &mut self.task {
            let before = self.woken.times();
            if let Poll::Ready(content) = task.as_mut().poll(&mut Context::from_waker(&waker)) {
                (self.task, self.content) = (None, content);
            } else if self.woken.times() == before {
                self.seen = before;
                return false;
            }
        }
        true
    }

    /// Runs the task if it was woken since it last waited.
    fn run_if_woken(&mut self) {
        if self.woken.times() > self.seen {
            self.run();
        }
    }

    fn then(&mut self, step: Step) -> bool {
        self.upstream.then(step);
        self.run()
    }

    fn send(&mut self, data: impl Into<Bytes>) -> bool {
        self.then(Step::Data(data.into()))
    }

    fn end(&mut self) -> Option<Vec<u8>> {
        assert!(self.then(Step::End), "the task did not end");
        self.content.as_ref().map(|content| content.to_bytes().to_vec())
    }
}

#[derive(Debug, PartialEq)]
enum Read {
    Data(Bytes),
    Trailers(HeaderMap),
    Failed(String),
    Pending,
    End,
}

struct Reading {
    reader: Reader,
    woken: Arc<Woken>,
    got: Vec<u8>,
}

impl Reading {
    fn poll(&mut self) -> Read {
        let waker = Arc::clone(&self.woken).into();
        match self.reader.poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Pending => Read::Pending,
            Poll::Ready(None) => Read::End,
            Poll::Ready(Some(Err(error))) => Read::Failed(error.to_string()),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    self.got.extend_from_slice(&data);
                    Read::Data(data)
                }
                Err(frame) => Read::Trailers(frame.into_trailers().unwrap()),
            },
        }
    }

    /// Reads all data that is there, and returns the next result.
    fn read(&mut self) -> Read {
        loop {
            match self.poll() {
                Read::Data(data) => assert!(!data.is_empty()),
                other => return other,
            }
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.got).unwrap()
    }
}

fn failed(text: &str) -> Read {
    Read::Failed(text.to_owned())
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([("sum".parse().unwrap(), HeaderValue::from_static("7"))])
}

/// Bytes that differ from one chunk to the next.
fn chunk(number: usize, len: usize) -> Bytes {
    (0..len).map(|at| (number * 31 + at) as u8).collect()
}

fn held(rig: &Rig) -> usize {
    rig.fill.state.lock().tape.held()
}

const LOST: &str = "the call was dropped before its response ended";
const LAGGING: &str = "the cache no longer holds the next bytes of this response: the response is too large to be \
                       kept, and another caller reads it faster";
