//! One client, from its first byte to its last.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use roble_core::ids::NodeId;
use roble_proto::topics::{Branch, Direction, may_use, parse_client_id};
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, Publish, Subscribe, SubscribeReasonCode, Unsubscribe,
};
use rumqttc::mqttbytes::{Protocol, QoS};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::codec::decode;
use super::inbox::Budget;
use super::queue::{Answer, Batch, Queue, encode};
use super::{Hub, Open};

/// Largest CONNECT; one of ours has about 50 bytes.
const CONNECT_BYTES: usize = 1024;
/// Most filters in one packet.
const FILTERS: usize = 8;
/// Write buffers larger than this are given back.
const KEEP_BYTES: usize = 1024;
/// Time for the farewell to a client that is put out.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// DISCONNECT, or an orderly end of the stream.
    Left,
    /// The stream broke.
    Lost,
    /// A newer connection has its name.
    Replaced,
    /// The node is revoked.
    Revoked,
    /// The node has too many connections.
    TooMany,
    /// No CONNECT came in time.
    NoConnect,
    /// CONNECT asked for another name or for what is not offered.
    Refused,
    /// It said nothing for too long.
    Silent,
    /// It took nothing for too long.
    Stalled,
    /// A packet was malformed, too large, or out of place.
    Protocol,
    /// It published to a topic that is not its own.
    ForbiddenPublish,
}

/// One connection, as others see it.
pub(super) struct Client {
    pub(super) node: NodeId,
    pub(super) queue: Queue,
    pub(super) budget: Budget,
    closed: CancellationToken,
    reason: OnceLock<Close>,
}

impl Client {
    pub(super) fn new(node: NodeId, inbox_bytes: usize) -> Self {
        Self {
            node,
            queue: Queue::default(),
            budget: Budget::new(inbox_bytes),
            closed: CancellationToken::new(),
            reason: OnceLock::new(),
        }
    }

    /// Ends the connection; the first reason counts.
    pub(super) fn close(&self, reason: Close) {
        let _ = self.reason.set(reason);
        self.closed.cancel();
    }
}

pub(super) async fn serve<S>(hub: &Arc<Hub>, node: NodeId, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut open = match hub.open(node) {
        Ok(open) => open,
        Err(reason) => return ended(hub, node, reason),
    };
    let client = open.client.clone();
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (
        Reader {
            stream: reader,
            buffer: BytesMut::new(),
        },
        writer,
    );
    let reason = tokio::select! {
        () = client.closed.cancelled() => client.reason.get().copied().unwrap_or(Close::Lost),
        Err(reason) = session(&mut open, &mut reader, &mut writer) => reason,
    };
    // First, so that the end is reported now and not after the farewell.
    drop(open);
    ended(hub, node, reason);
    if reason != Close::Lost && reason != Close::Stalled {
        let _ = timeout(FAREWELL, writer.shutdown()).await;
    }
}

fn ended(hub: &Hub, node: NodeId, reason: Close) {
    hub.counters.closed(reason);
    tracing::debug!(%node, ?reason, "connection ended");
}

enum Never {}

async fn session<S>(open: &mut Open, reader: &mut Reader<S>, writer: &mut WriteHalf<S>) -> Result<Never, Close>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let limits = open.hub.limits;
    let deadline = Instant::now() + limits.connect_within;
    let first = match timeout_at(deadline, reader.packet(CONNECT_BYTES)).await {
        Ok(packet) => packet?,
        Err(_) => return Err(Close::NoConnect),
    };
    let Packet::Connect(connect) = first else {
        return Err(Close::Protocol);
    };
    let branch = match admit(open.client.node, &connect) {
        Ok(branch) => branch,
        Err(code) => {
            connack(writer, code, limits.write_within).await?;
            return Err(Close::Refused);
        }
    };
    open.enter(branch).await;
    connack(writer, ConnectReturnCode::Success, limits.write_within).await?;

    let asked = Duration::from_secs(connect.keep_alive.into()) * 3 / 2;
    let idle = if asked.is_zero() {
        limits.longest_idle
    } else {
        asked.min(limits.longest_idle)
    };
    let open = &*open;
    tokio::select! {
        result = read(open, branch, reader, idle) => result,
        result = write(open, branch, writer) => result,
    }
}

/// Which branch the client may be, or what to answer it.
fn admit(node: NodeId, connect: &Connect) -> Result<Branch, ConnectReturnCode> {
    if connect.protocol != Protocol::V4 {
        return Err(ConnectReturnCode::RefusedProtocolVersion);
    }
    let branch = match parse_client_id(&connect.client_id) {
        Some((named, branch)) if named == node => branch,
        _ => return Err(ConnectReturnCode::BadClientId),
    };
    // Nothing is kept for a client that is away, and nothing is said in its name.
    if !connect.clean_session || connect.last_will.is_some() {
        return Err(ConnectReturnCode::NotAuthorized);
    }
    Ok(branch)
}

async fn connack<S: AsyncWrite>(
    writer: &mut WriteHalf<S>,
    code: ConnectReturnCode,
    within: Duration,
) -> Result<(), Close> {
    let mut buffer = BytesMut::with_capacity(4);
    encode(&Packet::ConnAck(ConnAck::new(code, false)), &mut buffer);
    write_out(writer, &buffer, within).await
}

