//! The recommended stacks.

mod client;
mod live;
mod ready;
mod server;
