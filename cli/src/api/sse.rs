//! Server-sent events: bytes in, the data of whole events out. Source: WHATWG HTML, section 9.2.

/// Longest event that is kept.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// Puts pieces together. Only the field `data` matters here; our events carry their id inside.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    after_cr: bool,
}

impl Reader {
    /// Takes a piece, in whatever way the stream was cut; returns the data of each event that it completes.
    pub fn push(&mut self, piece: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for &byte in piece {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\r' | b'\n' => events.extend(self.end_line()),
                // What is too long to be ours is cut; it will not be read as JSON and be skipped.
                _ if self.line.len() < MAX_EVENT_BYTES => self.line.push(byte),
                _ => {}
            }
        }
        events
    }

    fn end_line(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&bytes);
        if line.is_empty() {
            return std::mem::take(&mut self.has_data).then(|| std::mem::take(&mut self.data));
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        if field == "data" && self.data.len() + value.len() < MAX_EVENT_BYTES {
            if self.has_data {
                self.data.push('\n');
            }
            self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
            self.has_data = true;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_the_stream_is_cut_the_events_are_the_same() {
        let stream =
            b": hello\r\nid: 1\r\nevent: x\r\ndata: {\"a\":1}\r\n\r\n:ping\n\ndata:one\ndata: two\n\ndata: unfinished";
        for size in 1..stream.len() {
            let mut reader = Reader::default();
            let events: Vec<String> = stream.chunks(size).flat_map(|piece| reader.push(piece)).collect();
            assert_eq!(events, ["{\"a\":1}", "one\ntwo"], "pieces of {size}");
        }
    }
}
