//! Streams, on a paused clock.

mod batches;
mod pipeline;
mod scoped;
mod sources;
mod wakers;
