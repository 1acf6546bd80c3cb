//! The connection of a round trip: a pipe in memory, or one of TCP on loopback.

use std::{
    future::{Ready, ready},
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, duplex},
    net::TcpStream,
};
use tower::Service;

/// A kind of connections.
pub(super) trait Link: AsyncRead + AsyncWrite + Unpin + Send + Sized + 'static {
    /// Whether the runtime polls the kernel.
    const OF_THE_KERNEL: bool;

    /// Returns both ends of a connection.
    fn pair() -> io::Result<(Self, Self)>;
}

impl Link for DuplexStream {
    const OF_THE_KERNEL: bool = false;

    fn pair() -> io::Result<(Self, Self)> {
        Ok(duplex(64 * 1024))
    }
}

impl Link for TcpStream {
    const OF_THE_KERNEL: bool = true;

    fn pair() -> io::Result<(Self, Self)> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let near = std::net::TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
        }
        Ok((Self::from_std(near)?, Self::from_std(far)?))
    }
}

/// Connects once, to the client's end of a pipe, and is the connection.
pub(super) struct Pipes<T>(Arc<Mutex<Option<T>>>);

impl<T> Pipes<T> {
    pub(super) fn new(near: T) -> Self {
        Self(Arc::new(Mutex::new(Some(near))))
    }
}

impl<T> Clone for Pipes<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Link> Service<Uri> for Pipes<T> {
    type Response = Pipe<T>;
    type Error = io::Error;
    type Future = Ready<io::Result<Pipe<T>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let pipe = self.0.lock().ok().and_then(|mut pipe| pipe.take());
        ready(pipe.map(|pipe| Pipe(TokioIo::new(pipe))).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

pub(super) struct Pipe<T>(TokioIo<T>);

impl<T: Link> Connection for Pipe<T> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl<T: Link> Read for Pipe<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: Link> Write for Pipe<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
