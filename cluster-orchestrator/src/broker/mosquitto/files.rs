//! What is generated for the child.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use roble_core::ids::{ClusterId, NodeId};
use roble_daemon::files::{SECRET_MODE, ensure_private_dir, write_atomic};
use roble_proto::limits::{MQTT_PACKET_BYTES, MQTT_QUEUE_BYTES, MQTT_QUEUE_PACKETS};
use roble_proto::topics::{ALL_DOWN, ALL_UP, Branch, Direction, Topic};

use super::MosquittoConfig;

pub(super) const CONFIGURATION: &str = "mosquitto.conf";
pub(super) const ACCESS_LIST: &str = "access.list";

/// Common name in the cluster's certificate, which Mosquitto takes as user name; see `roble_daemon::pki`.
pub(in crate::broker) fn cluster_user(cluster: ClusterId) -> String {
    format!("c-{cluster}")
}

/// Common name in a node's certificate. The domain is left out there: 64 characters are allowed.
pub(in crate::broker) fn node_user(cluster: ClusterId, node: NodeId) -> String {
    format!("n-{node}.c-{cluster}")
}

/// The node with this user name.
pub(super) fn user_node(cluster: ClusterId, user: &str) -> Option<NodeId> {
    let name = user
        .strip_prefix("n-")?
        .strip_suffix(&cluster.to_string())?
        .strip_suffix(".c-")?;
    name.parse().ok()
}

pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    write_atomic(path, text.as_bytes(), SECRET_MODE).map_err(io::Error::other)
}

/// The folder with the configuration, and the first access list.
pub(super) fn prepare(config: &MosquittoConfig) -> io::Result<()> {
    ensure_private_dir(&config.folder).map_err(io::Error::other)?;
    write(
        &config.folder.join(ACCESS_LIST),
        &access_list(config.cluster, &config.admitted.iter().copied().collect()),
    )?;
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())?.map_or_else(|| "nobody".into(), |user| user.name);
    write(&config.folder.join(CONFIGURATION), &configuration(config, &user)?)
}

/// Mosquitto's configuration. `user`: whom it runs as; ours, since changing it would undo the wish to die with us.
pub(super) fn configuration(config: &MosquittoConfig, user: &str) -> io::Result<String> {
    let path = |path: &Path| match path.to_str() {
        Some(text) if !text.contains(['\n', '\r']) => Ok(text.to_owned()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "path not fit for mosquitto.conf",
        )),
    };
    let credential = path(&config.credential)?;
    Ok(format!(
        "\
# Written by roble-cluster at each start; changes are lost.
user {user}
persistence false
sys_interval 0
retain_available false
allow_anonymous false
allow_zero_length_clientid false
acl_file {access_list}
max_packet_size {packet}
max_queued_messages {queue_packets}
max_queued_bytes {queue_bytes}
max_inflight_messages 64
max_keepalive 1200
memory_limit 268435456
set_tcp_nodelay true
log_dest stderr
log_timestamp false
log_type error
log_type warning
log_type notice
log_type information
connection_messages true
listener {port} {address}
max_connections {clients}
max_qos 1
tls_version tlsv1.3
cafile {authority}
certfile {credential}
keyfile {credential}
require_certificate true
use_identity_as_username true
",
        access_list = path(&config.folder.join(ACCESS_LIST))?,
        packet = MQTT_PACKET_BYTES,
        queue_packets = MQTT_QUEUE_PACKETS,
        queue_bytes = MQTT_QUEUE_BYTES,
        port = config.listen.port(),
        address = config.listen.ip(),
        // The cluster's own, and one to put others out.
        clients = config.clients + 2,
        authority = path(&config.authority)?,
    ))
}

/// Who reaches what. Whoever is not in it reaches nothing.
pub(in crate::broker) fn access_list(cluster: ClusterId, nodes: &BTreeSet<NodeId>) -> String {
    let mut text = format!(
        "user {}\ntopic read {ALL_UP}\ntopic write {ALL_DOWN}\n",
        cluster_user(cluster)
    );
    for node in nodes {
        let _ = writeln!(text, "\nuser {}", node_user(cluster, *node));
        for branch in [Branch::Engine, Branch::Net] {
            for (access, direction) in [("write", Direction::Up), ("read", Direction::Down)] {
                let _ = writeln!(
                    text,
                    "topic {access} {}",
                    Topic {
                        node: *node,
                        branch,
                        direction
                    }
                );
            }
        }
    }
    text
}
