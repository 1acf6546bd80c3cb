//! The command line.

use std::{ffi::OsString, fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use http::{HeaderName, Uri, uri::Authority};
use tracing_subscriber::filter::Targets;

use super::{cache::Caching, limits::Limits, rfc9110};

pub(crate) const HELP: &str = "\
Proxies HTTP/1 and HTTP/2 to one upstream, which speaks HTTP/1.1. Without arguments it runs a demonstration and exits.

usage: reverse_proxy [OPTIONS] LISTEN UPSTREAM

  LISTEN    an address and a port, such as 127.0.0.1:8080
  UPSTREAM  the upstream's URI, such as http://127.0.0.1:3000

Times are numbers with a unit: 500ms, 10s, 5m or 1h. Defaults are in brackets.

  --head-timeout TIME   for a connection's first byte, and for a request's head from its first byte [10s]
  --keep-alive TIME     for the next request of a connection [60s]
  --total TIME          for a response to begin, with all attempts [30s]
  --attempt TIME        for a response to begin, in one attempt [10s]
  --upload TIME         for both, if the request's body is larger than 64 KiB or of unknown length [1h]
  --idle TIME           for the upstream to send more of a response [10s]
  --stalled TIME        for the caller to take more of a response, or to send more of a request [60s]
  --grace TIME          for calls in flight to end, once the proxy is stopping [30s]
  --connections N       maximum number of callers' connections; further ones wait to be accepted [512]
  --in-flight N         maximum number of calls in flight; the limit adapts up to it [256]
  --waiting N           maximum number of waiting calls; further ones get a 503 [256]
  --max-head BYTES      maximum size of a head; a larger request gets a 431, a larger response becomes a 502 [16384]
  --cache BYTES         memory for stored responses; 0 stores none [0]
  --stale-if-error TIME for a stored response after its expiry, to be used while the upstream fails [1h]
  --targeted HEADER     lets the upstream say with this header, such as CDN-Cache-Control, how the proxy caches
  --bare                makes one attempt, whatever the outcome, and opens no circuit
  --log FILTER          error, warn, info, debug, trace or off, also by target: warn,reverse_proxy=debug [$RUST_LOG or info]
  --help                print this help
";

/// From hyper's smallest buffer to a size that no proxy should need.
const HEADS: RangeInclusive<u32> = 8192..=16 * 1024 * 1024;

/// The maximum number of connections, and of calls.
const MOST: usize = 1_000_000;

/// The parsed command line.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    Help,
    Demo,
    Proxy(Box<Arguments>),
}

#[derive(Debug, PartialEq)]
pub(crate) struct Arguments {
    pub(crate) listen: String,
    pub(crate) upstream: Uri,
    pub(crate) limits: Limits,
    pub(crate) caching: Caching,
    pub(crate) log: Option<Targets>,
}

impl Command {
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut arguments = arguments.into_iter().map(|argument| {
            argument.into_string().map_err(|argument| format!("not UTF-8: {}", argument.to_string_lossy()))
        });
        let (mut limits, mut caching, mut log) = (Limits::default(), Caching::default(), None);
        let (mut places, mut options) = (Vec::new(), Vec::new());
        while let Some(argument) = arguments.next().transpose()? {
            if argument == "--help" || argument == "-h" {
                return Ok(Self::Help);
            }
            if !argument.starts_with('-') {
                places.push(argument);
                continue;
            }
            let (name, given) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            if options.contains(&name) {
                return Err(format!("{name} is given twice"));
            }
            let mut value = || match given.clone() {
                Some(value) => Ok(value),
                None => arguments.next().transpose()?.ok_or_else(|| format!("{name} needs a value")),
            };
            match name.as_str() {
                "--log" => log = Some(filter(name.as_str(), &value()?)?),
                "--bare" => limits.bare = switch(&name, given)?,
                "--cache" => caching.capacity = number(&name, &value()?, 0..=usize::MAX)?,
                "--stale-if-error" => caching.stale_if_error = time(&name, &value()?)?,
                "--targeted" => caching.targeted = Some(header(&name, &value()?)?),
                name => set(&mut limits, name, &mut value)?,
            }
            options.push(name);
        }
        if limits.attempt > limits.total {
            let Limits { attempt, total, .. } = limits;
            return Err(format!("an attempt of {attempt:?} is longer than the total of {total:?}"));
        }
        match <[String; 2]>::try_from(places) {
            Ok([listen, upstream]) => {
                let upstream = upstream_of(&upstream)?;
                Ok(Self::Proxy(Box::new(Arguments { listen, upstream, limits, caching, log })))
            }
            Err(none) if none.is_empty() && options.is_empty() => Ok(Self::Demo),
            Err(_) => Err("expected LISTEN and UPSTREAM, and no other arguments".into()),
        }
    }
}

