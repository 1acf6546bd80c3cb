//! The value of a key in the store, as bytes.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode, header};

use super::key::Fingerprint;
use crate::store::{put_headers, take_headers};

/// The version of the format. A process that does not know it runs no handler.
const VERSION: u8 = 1;

/// The state of a key in the store.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    /// A process runs the handler. The number is of this run alone.
    Claim(u128),
    /// The handler's response.
    Answer(Arc<Answer>),
    /// The handler's response is larger than the layer or the store can keep.
    TooLarge,
}

/// A stored response.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

/// Returns the headers without those of the connection (RFC 9110, 7.6.1): a replay has another one.
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    const OF_CONNECTION: [HeaderName; 6] = [
        header::CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    let mut kept = headers.clone();
    for value in headers.get_all(header::CONNECTION) {
        for name in value.as_bytes().split(|byte| *byte == b',') {
            if let Ok(name) = HeaderName::from_bytes(name.trim_ascii()) {
                kept.remove(name);
            }
        }
    }
    for name in OF_CONNECTION {
        kept.remove(name);
    }
    kept
}

impl Record {
    pub(super) fn encode(&self, print: Fingerprint) -> Bytes {
        let mut to = BytesMut::new();
        to.put_u8(VERSION);
        to.put_u128(print.0);
        match self {
            Self::Claim(number) => {
                to.put_u8(0);
                to.put_u128(*number);
            }
            Self::Answer(answer) => {
                let Answer { status, headers, body, trailers } = &**answer;
                to.put_u8(if trailers.is_some() { 2 } else { 1 });
                to.put_u16(status.as_u16());
                put_headers(&mut to, headers);
                if let Some(trailers) = trailers {
                    put_headers(&mut to, trailers);
                }
                to.put_slice(body);
            }
            Self::TooLarge => to.put_u8(3),
        }
        to.freeze()
    }

    /// Returns the record and the fingerprint of its request, or `None` if the bytes are no record.
    pub(super) fn decode(mut from: Bytes) -> Option<(Fingerprint, Self)> {
        let from = &mut from;
        if from.try_get_u8().ok()? != VERSION {
            return None;
        }
        let print = Fingerprint(from.try_get_u128().ok()?);
        let record = match from.try_get_u8().ok()? {
            0 => Self::Claim(from.try_get_u128().ok()?),
            kind @ (1 | 2) => {
                let status = StatusCode::from_u16(from.try_get_u16().ok()?).ok()?;
                let headers = take_headers(from)?;
                let trailers = if kind == 2 { Some(take_headers(from)?) } else { None };
                let body = from.split_off(0);
                Self::Answer(Arc::new(Answer { status, headers, body, trailers }))
            }
            3 => Self::TooLarge,
            _ => return None,
        };
        from.is_empty().then_some((print, record))
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn headers() -> impl Strategy<Value = HeaderMap> {
        vec(("[a-c]{1,2}", "[ -~]{0,5}"), 0..4).prop_map(|headers| {
            headers
                .into_iter()
                .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
                .collect()
        })
    }

    fn record() -> impl Strategy<Value = Record> {
        let answer = (100..1000_u16, headers(), vec(any::<u8>(), 0..9), option::of(headers())).prop_map(
            |(status, headers, body, trailers)| {
                let status = StatusCode::from_u16(status).unwrap();
                Record::Answer(Arc::new(Answer { status, headers, body: body.into(), trailers }))
            },
        );
        prop_oneof![answer, any::<u128>().prop_map(Record::Claim), Just(Record::TooLarge)]
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(record in record(), print in any::<u128>()) {
            let (read, other) = Record::decode(record.encode(Fingerprint(print))).unwrap();
            prop_assert_eq!((read.0, other), (print, record));
        }

        /// A record that is cut short is not read, unless only the body of a response is shorter.
        #[test]
        fn other_bytes_are_read_without_a_panic(record in record(), cut in 0..99_usize, noise in vec(any::<u8>(), 0..99)) {
            let bytes = record.encode(Fingerprint(7));
            let cut = bytes.slice(..cut.min(bytes.len()));
            if let Some((_, read)) = Record::decode(cut.clone()) {
                let is_shorter = matches!((&read, &record), (Record::Answer(read), Record::Answer(whole))
                    if whole.body.starts_with(&read.body) && whole.headers == read.headers);
                prop_assert!(is_shorter || read == record, "{read:?}");
            }
            let _ = Record::decode([&cut[..], &noise].concat().into());
            let _ = Record::decode(noise.into());
        }
    }
}
