//! One HTTP request to a running executor. Small on purpose: a loopback call needs no connection pool.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::data_folder::{Running, find_running};
use crate::instance::Secret;

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
        mut request: http::request::Builder,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> anyhow::Result<http::Response<Bytes>> {
        let uri: http::Uri = self.url.parse().with_context(|| format!("`{}` is not a URL", self.url))?;
        let host = uri.host().context("the URL has no host")?;
        let port = uri.port_u16().unwrap_or(80);
        if uri.scheme_str() != Some("http") {
            bail!("only http:// URLs can be called");
        }
        request = request.uri(path).header(http::header::HOST, format!("{host}:{port}"));
        let request = request.body(Full::new(body)).context("the request cannot be sent")?;
        let exchange = async {
            let stream = TcpStream::connect((host.trim_matches(['[', ']']), port))
                .await
                .with_context(|| format!("nothing answers at {}", self.url))?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let exchange = async {
                let (parts, body) = sender.send_request(request).await?.into_parts();
                let body = body.collect().await?.to_bytes();
                anyhow::Ok(http::Response::from_parts(parts, body))
            };
            let mut exchange = std::pin::pin!(exchange);
            tokio::select! {
                answer = &mut exchange => answer,
                end = connection => {
                    end.context("the connection broke")?;
                    exchange.await
                }
            }
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(result) => result,
            Err(_) => bail!("{} did not answer within {limit:?}", self.url),
        }
    }
}
