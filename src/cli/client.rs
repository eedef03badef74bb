//! One HTTP request to a running executor. Small on purpose: a loopback call needs no connection pool.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;

use crate::data_folder::{Running, find_running, is_anothers};
use crate::instance::Secret;

/// Bytes read and sent at once.
const PIECE: usize = 128 << 10;
/// How long an answer that comes in pieces may be silent.
const SILENCE: Duration = Duration::from_mins(2);

/// A running executor, found by its data folder or named by its URL.
pub(super) struct Target {
    pub(super) url: String,
    /// It serves one function, whose name is not part of the path.
    pub(super) single: bool,
    pub(super) secret: Option<Secret>,
    pub(super) admin_secret: Option<Secret>,
}

impl Target {
    /// What was given wins over what the data folder says.
    pub(super) fn find(
        url: Option<&str>,
        data: &Path,
        secret: Option<&str>,
        admin: Option<&str>,
    ) -> anyhow::Result<Self> {
        let found = find_running(data);
        let (running, kept, kept_admin) = match found {
            Some((running, secret, admin)) => (Some(running), secret, admin),
            None => (None, None, None),
        };
        let given = |secret: Option<&str>| secret.filter(|s| !s.is_empty()).map(Secret::new);
        let (url, single) = match (url, running) {
            (Some(url), _) => (url.trim_end_matches('/').to_owned(), false),
            (None, Some(Running { url, single, .. })) => (url, single),
            (None, None) if is_anothers(data) => bail!(
                "the files in {} belong to another user; use sudo, or give --url and the secrets",
                data.display()
            ),
            (None, None) => bail!(
                "no executor runs with the data folder {}; start one with `executor`, or name it with --url or --data",
                data.display()
            ),
        };
        Ok(Self { url, single, secret: given(secret).or(kept), admin_secret: given(admin).or(kept_admin) })
    }

    /// Sends a request for `path` and reads the whole answer.
    pub(super) async fn send(
        &self,
        request: http::request::Builder,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> anyhow::Result<http::Response<Bytes>> {
        let exchange = self.exchange(request, path, Full::new(body), async |answer| {
            let (parts, body) = answer.into_parts();
            Ok(http::Response::from_parts(parts, body.collect().await?.to_bytes()))
        });
        match tokio::time::timeout(limit, exchange).await {
            Ok(result) => result,
            Err(_) => bail!("{} did not answer within {limit:?}", self.url),
        }
    }

    /// Sends a request for `path` and has `read` take the answer while it comes. Without a limit of its own.
    pub(super) async fn exchange<B, T>(
        &self,
        request: http::request::Builder,
        path: &str,
        body: B,
        read: impl AsyncFnOnce(http::Response<Incoming>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    {
        let uri: http::Uri = self.url.parse().with_context(|| format!("`{}` is not a URL", self.url))?;
        let host = uri.host().context("the URL has no host")?;
        let port = uri.port_u16().unwrap_or(80);
        if uri.scheme_str() != Some("http") {
            bail!("only http:// URLs can be called");
        }
        let request = request.uri(path).header(http::header::HOST, format!("{host}:{port}"));
        let request = request.body(body).context("the request cannot be sent")?;
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port))
            .await
            .with_context(|| format!("nothing answers at {}", self.url))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async {
            let answer = sender.send_request(request).await.context("the request could not be sent")?;
            read(answer).await
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            end = connection => {
                end.context("the connection broke")?;
                exchange.await
            }
        }
    }
}

/// A body that is read while it is sent; `told` hears how many bytes went so far.
pub(super) fn upload<R: AsyncRead + Send + Unpin + 'static>(
    reader: R,
    told: impl Fn(u64) + Send + 'static,
) -> impl Body<Data = Bytes, Error = std::io::Error> {
    StreamBody::new(futures_util::stream::try_unfold(
        (reader, told, 0),
        |(mut reader, told, sent)| async move {
            let mut piece = BytesMut::with_capacity(PIECE);
            let read = reader.read_buf(&mut piece).await? as u64;
            told(sent + read);
            Ok((read > 0).then(|| (Frame::data(piece.freeze()), (reader, told, sent + read))))
        },
    ))
}

/// The next piece of an answer; an error once nothing comes for [`SILENCE`].
pub(super) async fn piece(body: &mut Incoming) -> anyhow::Result<Option<Bytes>> {
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await.context("the executor fell silent")?;
        match frame {
            None => return Ok(None),
            // Trailers have nothing for us.
            Some(frame) => {
                if let Ok(data) = frame?.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
