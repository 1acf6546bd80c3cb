//! Whether an error proves that the request was not processed, or that no other attempt can succeed.

use std::{error::Error as StdError, io};

/// Returns whether this error proves that no service has processed the request, so that even a request that is not
/// idempotent can be sent again.
///
/// It searches the chain of sources for
///
/// - a connection that was refused ([`io::ErrorKind::ConnectionRefused`]);
/// - with the feature `hyper`: a client of hyper-util that could not connect, and a request that hyper never began to
///   write;
/// - with the feature `http2` (and with `tonic`): a stream that the server refused (`REFUSED_STREAM`), or that came
///   after the last one that it processes (`GOAWAY`);
/// - with the feature `reqwest`: a `reqwest::Client` that could not connect;
/// - with the feature `tonic`: a channel that could not connect.
///
/// Any other error counts as sent. A connection that was reset, or closed before a response arrived (hyper's
/// `IncompleteMessage`), may have delivered the request. So may an error of the request's own body.
///
/// [`RetryLayer::http`](crate::retry::RetryLayer::http) checks the errors of its service with this function, and cannot
/// see further. A service that sends *several* requests for one call (for example, because it follows redirects) can
/// fail to connect for the second of them.
#[must_use]
pub fn is_unprocessed(error: &(dyn StdError + 'static)) -> bool {
    for error in chain(error) {
        if is_of_the_body(error) {
            return false;
        }
        if was_refused(error) || could_not_connect(error) || was_not_begun(error) {
            return true;
        }
    }
    false
}

/// Iterates over this error and its sources. The error inside an `io::Error` is not among its sources, and takes its
/// place.
pub(super) fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let inner = error.downcast_ref().and_then(io::Error::get_ref);
        inner.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source())
    })
}

fn was_refused(error: &(dyn StdError + 'static)) -> bool {
    error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn could_not_connect(error: &(dyn StdError + 'static)) -> bool {
    #[cfg(feature = "hyper")]
    if error.downcast_ref().is_some_and(hyper_util::client::legacy::Error::is_connect) {
        return true;
    }
    #[cfg(feature = "reqwest")]
    if error.downcast_ref().is_some_and(reqwest::Error::is_connect) {
        return true;
    }
    #[cfg(feature = "tonic")]
    if error.is::<tonic::ConnectError>() {
        return true;
    }
    let _ = error;
    false
}

fn was_not_begun(error: &(dyn StdError + 'static)) -> bool {
    #[cfg(feature = "hyper")]
    if error.downcast_ref().is_some_and(hyper::Error::is_canceled) {
        return true;
    }
    #[cfg(any(feature = "http2", feature = "tonic"))]
    if let Some(error) = error.downcast_ref::<h2::Error>()
        && error.is_remote()
    {
        // h2 does not report this error for a stream that the server still processes: it continues, or ends with the
        // connection.
        return error.is_go_away() || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM));
    }
    let _ = error;
    false
}

/// Returns whether the caller itself caused the error, in the middle of the request.
fn is_of_the_body(error: &(dyn StdError + 'static)) -> bool {
    #[cfg(feature = "hyper")]
    if error.downcast_ref().is_some_and(hyper::Error::is_user) {
        return true;
    }
    let _ = error;
    false
}

/// Returns whether the error is a certificate that failed verification, and so would fail again. Always false without
/// the feature `rustls`.
pub(crate) fn is_bad_certificate(error: &(dyn StdError + 'static)) -> bool {
    #[cfg(feature = "rustls")]
    if chain(error).any(|error| matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))) {
        return true;
    }
    let _ = error;
    false
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;
    use crate::outcome::{Error, Reject};

    #[derive(Debug)]
    struct Wrapped(Box<dyn StdError + Send + Sync>);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }

    impl StdError for Wrapped {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&*self.0)
        }
    }

    /// Shows: F4
    #[test]
    fn a_connection_that_was_refused_is_found_wherever_it_lies() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(is_unprocessed(&refused()));
        assert!(is_unprocessed(&Wrapped(Box::new(Wrapped(refused().into())))));
        // The source of an `io::Error` is the source of the error inside it.
        assert!(is_unprocessed(&io::Error::other(refused())));
        assert!(is_unprocessed(&io::Error::other(Wrapped(Box::new(io::Error::other(refused()))))));
        for other in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::TimedOut] {
            assert!(!is_unprocessed(&Wrapped(Box::new(io::Error::from(other)))), "{other}");
        }
        assert!(!is_unprocessed(&Wrapped("connection refused".into())), "a message proves nothing");
    }

    /// Shows: F4
    #[test]
    fn the_error_of_a_stack_is_looked_into_where_its_type_is_known() {
        fn found<E: Reject<()>>(error: E) -> bool {
            E::cause(&Err(error)).is_some_and(is_unprocessed)
        }
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(found(Error::Service(refused())));
        assert!(found(Error::Service(crate::outcome::boxed(refused()))));
        assert!(found(Error::Service(crate::outcome::boxed(Wrapped(refused().into())))));
        // Only the sources of a box that may hold a borrowed error are visible.
        assert!(found(crate::outcome::boxed(Wrapped(refused().into()))));
        assert!(!found(Error::Service("connection refused")));
        #[cfg(feature = "tonic")]
        assert!(found(crate::outcome::grpc::status(Wrapped(refused().into()))));
    }

    /// Shows: F4
    #[cfg(feature = "tonic")]
    #[test]
    fn a_channel_that_could_not_connect_is_seen_in_its_status() {
        let refused = || crate::outcome::boxed("handshake failed");
        assert!(is_unprocessed(&crate::outcome::grpc::status(tonic::ConnectError(refused()))));
        assert!(!is_unprocessed(&crate::outcome::grpc::status(refused())));
        assert!(!is_unprocessed(&tonic::Status::unavailable("connection refused")), "it may come from a server");
    }

    #[cfg(feature = "rustls")]
    #[test]
    fn a_certificate_that_does_not_verify_is_found() {
        let bad = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let handshake = io::Error::new(io::ErrorKind::InvalidData, bad);
        assert!(is_bad_certificate(&Wrapped(Box::new(handshake))));
        let other = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::HandshakeNotComplete);
        assert!(!is_bad_certificate(&other));
    }
}
