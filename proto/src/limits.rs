//! Sizes, ports and counts that both ends of a contract must agree on.

/// REST API of the root, HTTPS.
pub const ROOT_API_PORT: u16 = 10_000;
/// Cluster link of the root, gRPC over mutual TLS.
pub const ROOT_LINK_PORT: u16 = 50_052;
/// Node link of a cluster, MQTT over mutual TLS.
pub const CLUSTER_MQTT_PORT: u16 = 10_003;
/// Join, renewal and streams of a cluster, HTTPS.
pub const CLUSTER_API_PORT: u16 = 10_100;

/// Largest MQTT packet, bytes.
pub const MQTT_PACKET_BYTES: usize = 256 * 1024;
/// Largest gRPC message, bytes.
pub const GRPC_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Largest REST body, bytes.
pub const HTTP_BODY_BYTES: usize = 1024 * 1024;
/// Largest descriptor, bytes.
pub const DESCRIPTOR_BYTES: usize = 256 * 1024;
/// Largest encoded spec of one instance, bytes; leaves room for headers within an MQTT packet.
pub const INSTANCE_SPEC_BYTES: usize = 96 * 1024;
/// Most packets queued for one MQTT client.
pub const MQTT_QUEUE_PACKETS: usize = 256;
/// Most bytes queued for one MQTT client.
pub const MQTT_QUEUE_BYTES: usize = 1024 * 1024;
/// Most replicas of one service.
pub const REPLICAS: u32 = 1_000;
