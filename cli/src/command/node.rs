//! Verbs that ask the net manager of the node they run on: `roble network routes`, `roble doctor network`.

use crate::console::Console;
use crate::failure::Failure;
use crate::flags::Format;
use crate::output::{self, Page, View};
use crate::text;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use http::Method;
use roble_core::time::Timestamp;
use roble_daemon::request;
use roble_proto::local_net::{Finding, Peer, SealedBy, Way};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

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
        "SEALED BY",
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
            text::or_dash(self.sealed_by.map(|by| match by {
                SealedBy::Kernel => "kernel",
                SealedBy::UserSpace => "user space",
            })),
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
pub(crate) async fn routes(here: &Here, format: Format, console: &mut Console) -> Result<(), Failure> {
    let peers: Vec<Peer> = get(&here.socket, "/v1/peers").await?;
    output::list(console, format, &peers)
}

/// `roble doctor`: fails if something is wrong.
pub(crate) async fn doctor(verb: &Doctor, format: Format, console: &mut Console) -> Result<(), Failure> {
    let Doctor::Network(here) = verb;
    let findings: Vec<Finding> = get(&here.socket, "/v1/findings").await?;
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
async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    let answer = request::local(socket, Method::GET, path, None::<&()>).await;
    Ok(answer
        .context("ask the net manager: is roble-net running on this machine, and may you (as root) use its socket?")?)
}
