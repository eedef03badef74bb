//! A client that sends exactly what it is told, byte for byte, over a plain TCP stream.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::{LONG, Server};

/// An answer, or its head only.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body broke off before its announced end.
    pub broken: bool,
}

impl Reply {
    /// The one header of that name; `None` if there is none. Two are a mistake.
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "several {name}: {all:?}");
        all.first().copied()
    }

    /// Every header of that name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error} in the answer {}: {}", self.status, self.text()),
        }
    }

    /// Status, type and part of a problem document, for comparing in one go. Checks what all of them share.
    #[track_caller]
    pub fn problem(&self) -> String {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{}: {}",
            self.status,
            self.text()
        );
        let document = self.json();
        assert_eq!(document["status"], self.status);
        assert_eq!(document["request_id"].as_str(), self.header("x-request-id"));
        assert!(document["title"].as_str().is_some_and(|title| !title.is_empty()));
        let kind = document["type"].as_str().unwrap().strip_prefix("urn:executor:").expect("a stable type");
        format!("{} {kind} {}", self.status, document["part"].as_str().unwrap())
    }

    #[track_caller]
    pub fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap().to_owned()
    }
}

/// A connection.
pub struct Conn {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Conn {
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the executor takes what is sent");
    }

    /// Writes as far as the other side lets us.
    pub fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Reads more bytes; 0 at the end, also when that is a reset.
    pub fn fill(&mut self) -> usize {
        let mut piece = vec![0; 64 << 10];
        match self.stream.read(&mut piece) {
            Ok(n) => {
                self.buffer.extend_from_slice(&piece[..n]);
                n
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("nothing came: {error}; so far: {}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// Whether the other side closes without another byte.
    pub fn closes(&mut self) -> bool {
        self.buffer.is_empty() && self.fill() == 0
    }

    /// Reads the head of an answer; `None`: the connection ended.
    pub fn try_head(&mut self) -> Option<Reply> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if self.fill() == 0 {
                assert!(self.buffer.is_empty(), "half a head: {}", String::from_utf8_lossy(&self.buffer));
                return None;
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let head: String = head[..end].iter().map(|b| char::from(*b)).collect();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap();
        assert!(status.starts_with("HTTP/1.1 "), "{status}");
        let status = status[9..12].parse().unwrap();
        let pair = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header line");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Some(Reply { status, headers: lines.map(pair).collect(), ..Reply::default() })
    }

    #[track_caller]
    pub fn head(&mut self) -> Reply {
        self.try_head().expect("an answer, but the connection ended")
    }

    /// Reads a whole answer to a request with `method`.
    #[track_caller]
    pub fn reply(&mut self, method: &str) -> Reply {
        let mut reply = self.head();
        if method == "HEAD" || reply.status == 204 || reply.status == 304 || reply.status < 200 {
            return reply;
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                match self.chunk() {
                    None => {
                        reply.broken = true;
                        return reply;
                    }
                    Some(piece) if piece.is_empty() => return reply,
                    Some(piece) => reply.body.extend_from_slice(&piece),
                }
            }
        }
        let length: Option<usize> = reply.header("content-length").map(|length| length.parse().unwrap());
        while self.buffer.len() < length.unwrap_or(usize::MAX) && self.fill() > 0 {}
        let take = length.unwrap_or(usize::MAX).min(self.buffer.len());
        reply.broken = length.is_some_and(|length| take < length);
        reply.body = self.buffer.drain(..take).collect();
        reply
    }

    /// Reads one chunk of a chunked body; empty: its end; `None`: it broke off.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                break at;
            }
            if self.fill() == 0 {
                return None;
            }
        };
        let size = usize::from_str_radix(std::str::from_utf8(&self.buffer[..line]).unwrap(), 16).unwrap();
        while self.buffer.len() < line + 2 + size + 2 {
            if self.fill() == 0 {
                return None;
            }
        }
        let piece = self.buffer[line + 2..line + 2 + size].to_vec();
        self.buffer.drain(..line + 2 + size + 2);
        Some(piece)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// A request, with the secret unless it is taken away.
pub struct Outgoing<'a> {
    server: &'a Server,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
    keep: bool,
}

impl Outgoing<'_> {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub fn without_secret(mut self) -> Self {
        self.headers.retain(|(name, _)| name != "x-open-runtimes-secret");
        self
    }

    /// Without `connection: close`.
    pub fn keep_alive(mut self) -> Self {
        self.keep = true;
        self
    }

    /// The head as it goes over the wire. A given `host` or `content-length` wins over the usual one.
    pub fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        let mut add = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        let given = |name: &str| self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        if !given("host") {
            add("host", self.server.address());
        }
        if let Some(body) = &self.body
            && !given("content-length")
            && !given("transfer-encoding")
        {
            add("content-length", &body.len().to_string());
        }
        if !self.keep {
            add("connection", "close");
        }
        for (name, value) in &self.headers {
            add(name, value);
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// Sends the head on a new connection.
    pub fn open(&self) -> Conn {
        let mut conn = self.server.connect();
        conn.write(self.head());
        conn
    }

    /// Sends all of it on `conn` and reads the answer.
    #[track_caller]
    pub fn send_on(&self, conn: &mut Conn) -> Reply {
        conn.write(self.head());
        // A refusal may come, and the connection close, before all is sent: then the answer is what counts.
        if let Some(body) = &self.body {
            let _ = conn.try_write(body);
        }
        conn.reply(&self.method)
    }

    #[track_caller]
    pub fn send(&self) -> Reply {
        self.send_on(&mut self.server.connect())
    }
}

impl Server {
    pub fn connect(&self) -> Conn {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Conn { stream, buffer: Vec::new() }
    }

    pub fn request(&self, method: &str, target: &str) -> Outgoing<'_> {
        let secret = self.secret.iter().map(|secret| ("x-open-runtimes-secret".to_owned(), secret.clone()));
        Outgoing {
            server: self,
            method: method.to_owned(),
            target: target.to_owned(),
            headers: secret.collect(),
            body: None,
            keep: false,
        }
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Reply {
        self.request("GET", target).send()
    }

    #[track_caller]
    pub fn post(&self, target: &str, body: impl Into<Vec<u8>>) -> Reply {
        self.request("POST", target).body(body).send()
    }

    /// A GET that must be answered with 200.
    #[track_caller]
    pub fn ok(&self, target: &str) -> Reply {
        let reply = self.get(target);
        assert_eq!(reply.status, 200, "GET {target}: {}", reply.text());
        reply
    }
}

/// Sends a chunked body in these pieces.
pub fn chunked<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// Bounds a read that is expected not to end.
pub fn set_limit(conn: &Conn, limit: Duration) {
    conn.stream.set_read_timeout(Some(limit)).unwrap();
}
