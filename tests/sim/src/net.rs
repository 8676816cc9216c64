//! A link between two tiers: connections that come and go, latency, loss, repetition, partitions.

use rand::Rng;
use rand::rngs::SmallRng;

/// What the network of a run is like.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Longest time on the way, milliseconds.
    pub latency_ms: u64,
    /// Messages per thousand lost within a connection.
    pub loss: u32,
    /// Messages per thousand that arrive twice.
    pub twice: u32,
    /// Messages per thousand that are late and may be overtaken.
    pub late: u32,
}

/// One link, always dialled by the lower end.
#[derive(Default)]
pub struct Link {
    /// The connection as the lower end knows it.
    pub child: Option<u64>,
    /// The connection as the upper end knows it.
    pub parent: Option<u64>,
    /// Nothing gets through upwards, downwards.
    pub blocked: [bool; 2],
    /// When each direction is free for the next message.
    busy: [u64; 2],
    /// What waits for a blocked direction to open again.
    pub held: [Vec<(u64, Vec<u8>)>; 2],
    connections: u64,
    /// Only who shows a certificate of at least this number gets through.
    pub valid_from: u64,
}

/// Upwards, to index what a [`Link`] has per direction.
pub const UP: usize = 0;
/// Downwards.
pub const DOWN: usize = 1;

impl Link {
    /// Whether a connection can be made now.
    pub fn is_open(&self) -> bool {
        self.blocked == [false, false]
    }

    /// A new connection, known to both ends.
    pub fn connect(&mut self) -> u64 {
        self.connections += 1;
        self.child = Some(self.connections);
        self.parent = Some(self.connections);
        self.held = Default::default();
        self.connections
    }

    /// When a message sent now arrives: never (lost), once, or twice.
    pub fn arrivals(&mut self, direction: usize, at: u64, weather: &Weather, rng: &mut SmallRng) -> Vec<u64> {
        if rng.random_range(0..1000) < weather.loss {
            return Vec::new();
        }
        let mut arrival = at + rng.random_range(1..=weather.latency_ms);
        if rng.random_range(0..1000) < weather.late {
            arrival += weather.latency_ms * 3;
        } else {
            arrival = arrival.max(self.busy[direction] + 1);
            self.busy[direction] = arrival;
        }
        if rng.random_range(0..1000) < weather.twice {
            vec![arrival, arrival + rng.random_range(1..=weather.latency_ms * 2)]
        } else {
            vec![arrival]
        }
    }
}
