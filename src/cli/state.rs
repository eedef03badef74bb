//! `executor state`: looks at the state of functions of a running executor, changes and moves it.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::client::{Target, piece, upload};
use super::deploy::{Where, detail};

/// How long one request may take.
const LIMIT: Duration = Duration::from_mins(10);

/// How long all state may take to be sealed anew.
const ROTATION: Duration = Duration::from_hours(24);

/// Keys asked for at once.
const PAGE: usize = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// List the keys under which a function keeps state
    List {
        /// Name of the function
        function: String,
        /// Only keys that begin so
        #[arg(long, default_value = "", value_name = "TEXT")]
        prefix: String,
        #[command(flatten)]
        desk: DeskArgs,
    },
    /// Print the state under a key
    Get(KeyArgs),
    /// Store a value under a key; JSON if it is that, else bytes
    Put {
        #[command(flatten)]
        of: KeyArgs,
        /// The value; - reads standard input
        value: String,
    },
    /// Delete what is under a key, with its events and timers
    Delete(KeyArgs),
    /// Print the events of a key as JSON Lines
    History {
        #[command(flatten)]
        of: KeyArgs,
        /// The number of the first event
        #[arg(long, default_value_t = 1, value_name = "N")]
        from: u64,
    },
    /// Print all state of a function as JSON Lines, not encrypted
    Export {
        /// Name of the function
        function: String,
        #[command(flatten)]
        desk: DeskArgs,
    },
    /// Seal all state with the first key of --store-key-file
    Rotate {
        #[command(flatten)]
        place: Where,
    },
    /// Store what export printed, from standard input
    Import {
        /// Name of the function
        function: String,
        /// Replace what is there; otherwise it is refused
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        desk: DeskArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct DeskArgs {
    /// The store, if the function that says which is not deployed
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    #[command(flatten)]
    place: Where,
}

#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// Name of the function
    function: String,
    /// The key
    key: String,
    #[command(flatten)]
    desk: DeskArgs,
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl DeskArgs {
    /// The executor and a request about `path` below `/_/state/`.
    fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> anyhow::Result<(Target, http::request::Builder, String)> {
        let (target, key) = self.place.find()?;
        let store = self.store.iter().map(|store| ("store", store.as_str()));
        let query: Vec<_> = query
            .iter()
            .copied()
            .chain(store)
            .map(|(name, value)| format!("{name}={}", encoded(value)))
            .collect();
        let request = http::Request::builder().method(method).header(AUTHORIZATION, key);
        Ok((target, request, format!("/_/state/{path}?{}", query.join("&"))))
    }

    /// The whole answer, if it is a success.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        kind: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<Response<Bytes>> {
        let (target, mut request, path) = self.request(method, path, query)?;
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let answer = target.send(request, &path, body, LIMIT).await?;
        if !answer.status().is_success() {
            bail!("{}", detail(answer.body()));
        }
        Ok(answer)
    }

    /// Prints the answer while it comes, however long it is.
    async fn print(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<()> {
        let (target, request, path) = self.request(Method::GET, path, query)?;
        target
            .exchange(request, &path, Empty::<Bytes>::new(), async |answer| {
                let mut body = success(answer).await?;
                let mut out = std::io::stdout().lock();
                while let Some(piece) = piece(&mut body).await? {
                    out.write_all(&piece)?;
                }
                Ok(out.flush()?)
            })
            .await
    }
}

/// The body of an answer that is a success.
async fn success(answer: Response<Incoming>) -> anyhow::Result<Incoming> {
    if answer.status().is_success() {
        return Ok(answer.into_body());
    }
    bail!("{}", detail(&answer.into_body().collect().await?.to_bytes()))
}

impl KeyArgs {
    fn path(&self) -> String {
        format!("{}/{}", encoded(&self.function), encoded(&self.key))
    }
}

pub(super) fn state(command: &StateCommand) -> anyhow::Result<ExitCode> {
    super::block_on(run(command))?;
    Ok(ExitCode::SUCCESS)
}

async fn run(command: &StateCommand) -> anyhow::Result<()> {
    match command {
        StateCommand::List { function, prefix, desk } => list(function, prefix, desk).await,
        StateCommand::Get(of) => {
            let answer = of.desk.ask(Method::GET, &of.path(), &[], None, Bytes::new()).await?;
            let mut out = std::io::stdout().lock();
            out.write_all(answer.body())?;
            let json = answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
            if json {
                writeln!(out)?;
            }
            Ok(())
        }
        StateCommand::Put { of, value } => {
            let bytes = match value.as_str() {
                "-" => {
                    let mut all = Vec::new();
                    std::io::stdin().read_to_end(&mut all)?;
                    all
                }
                text => text.as_bytes().to_vec(),
            };
            let json = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
            let kind = if json { "application/json" } else { "application/octet-stream" };
            of.desk.ask(Method::PUT, &of.path(), &[], Some(kind), bytes.into()).await?;
            println!("stored {} as {}", of.key, if json { "JSON" } else { "bytes, because it is not JSON" });
            Ok(())
        }
        StateCommand::Delete(of) => {
            of.desk.ask(Method::DELETE, &of.path(), &[], None, Bytes::new()).await?;
            println!("deleted {}", of.key);
            Ok(())
        }
        StateCommand::History { of, from } => {
            let (path, from) = (format!("{}/history", of.path()), from.to_string());
            of.desk.print(&path, &[("from", &from)]).await
        }
        StateCommand::Export { function, desk } => {
            eprintln!("what follows is not encrypted, whatever the store is");
            desk.print(&encoded(function), &[("export", "true")]).await
        }
        StateCommand::Rotate { place } => {
            let (target, key) = place.find()?;
            let request = http::Request::post("/").header(AUTHORIZATION, key);
            let answer = target.send(request, "/_/keys/rotate", Bytes::new(), ROTATION).await?;
            if !answer.status().is_success() {
                bail!("{}", detail(answer.body()));
            }
            let told: Value = serde_json::from_slice(answer.body()).context("the answer is not JSON")?;
            println!("sealed {} values, events, timers and answers anew", told["sealed"]);
            Ok(())
        }
        StateCommand::Import { function, replace, desk } => import(function, *replace, desk).await,
    }
}

async fn list(function: &str, prefix: &str, desk: &DeskArgs) -> anyhow::Result<()> {
    let mut after: Option<String> = None;
    let limit = PAGE.to_string();
    let mut out = std::io::stdout().lock();
    loop {
        let mut query = vec![("prefix", prefix), ("limit", limit.as_str())];
        query.extend(after.as_deref().map(|after| ("after", after)));
        let answer = desk.ask(Method::GET, &encoded(function), &query, None, Bytes::new()).await?;
        let page: Value = serde_json::from_slice(answer.body()).context("the answer is not JSON")?;
        for one in page["keys"].as_array().into_iter().flatten() {
            let (bytes, updated) = (&one["bytes"], one["updated"].as_str().unwrap_or_default());
            writeln!(out, "{updated}  {bytes:>10}  {}", one["key"].as_str().unwrap_or_default())?;
        }
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => return Ok(()),
        }
    }
}

async fn import(function: &str, replace: bool, desk: &DeskArgs) -> anyhow::Result<()> {
    let query = [("replace", if replace { "true" } else { "false" })];
    let (target, request, path) = desk.request(Method::POST, &encoded(function), &query)?;
    let request = request.header(CONTENT_TYPE, "application/jsonl");
    let lines = upload(tokio::io::stdin(), |_| {});
    // Without a limit of time: it takes as long as the lines do, and the executor gives up on a caller that falls silent.
    let told = target.exchange(request, &path, lines, async |answer| {
        Ok(success(answer).await?.collect().await?.to_bytes())
    });
    let told: Value = serde_json::from_slice(&told.await?).context("the answer is not JSON")?;
    let refused = told["refused"].as_array().cloned().unwrap_or_default();
    for one in &refused {
        let key = one["key"].as_str().unwrap_or("?");
        eprintln!("line {}, {key}: {}", one["line"], one["why"].as_str().unwrap_or_default());
    }
    println!("imported {}", told["imported"]);
    if !refused.is_empty() {
        bail!(
            "{} entities were not imported",
            refused.len() as u64 + told["refused-besides"].as_u64().unwrap_or(0)
        );
    }
    Ok(())
}
