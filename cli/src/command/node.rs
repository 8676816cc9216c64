//! Verbs that ask the net manager of the node they run on: `roble network routes`, `roble doctor network`.

use crate::console::Console;
use crate::failure::Failure;
use crate::flags::Format;
use crate::output::{self, Page, View};
use crate::text;
use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use roble_core::time::Timestamp;
use roble_proto::local_net::{Finding, Peer, Way};
use serde::de::DeserializeOwned;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the net manager may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 16 << 20;

/// Which node.
#[derive(Debug, Args)]
pub struct Here {
    /// Socket of the net manager of this node.
    #[arg(long, value_name = "PATH", default_value = "/run/roble/net.sock")]
    socket: PathBuf,
}

/// Verbs of `doctor`.
#[derive(Debug, Subcommand)]
pub enum Doctor {
    /// Look for what gets into the network's way on this node: ranges that clash, rules that drop, nodes that do not answer.
    Network(Here),
}

impl View for Peer {
    const PLURAL: &'static str = "other nodes that this one talks to";
    const HEADERS: &'static [&'static str] = &[
        "NODE",
        "BLOCK",
        "WAY",
        "ENDPOINT",
        "RTT",
        "HANDSHAKE",
        "MTU",
        "RECEIVED",
        "SENT",
    ];

    fn name(&self) -> String {
        self.node.to_string()
    }

    fn row(&self, _: Timestamp) -> Vec<String> {
        let way = match self.way {
            Way::Vxlan => "vxlan",
            Way::Direct => "direct",
            Way::Relayed => "relayed",
            Way::None => "none",
        };
        vec![
            self.node.to_string(),
            self.block.to_string(),
            way.to_owned(),
            text::or_dash(self.endpoint),
            text::or_dash(self.rtt_ms.map(|rtt| format!("{rtt:.1}ms"))),
            text::or_dash(self.handshake_age_s.map(|age| format!("{age}s"))),
            text::or_dash(self.mtu),
            self.rx_bytes.to_string(),
            self.tx_bytes.to_string(),
        ]
    }

    fn describe(&self, page: &mut Page, _: Timestamp) {
        page.entry("Node", self.node.to_string());
    }
}

/// `roble network routes`.
pub(crate) fn routes(here: &Here, format: Format, console: &mut Console) -> Result<(), Failure> {
    let peers: Vec<Peer> = get(&here.socket, "/v1/peers")?;
    output::list(console, format, &peers)
}

/// `roble doctor`: fails if something is wrong.
pub(crate) fn doctor(verb: &Doctor, format: Format, console: &mut Console) -> Result<(), Failure> {
    let Doctor::Network(here) = verb;
    let findings: Vec<Finding> = get(&here.socket, "/v1/findings")?;
    match format {
        Format::Json | Format::Yaml => output::document(console, format, &findings)?,
        Format::Name | Format::Table => {
            for finding in &findings {
                writeln!(console.out, "{}: {}\n  {}", finding.code, finding.message, finding.hint)?;
            }
        }
    }
    if findings.is_empty() {
        console.hint(format_args!("nothing on this node gets into the network's way"));
        return Ok(());
    }
    Err(Failure::other(text::count(findings.len(), "finding")))
}

/// Asks the net manager.
fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    let unreachable = || {
        anyhow!(
            "cannot ask the net manager at {}: is roble-net running on this machine, and may you (as root) use its socket?",
            socket.display()
        )
    };
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().with_context(unreachable)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(unreachable)?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(Failure::other(format!(
            "the net manager answers {}",
            head.lines().next().unwrap_or_default()
        )));
    }
    Ok(serde_json::from_str(body).context("read what the net manager says; is it of another version?")?)
}
