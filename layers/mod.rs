// The layers, a line for each. `src/lib.rs` re-exports them, so that users write `ziggurat::timeout::TimeoutLayer`.

pub mod answer;
pub mod batch;
pub mod cache;
pub mod chaos;
pub mod circuit_breaker;
pub mod concurrency_limit;
pub mod context;
pub mod fallback;
pub mod identity;
pub mod observe;
pub mod propagate;
pub mod replay;
pub mod resource;
pub mod retry;
pub mod timeout;
pub mod upload;