async fn read<S>(open: &Open, branch: Branch, reader: &mut Reader<S>, idle: Duration) -> Result<Never, Close>
where
    S: AsyncRead + Unpin,
{
    let limits = open.hub.limits;
    loop {
        // The time runs until a packet is complete: one byte now and then is silence too.
        let packet = match timeout(idle, reader.packet(limits.packet_bytes)).await {
            Ok(packet) => packet?,
            Err(_) => return Err(Close::Silent),
        };
        match packet {
            Packet::Publish(publish) => published(open, branch, publish).await?,
            Packet::PubAck(ack) => open.client.queue.acknowledged(ack.pkid),
            Packet::Subscribe(subscribe) => subscribed(open, branch, subscribe).await?,
            Packet::Unsubscribe(unsubscribe) => unsubscribed(open, branch, &unsubscribe)?,
            Packet::PingReq => answer(open, Answer::PingResp)?,
            Packet::Disconnect => return Err(Close::Left),
            _ => return Err(Close::Protocol),
        }
    }
}

fn answer(open: &Open, answer: Answer) -> Result<(), Close> {
    if open.client.queue.push_answer(answer) {
        Ok(())
    } else {
        Err(Close::Stalled)
    }
}

async fn published(open: &Open, branch: Branch, publish: Publish) -> Result<(), Close> {
    let node = open.client.node;
    if !may_use(node, branch, Direction::Up, &publish.topic) {
        tracing::warn!(%node, ?branch, "published to a topic that is not its own");
        return Err(Close::ForbiddenPublish);
    }
    if publish.qos == QoS::ExactlyOnce || publish.retain {
        return Err(Close::Protocol);
    }
    if !open.deliver(publish.payload).await {
        return Err(Close::Protocol);
    }
    match publish.qos {
        QoS::AtMostOnce => Ok(()),
        _ => answer(open, Answer::PubAck(publish.pkid)),
    }
}

async fn subscribed(open: &Open, branch: Branch, subscribe: Subscribe) -> Result<(), Close> {
    if subscribe.filters.len() > FILTERS {
        return Err(Close::Protocol);
    }
    let node = open.client.node;
    let mut granted = None;
    let codes = subscribe.filters.iter().map(|filter| {
        if !may_use(node, branch, Direction::Down, &filter.path) {
            open.hub.counters.forbidden_subscribe.add();
            tracing::warn!(%node, ?branch, "subscribed to a topic that is not its own");
            return SubscribeReasonCode::Failure;
        }
        let qos = if filter.qos == QoS::AtMostOnce {
            QoS::AtMostOnce
        } else {
            QoS::AtLeastOnce
        };
        granted = Some(qos);
        SubscribeReasonCode::Success(qos)
    });
    let codes = codes.collect();
    answer(open, Answer::SubAck(subscribe.pkid, codes))?;
    if granted.is_some() {
        open.client.queue.set_subscribed(granted);
        if !open.announce().await {
            return Err(Close::Replaced);
        }
    }
    Ok(())
}

fn unsubscribed(open: &Open, branch: Branch, unsubscribe: &Unsubscribe) -> Result<(), Close> {
    if unsubscribe.topics.len() > FILTERS {
        return Err(Close::Protocol);
    }
    let node = open.client.node;
    if unsubscribe
        .topics
        .iter()
        .any(|topic| may_use(node, branch, Direction::Down, topic))
    {
        open.client.queue.set_subscribed(None);
    }
    answer(open, Answer::UnsubAck(unsubscribe.pkid))
}

async fn write<S: AsyncWrite>(open: &Open, branch: Branch, writer: &mut WriteHalf<S>) -> Result<Never, Close> {
    let limits = open.hub.limits;
    let (client, mut buffer) = (&open.client, BytesMut::new());
    let mut blocked_since = None;
    loop {
        match client.queue.take(client.node, branch, &limits, &mut buffer) {
            Batch::Ready { messages } => {
                write_out(writer, &buffer, limits.write_within).await?;
                open.hub.counters.sent.add_many(messages);
                if messages > 0 {
                    blocked_since = None;
                }
                if buffer.capacity() > KEEP_BYTES {
                    buffer = BytesMut::new();
                } else {
                    buffer.clear();
                }
            }
            Batch::Empty => {
                blocked_since = None;
                client.queue.changed().await;
            }
            Batch::Unacknowledged => {
                let since = *blocked_since.get_or_insert_with(Instant::now);
                timeout_at(since + limits.write_within, client.queue.changed())
                    .await
                    .map_err(|_| Close::Stalled)?;
            }
        }
    }
}

/// Writes all of `bytes` as long as some of them go out within each `within`.
async fn write_out<S: AsyncWrite>(writer: &mut WriteHalf<S>, bytes: &[u8], within: Duration) -> Result<(), Close> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match timeout(within, writer.write(rest)).await {
            Ok(Ok(0) | Err(_)) => return Err(Close::Lost),
            Ok(Ok(written)) => rest = &rest[written..],
            Err(_) => return Err(Close::Stalled),
        }
    }
    match timeout(within, writer.flush()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Close::Lost),
        Err(_) => Err(Close::Stalled),
    }
}

struct Reader<S> {
    stream: ReadHalf<S>,
    buffer: BytesMut,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    /// The next packet. Cancelling keeps what was read so far.
    async fn packet(&mut self, limit: usize) -> Result<Packet, Close> {
        loop {
            if let Some(packet) = decode(&mut self.buffer, limit).map_err(|_| Close::Protocol)? {
                return Ok(packet);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(Close::Left),
                Ok(_) => {}
                Err(_) => return Err(Close::Lost),
            }
        }
    }
}
