//! `executor health`: for health checks of containers, which have no curl.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;

use super::client::Target;

const LIMIT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Data folder of the executor
    #[arg(long, env = "EXECUTOR_DATA", default_value = "./data", value_name = "FOLDER")]
    data: PathBuf,
    /// Its URL, if it is not to be found by the data folder
    #[arg(long, env = "EXECUTOR_URL", value_name = "URL")]
    url: Option<String>,
}

pub(super) fn health(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let target = Target::find(args.url.as_deref(), &args.data, None, None)?;
    let path = if target.single { "/__opr/health" } else { "/_/health" };
    let request = target.send(http::Request::get("/"), path, Bytes::new(), LIMIT);
    let answer = super::block_on(request)?;
    println!("{}", String::from_utf8_lossy(answer.body()));
    Ok(if answer.status().is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
