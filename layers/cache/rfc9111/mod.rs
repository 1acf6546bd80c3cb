//! A shared HTTP cache by RFC 9111.
#![allow(dead_code)]

mod body;
mod fill;
