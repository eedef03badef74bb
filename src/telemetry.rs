//! Logs to standard error: text for people, JSON lines for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Installs the subscriber. To be called once; later calls change nothing.
pub fn init(filter: &str, json: bool) {
    let filter = filter.parse::<EnvFilter>().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        // It would be said on the same stream, and a stream that nobody reads would end who says it.
        .log_internal_errors(false);
    let _ = if json {
        base.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        base.compact().try_init()
    };
}