fn set(limits: &mut Limits, name: &str, value: impl FnOnce() -> Result<String, String>) -> Result<(), String> {
    let of_time = match name {
        "--head-timeout" => Some(&mut limits.request_head),
        "--keep-alive" => Some(&mut limits.keep_alive),
        "--total" => Some(&mut limits.total),
        "--attempt" => Some(&mut limits.attempt),
        "--upload" => Some(&mut limits.upload),
        "--idle" => Some(&mut limits.idle),
        "--stalled" => Some(&mut limits.stalled),
        "--grace" => Some(&mut limits.grace),
        _ => None,
    };
    if let Some(limit) = of_time {
        *limit = time(name, &value()?)?;
        return Ok(());
    }
    match name {
        "--connections" => limits.connections = number(name, &value()?, 1..=MOST)?,
        "--in-flight" => limits.in_flight = number(name, &value()?, 1..=MOST)?,
        "--waiting" => limits.waiting = number(name, &value()?, 0..=MOST)?,
        "--max-head" => limits.head = number(name, &value()?, HEADS)?,
        _ => return Err(format!("unknown option {name}")),
    }
    Ok(())
}

fn switch(name: &str, value: Option<String>) -> Result<bool, String> {
    value.map_or(Ok(true), |_| Err(format!("{name} takes no value")))
}

fn header(name: &str, value: &str) -> Result<HeaderName, String> {
    value.parse().map_err(|_| format!("{name} needs the name of a header, not {value:?}"))
}

fn time(name: &str, value: &str) -> Result<Duration, String> {
    let (count, unit) = value.split_at(value.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(value.len()));
    let of = match unit {
        "ms" => Some(Duration::from_millis(1)),
        "s" => Some(Duration::from_secs(1)),
        "m" => Some(Duration::from_secs(60)),
        "h" => Some(Duration::from_secs(3600)),
        _ => None,
    };
    let time = of.and_then(|of| of.checked_mul(count.parse().ok()?)).filter(|time| !time.is_zero());
    time.ok_or_else(|| format!("{name} needs a time above zero, such as 500ms, 10s, 5m or 1h, not {value:?}"))
}

fn number<N: FromStr + PartialOrd + Display>(name: &str, value: &str, range: RangeInclusive<N>) -> Result<N, String> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("{name} needs a number from {} to {}, not {value:?}", range.start(), range.end()))
}

/// Parses a log filter from the option or variable `name`.
pub(crate) fn filter(name: &str, value: &str) -> Result<Targets, String> {
    value.parse().map_err(|error| format!("{name} is not a valid filter: {error}"))
}

/// Parses the upstream, which consists of scheme and authority only. The error does not repeat the argument, which may
/// contain a password.
pub(crate) fn upstream_of(argument: &str) -> Result<Uri, &'static str> {
    let is_host = |authority: &Authority| rfc9110::is_host(authority) && !authority.as_str().ends_with(':');
    let is_upstream = |uri: &Uri| {
        let is_bare = uri.path_and_query().is_none_or(|path| path == "/");
        uri.scheme_str() == Some("http") && uri.authority().is_some_and(is_host) && is_bare
    };
    argument.parse().ok().filter(is_upstream).ok_or("an upstream has the form http://HOST:PORT, with no path or query")
}
