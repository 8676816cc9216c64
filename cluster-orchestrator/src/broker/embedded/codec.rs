//! From bytes to packets: the published codec of `rumqttc`, with the checks of size in front.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4::Packet;
use rumqttc::mqttbytes::{Error, check};

/// Memory for reading grows by at most this much at once, so that it follows what came and not what was announced.
const GROW_BYTES: usize = 16 * 1024;
/// A read buffer that is larger than this is given back when it is empty.
const KEEP_BYTES: usize = 2 * 1024;
const FIRST_BYTES: usize = 256;

/// The bytes are not MQTT, or not within bounds. The connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Takes the first packet out of `buffer`; `None` if it is not complete, with room made for more of it.
///
/// `limit`: largest packet, without the two to five bytes of its fixed header.
pub(super) fn decode(buffer: &mut BytesMut, limit: usize) -> Result<Option<Packet>, Malformed> {
    match check(buffer.iter(), limit) {
        Ok(_) => {}
        Err(Error::InsufficientBytes(missing)) => {
            buffer.reserve(missing.clamp(FIRST_BYTES, GROW_BYTES));
            return Ok(None);
        }
        Err(_) => return Err(Malformed),
    }
    let mut packet = Packet::read(buffer, limit).map_err(|_| Malformed)?;
    if let Packet::Publish(publish) = &mut packet {
        // The payload outlives the packet; a slice would keep the whole read buffer with it.
        publish.payload = Bytes::copy_from_slice(&publish.payload);
    }
    if buffer.is_empty() && buffer.capacity() > KEEP_BYTES {
        *buffer = BytesMut::new();
    }
    Ok(Some(packet))
}

/// Reads `bytes` in two pieces as an arbitrary client might send them: it must not panic, loop for ever, or make room for
/// much more than came.
pub(super) fn fuzz(bytes: &[u8], cut: usize, limit: usize) {
    let mut buffer = BytesMut::new();
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    for piece in [first, second] {
        buffer.extend_from_slice(piece);
        loop {
            match decode(&mut buffer, limit) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(Malformed) => return,
            }
        }
        assert!(buffer.capacity() <= 2 * (bytes.len() + GROW_BYTES));
    }
}
