//! Flags, by hand.

use std::time::Duration;

/// For people.
pub const USAGE: &str = "\
usage: hello [--exit CODE] [--crash-after MS] [--callback HOST:PORT] [--call HOST:PORT] [--echo PORT]
             [--memory MIB]
  --exit CODE           say hello, then exit with this code (0 to 255)
  --crash-after MS      serve, then end badly after so many milliseconds
  --callback HOST:PORT  connect there once at start
  --call HOST:PORT      ask there who answers, every second, and say it
  --echo PORT           say back what comes there, by TCP and UDP, the greeting before it
  --memory MIB          take and touch so much memory
environment: GREETING (hello), PORT (8080), ROBLE_INSTANCE";

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Exit at once with this code.
    pub exit: Option<u8>,
    /// End badly after this time.
    pub crash_after: Option<Duration>,
    /// Connect there once.
    pub callback: Option<String>,
    /// Ask there every second.
    pub call: Option<String>,
    /// Streams and datagrams that come there go back.
    pub echo: Option<u16>,
    /// MiB to touch.
    pub memory_mib: usize,
}

impl Flags {
    /// Reads `--flag value` and `--flag=value`.
    ///
    /// # Errors
    /// A sentence on the first mistake.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut flags = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let (flag, inline) = match argument.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let value = inline.or_else(|| arguments.next());
            let value = value.ok_or_else(|| format!("{flag} needs a value"))?;
            let bad = || format!("{flag}: `{value}` is not a number that fits");
            match flag.as_str() {
                "--exit" => flags.exit = Some(value.parse().map_err(|_| bad())?),
                "--crash-after" => flags.crash_after = Some(Duration::from_millis(value.parse().map_err(|_| bad())?)),
                "--callback" => flags.callback = Some(value),
                "--call" => flags.call = Some(value),
                "--echo" => flags.echo = Some(value.parse().map_err(|_| bad())?),
                "--memory" => {
                    flags.memory_mib = value.parse().ok().filter(|mib| *mib <= 1 << 20).ok_or_else(bad)?;
                }
                _ => return Err(format!("`{flag}` is not known")),
            }
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Flags, String> {
        Flags::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn both_spellings_are_read() {
        let flags = parse("--exit 3 --crash-after=50 --callback 10.0.0.1:9 --memory 5 --call server:8080").unwrap();
        assert_eq!(flags.call.as_deref(), Some("server:8080"));
        assert_eq!(flags.exit, Some(3));
        assert_eq!(flags.crash_after, Some(Duration::from_millis(50)));
        assert_eq!(flags.callback.as_deref(), Some("10.0.0.1:9"));
        assert_eq!(flags.memory_mib, 5);
    }

    #[test]
    fn mistakes_are_told() {
        for bad in [
            "--exit",
            "--exit 256",
            "--exit x",
            "--what 1",
            "stray 1",
            "--memory -1",
            "--memory 9999999999",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
