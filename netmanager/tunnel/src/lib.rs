//! The encrypted tunnel in user space: WireGuard's protocol over a TUN device.
//!
//! The program `roble-tunnel` owns one TUN device and the sockets of one UDP port. It is started and told what to do by
//! `roble-net` through [`Launch`] and [`Client`], and outlives it. docs/tunnel.md has the life of a packet.
//!
//! - Control: [`types`] (what is wanted, what is), [`uapi`] (as text), [`client`], [`control`] (the worker's end).
//! - Protocol, without I/O or clocks: [`core`] (peers, paths, timers), [`noise`] (handshake), [`session`], [`replay`], [`routes`].
//! - [`relay`]: what a cluster runs for nodes that cannot reach each other.
//! - Packets: [`packet`] (cut, joined, answered), [`flows`] (fair queues).
//! - [`kernel`]: the kernel's own WireGuard instead of all this, where there is one.
//! - Packets and sockets: [`sys`], the only place with `unsafe`; [`worker`], the threads.
//!
//! Invariants: whatever arrives is counted and harmless; a packet is accepted from the owner of its source address alone;
//! no allocation per packet; every queue is bounded; a repeated `set` changes nothing.

pub mod client;
pub mod control;
pub mod core;
pub mod counters;
pub mod flows;
pub mod fuzz;
pub mod kernel;
pub mod key;
pub mod noise;
pub mod packet;
pub mod relay;
pub mod replay;
pub mod routes;
pub mod session;
pub mod sys;
pub mod types;
pub mod uapi;
pub mod worker;

pub use client::{Client, Device, DeviceError, Launch};
pub use counters::{Drops, REASONS, Reason};
pub use kernel::KernelDevice;
pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use types::{AllowedIp, DeviceConfig, DeviceStatus, PeerConfig, PeerStatus};
