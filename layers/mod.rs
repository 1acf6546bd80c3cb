// One line per layer. `src/lib.rs` re-exports them, so that users write `ziggurat::timeout::TimeoutLayer`.

pub mod batch;
pub mod cache;
pub mod chaos;
pub mod circuit_breaker;
pub mod concurrency_limit;
pub mod context;
pub mod drain;
pub mod fallback;
pub mod hedge;
pub mod idempotency;
pub mod idempotency_key;
pub mod observe;
pub mod per_key;
pub mod propagate;
pub mod rate_limit;
pub mod rejection_response;
pub mod replay;
pub mod request_id;
pub mod resource;
pub mod retry;
pub mod shared_cache;
pub mod shared_rate_limit;
pub mod timeout;
pub mod upload;
