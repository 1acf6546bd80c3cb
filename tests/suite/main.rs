//! One binary, a module for each subject.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails should say where")]

mod answer;
mod batch;
mod body;
mod body_end;
mod cache;
mod chaos;
mod circuit_breaker;
mod classify;
mod concurrency_limit;
mod concurrent;
mod context;
mod drain;
mod events;
mod fallback;
mod faulty_layers;
mod grpc;
mod http;
mod identity;
mod observe;
mod peers;
mod propagate;
mod replay;
mod resource;
mod retry;
mod scope;
mod scope_closing;
mod scope_disposables;
mod scope_events;
mod scope_programs;
mod scope_tasks;
mod service_laws;
mod stack;
mod stream;
mod timeout;
mod upload;
