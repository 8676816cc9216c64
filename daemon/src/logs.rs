//! Log output of a daemon: standard error, text for people or JSON for machines.

use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line of text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// From the setting `log.format`; anything but `json` is text.
    pub fn from_name(name: &str) -> Self {
        if name == "json" { Self::Json } else { Self::Text }
    }
}

/// The process already has a log output, or the filter cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter has a mistake.
    #[error("log filter {filter:?}")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// There is a subscriber already.
    #[error("start logging")]
    AlreadyStarted(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends log lines of at least the level in `filter` (`info`, or `info,roble_daemon=debug`) to standard error.
///
/// # Errors
/// [`LogError`]; a process can do this once.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| LogError::Filter {
        filter: filter.into(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(LogError::AlreadyStarted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_filter_is_an_error_and_a_second_start_too() {
        assert!(matches!(
            init(LogFormat::Text, "roble=loud"),
            Err(LogError::Filter { .. })
        ));
        init(LogFormat::from_name("json"), "warn").unwrap();
        assert!(matches!(
            init(LogFormat::Text, "warn"),
            Err(LogError::AlreadyStarted(_))
        ));
    }
}
