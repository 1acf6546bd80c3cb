//! Parses `--listen ADDRESS` for the example servers.

use std::{env, net::SocketAddr};

/// Returns the address to serve on until the program is stopped. With `None` the example calls itself, checks the
/// responses and ends.
pub(crate) fn address() -> Result<Option<SocketAddr>, String> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(None),
        ["--listen", address] => {
            let wrong =
                |error| format!("--listen needs an address such as 127.0.0.1:8080, and not {address:?}: {error}");
            address.parse().map(Some).map_err(wrong)
        }
        _ => Err("usage: [--listen ADDRESS], with an address such as 127.0.0.1:8080".into()),
    }
}
