//! Pages that go beyond the reference of single modules. This module holds no code.
//!
//! - [`guide`]: each pattern on one page, with its code, its behaviour under failure, and its settings.
//! - [`how_to`]: short answers with code, from a breaker for each host to a reload of settings.
//! - [`overload`]: how the layers work together under overload and after an outage, with figures.
//! - [`http_cache`]: how the HTTP cache does in the conformance suite for caches, beside other caches.
//! - [`coming_from`]: tower, tower-resilience, seatbelt and reqwest-middleware, line by line.
//! - [`metrics`]: each metric and event, with its labels, fields and level.
//! - [`it_does_not_compile`]: the compiler's messages for common mistakes, with their causes and fixes.
//! - [`promises`]: each promise of this crate, with the tests that show it.
//!
//! # Examples
//!
//! The repository has a program for each pattern and for each HTTP library. Each of them runs offline with
//! `cargo run --example NAME`, and checks its own result.
//!
//! | example | shows |
//! |---|---|
//! | `timeouts` | a limit for each call, a limit from the scope, and a total around attempts with their own limits |
//! | `retry`, `retry_http` | retries of an operation, and over HTTP against a real server |
//! | `hedge` | a second attempt for reads that are slow, over HTTP |
//! | `process_items`, `process_errors` | concurrent processing of many items, some of which fail |
//! | `cache`, `scoped_state` | cached values for several tenants, and a ttl that changes at run time |
//! | `streams` | generators in a scope, batches by number and by time, merged streams |
//! | `connection_pool` | a pool of SQLite connections, one of which breaks |
//! | `publish_subscribe` | an event and its subscribers |
//! | `circuit_breaker` | a circuit that opens and closes by itself and by hand |
//! | `batches`, `batch_calls` | items in batches with a progress bar, and single calls that share a request |
//! | `large_dataset` | a million rows in the memory of a few batches |
//! | `scope` | set-up, tasks, cancellation and tear-down |
//! | `recommended_stacks` | `ServerStack` and `ClientStack`, with settings from a file |
//! | `failure_drill` | injected faults, and the recovery |
//! | `axum_router`, `hyper_server`, `tonic_server` | servers |
//! | `rate_limit` | a rate for each API key of an axum router |
//! | `shared_rate_limit` | two processes that share a rate through Redis |
//! | `per_host` | a circuit breaker for each host, over one HTTP client |
//! | `drain` | a server that is shut down gracefully, with an open stream |
//! | `hyper_client`, `hyper_client_h2`, `reqwest_client`, `tonic_client` | clients |
//! | `reverse_proxy` | a server and a client at once, with an HTTP cache between them |
//! | `plain_function` | a stack around an async function, kept in a struct |
//! | `tokens_per_minute` | requests and tokens of a language model: reserved by an estimate, and settled at the end |
//! | `idempotency` | a `POST` that a client sends twice, and an axum server processes once |
//! | `own_layer` | a custom layer that uses the crate's vocabulary |

/// Adds a page of `docs/`. The links of a page are reference links: the definitions at its end lead to files, for
/// readers of the repository. Here, those in `rustdoc-links.md` come first and win. Doctests have no links, and count
/// their lines from the page's first line.
macro_rules! page {
    ($name:ident, $file:literal) => {
        #[cfg_attr(not(doctest), doc = include_str!("../docs/rustdoc-links.md"))]
        #[doc = include_str!(concat!("../docs/", $file, ".md"))]
        pub mod $name {}
    };
}

page!(guide, "guide");
page!(how_to, "how-to");
page!(overload, "overload");
page!(http_cache, "http-cache");
page!(coming_from, "coming-from");
page!(metrics, "metrics");
page!(promises, "promises");
page!(it_does_not_compile, "it-does-not-compile");
