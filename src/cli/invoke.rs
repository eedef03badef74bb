//! `executor invoke`: calls a function of a running executor and shows answer, logs and timings.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::client::Target;

/// Longer than any function's own timeout should be; `--limit` changes it.
const LIMIT: &str = "10m";

/// How long the executor of this machine may take to find a folder that has just been made.
const NEW_FUNCTION: Duration = Duration::from_secs(2);
/// What it says before.
const UNKNOWN: &str = "urn:executor:unknown-function";

#[derive(Debug, Args)]
pub(super) struct InvokeArgs {
    /// Name of the function
    name: String,
    /// Body; @FILE reads a file, @- standard input
    #[arg(long, short = 'b', value_name = "BODY")]
    body: Option<String>,
    /// Method [default: GET, or POST with a body]
    #[arg(long, short = 'X', value_name = "METHOD")]
    method: Option<String>,
    /// Path and query that the function sees
    #[arg(long, short = 'p', default_value = "/", value_name = "PATH")]
    path: String,
    /// Header, may be repeated
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
    /// How long to wait
    #[arg(long, default_value = LIMIT, value_name = "TIME")]
    limit: String,
    /// Data folder of the executor, where URL and secret are found
    #[arg(long, env = "EXECUTOR_DATA", default_value = "./data", value_name = "FOLDER")]
    data: PathBuf,
    /// URL of the executor
    #[arg(long, env = "EXECUTOR_URL", value_name = "URL")]
    url: Option<String>,
    /// Secret of the callers
    #[arg(long, env = "OPEN_RUNTIMES_SECRET", hide_env_values = true, value_name = "SECRET")]
    secret: Option<String>,
    /// Key of the operators, for the logs
    #[arg(long, env = "OPR_EXECUTOR_SECRET", hide_env_values = true, value_name = "SECRET")]
    admin_secret: Option<String>,
}

pub(super) fn invoke(args: &InvokeArgs) -> anyhow::Result<ExitCode> {
    super::block_on(call(args))
}

async fn call(args: &InvokeArgs) -> anyhow::Result<ExitCode> {
    let target =
        Target::find(args.url.as_deref(), &args.data, args.secret.as_deref(), args.admin_secret.as_deref())?;
    let limit = crate::units::duration(&args.limit).map_err(anyhow::Error::msg)?;
    let body = read_body(args.body.as_deref())?;
    let method = match &args.method {
        Some(method) => method.to_uppercase(),
        None if args.body.is_some() => "POST".to_owned(),
        None => "GET".to_owned(),
    };
    let id = crate::http::call::new_request_id();
    let mut headers = HeaderMap::new();
    headers.insert("x-request-id", HeaderValue::from_str(&id)?);
    for header in &args.headers {
        let (name, value) =
            header.split_once(':').with_context(|| format!("`{header}` must be `name: value`"))?;
        let name: HeaderName =
            name.trim().parse().with_context(|| format!("`{name}` is not a header name"))?;
        let value: HeaderValue =
            value.trim().parse().with_context(|| format!("the value of `{name}` is not valid"))?;
        headers.append(name, value);
    }
    if let Some(secret) = &target.secret {
        let secret = secret.expose().parse().context("the secret does not fit into a header")?;
        headers.insert("x-open-runtimes-secret", secret);
    }
    let rest = args.path.strip_prefix('/').unwrap_or(&args.path);
    let path = if target.single { format!("/{rest}") } else { format!("/{}/{rest}", args.name) };
    let send = || {
        let mut request = http::Request::builder().method(method.as_str());
        request.headers_mut().context("the method is not one")?.extend(headers.clone());
        anyhow::Ok(target.send(request, &path, body.clone(), limit))
    };
    let mut answer = send()?.await?;
    let until = Instant::now() + if args.url.is_none() { NEW_FUNCTION } else { Duration::ZERO };
    while is_unknown(&answer) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(200)).await;
        answer = send()?.await?;
    }
    if answer.status() == http::StatusCode::UNAUTHORIZED {
        eprintln!(
            "hint: this executor was started with a secret of its own; give it as OPEN_RUNTIMES_SECRET or --secret"
        );
    }
    let logs = logs(&target, &id).await;
    if args.json { print_json(&answer, &logs) } else { print_text(&answer, &logs) }?;
    Ok(if answer.status().is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the executor knows no function of this name.
fn is_unknown(answer: &http::Response<Bytes>) -> bool {
    answer.status() == http::StatusCode::NOT_FOUND
        && serde_json::from_slice::<Value>(answer.body()).is_ok_and(|told| told["type"] == UNKNOWN)
}

fn read_body(body: Option<&str>) -> anyhow::Result<Bytes> {
    Ok(match body.map(|body| (body.strip_prefix('@'), body)) {
        None => Bytes::new(),
        Some((Some("-"), _)) => {
            let mut all = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut all)?;
            all.into()
        }
        Some((Some(file), _)) => {
            std::fs::read(Path::new(file)).with_context(|| format!("cannot read {file}"))?.into()
        }
        Some((None, text)) => text.to_owned().into(),
    })
}

/// The lines the call wrote; empty without an operator's key.
async fn logs(target: &Target, id: &str) -> Vec<Value> {
    let Some(key) = &target.admin_secret else { return Vec::new() };
    let request = http::Request::get("/").header(AUTHORIZATION, format!("Bearer {}", key.expose()));
    let path = format!("/_/executions/{id}");
    match target.send(request, &path, Bytes::new(), Duration::from_secs(3)).await {
        Ok(answer) if answer.status().is_success() => {
            let record: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            record["lines"].as_array().cloned().unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn header<'a>(answer: &'a http::Response<Bytes>, name: &str) -> &'a str {
    answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn print_text(answer: &http::Response<Bytes>, logs: &[Value]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(answer.body())?;
    if !answer.body().is_empty() && !answer.body().ends_with(b"\n") {
        writeln!(out)?;
    }
    out.flush()?;
    for line in logs {
        let level = line["level"].as_str().unwrap_or_default();
        eprintln!("{level:>8}  {}", line["text"].as_str().unwrap_or_default());
    }
    eprintln!("  status  {}", answer.status());
    let timings = header(answer, "server-timing").replace(";dur=", " ");
    eprintln!(" timings  {timings} (ms)");
    Ok(())
}

fn print_json(answer: &http::Response<Bytes>, logs: &[Value]) -> anyhow::Result<()> {
    let headers: serde_json::Map<String, Value> = answer
        .headers()
        .keys()
        .map(|name| {
            let values: Vec<_> =
                answer.headers().get_all(name).iter().map(|v| crate::headers::text(v)).collect();
            (name.to_string(), if values.len() == 1 { json!(values[0]) } else { json!(values) })
        })
        .collect();
    let timings: serde_json::Map<String, Value> = header(answer, "server-timing")
        .split(", ")
        .filter_map(|part| part.split_once(";dur="))
        .map(|(name, ms)| (name.to_owned(), json!(ms.parse::<f64>().unwrap_or_default())))
        .collect();
    let document = json!({
        "status": answer.status().as_u16(),
        "headers": headers,
        "body": String::from_utf8_lossy(answer.body()),
        "logs": logs,
        "timings_ms": timings,
    });
    println!("{}", serde_json::to_string_pretty(&document)?);
    Ok(())
}
