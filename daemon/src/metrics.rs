//! The registry of a daemon's metrics, and those about its process.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of a daemon; those of the process are in it from the start. Clones share it.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// With the metrics of the process.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process {
            started: Instant::now(),
        }));
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Lets `register` add metrics. Not from within a collector.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// If a collector fails.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Reads `/proc/self` on each scrape.
#[derive(Debug)]
struct Process {
    started: Instant,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, value: Option<i64>| -> fmt::Result {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("process_resident_memory_bytes", "Memory resident", resident_bytes())?;
        gauge("process_open_fds", "File descriptors open", open_files())?;
        let uptime = i64::try_from(self.started.elapsed().as_secs()).ok();
        gauge("process_uptime_seconds", "Time since start", uptime)
    }
}

/// Resident set size from `/proc/self/statm`, in bytes.
fn resident_bytes() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = text.split_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    // `c_long` has 32 bits on armv7.
    #[allow(clippy::useless_conversion)]
    Some(pages * i64::from(page))
}

/// Entries of `/proc/self/fd`, without the one that reading it opens.
fn open_files() -> Option<i64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    i64::try_from(count).ok().map(|count| count - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn registered_and_process_metrics_are_rendered() {
        let metrics = Metrics::new();
        let counter = Counter::<u64>::default();
        metrics.register(|registry| registry.register("root_orders", "Orders sent", counter.clone()));
        counter.inc();
        let text = metrics.render().unwrap();
        for part in [
            "root_orders_total 1",
            "process_resident_memory_bytes ",
            "process_open_fds ",
            "process_uptime_seconds ",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(resident_bytes().unwrap() > 100_000 && open_files().unwrap() >= 3);
    }
}
