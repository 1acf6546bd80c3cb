//! The recommended stacks.

mod client;
mod live;
mod server;
