//! Values as bytes.

use std::fmt;

use bytes::Bytes;

/// Encodes values of a type as bytes that many processes share, and decodes them.
///
/// A pair of closures is a codec. They must name the types of their arguments:
///
/// ```
/// use bytes::Bytes;
/// use ziggurat::store::Codec;
///
/// let codec = (
///     |text: &String| Some(Bytes::from(text.clone())),
///     |bytes: Bytes| String::from_utf8(bytes.into()),
/// );
/// let bytes = codec.encode(&"hello".to_owned()).unwrap();
/// assert_eq!(codec.decode(bytes).unwrap(), "hello");
/// ```
///
/// Programs of different versions may share a server. A codec should recognize the bytes of another version, for
/// example by a number at their start, and refuse those that it does not know.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not encode values of type `{T}`",
    note = "give a pair of closures that name the types of their arguments: `(|value: &{T}| .., |bytes: Bytes| ..)`, returning `Option<Bytes>` and a `Result<{T}, _>` whose error implements `Display`",
    note = "`HttpCodec` needs an `http::Response` whose body is `Body<Data = Bytes> + Clone + From<Bytes>`, such as `Full<Bytes>`"
)]
pub trait Codec<T> {
    /// Why bytes could not be decoded.
    type Error: fmt::Display;

    /// Returns the value as bytes, or `None` if it is not to be shared.
    fn encode(&self, value: &T) -> Option<Bytes>;

    /// Returns the value that was encoded.
    ///
    /// # Errors
    ///
    /// If the bytes are not those of a value. A panic counts as an error too.
    fn decode(&self, bytes: Bytes) -> Result<T, Self::Error>;
}

#[diagnostic::do_not_recommend]
impl<T, E, D, X> Codec<T> for (E, D)
where
    E: Fn(&T) -> Option<Bytes>,
    D: Fn(Bytes) -> Result<T, X>,
    X: fmt::Display,
{
    type Error = X;

    fn encode(&self, value: &T) -> Option<Bytes> {
        self.0(value)
    }

    fn decode(&self, bytes: Bytes) -> Result<T, X> {
        self.1(bytes)
    }
}
