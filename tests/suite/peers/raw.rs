//! Peers that send malformed or unusual bytes.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::soon;

/// A server that responds with these bytes on its first connections, one each, and forwards the others to a proper
/// server.
pub(super) struct RawServer {
    pub(super) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl RawServer {
    /// `well` is the server for the other connections.
    pub(super) async fn start(answers: Vec<Vec<u8>>, well: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), accepted: Arc::default() };
        let accepted = Arc::clone(&server.accepted);
        let mut answers = answers.into_iter();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                match answers.next() {
                    Some(answer) => drop(tokio::spawn(answer_one(stream, answer))),
                    None => drop(tokio::spawn(lead_on(stream, well))),
                }
            }
        });
        server
    }

    /// Returns the number of accepted connections.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn answer_one(mut stream: TcpStream, answer: Vec<u8>) -> io::Result<()> {
    read_request(&mut stream).await?;
    stream.write_all(&answer).await?;
    stream.shutdown().await?;
    // Closing a socket with unread data resets it, and the response may be lost.
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn lead_on(mut stream: TcpStream, well: SocketAddr) -> io::Result<()> {
    tokio::io::copy_bidirectional(&mut stream, &mut TcpStream::connect(well).await?).await?;
    Ok(())
}

/// Reads the head of a request: of HTTP/1, or the HTTP/2 frames up to it.
async fn read_request(stream: &mut TcpStream) -> io::Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    if head != PREFACE {
        return Ok(());
    }
    stream.read_exact(&mut [0; b"SM\r\n\r\n".len()]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, ..] = head;
        stream.read_exact(&mut vec![0; u32::from_be_bytes([0, a, b, c]) as usize]).await?;
        if kind == HEADERS {
            return Ok(());
        }
    }
}

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// Builds an HTTP/2 frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends these bytes, closes that direction, and reads everything that comes back.
pub(super) async fn send(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = soon(TcpStream::connect(to)).await.unwrap();
    let mut answer = Vec::new();
    // A server that has seen enough may break off meanwhile.
    let exchanged = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut answer).await
    };
    soon(exchanged).await.unwrap_or_default();
    answer
}
