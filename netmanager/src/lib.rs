//! The net manager: gives containers of this node an interface with endpoint addresses, publishes their ports, leads
//! addresses of services to instances, and reaches other nodes.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | the daemon's settings |
//! | [`state`] | attachments, addresses and ports as data, without I/O |
//! | [`service`] | the one owner of the state: writes it, then brings the datapath to it |
//! | [`datapath`] | the seam to the kernel, real and in memory |
//! | [`follow`] | follows what is told: into the datapath, the name server, and what the node says |
//! | [`nearness`], [`probe`] | what closest and least used lead to; round-trip times to other nodes |
//! | [`wants`], [`misses`] | services of other applications, asked for at first use; the packets that wait for the answer |
//! | [`overlay`] | from what the cluster tells to what kernel and name server are given |
//! | [`sealing`] | this node's end of the encrypted tunnel: keys, device, peers |
//! | [`peers`] | other nodes as this one reaches them, for people |
//! | [`tier`], [`session`] | what the cluster tells, kept for a start without anybody; its session |
//! | [`api`] | the local HTTP API on a Unix socket |
//! | [`diagnosis`] | what on the node gets into the overlay's way |
//! | [`firewalls`] | which rule of the node's other tables drops what |
//! | [`trace`] | this node's part of a traced way |
//! | [`dns`] | names for containers, on the gateway addresses |
//! | [`metrics`], [`traffic`] | what is counted: of the daemon itself; per other node and per service, read when asked for |
//!
//! Invariants:
//! - What is attached is on disk before the kernel is touched; `kill -9` at any instant is repaired at the next start.
//! - The kernel is always set as a whole from the state and the tables, never by differences of requests; what is there
//!   already is not touched, so flows and turns go on.
//! - Stopping the daemon leaves the datapath in place; `roble-net --clean-up` removes all of it.

pub mod api;
pub mod config;
pub mod datapath;
pub mod diagnosis;
pub mod dns;
pub mod firewalls;
pub mod follow;
pub mod metrics;
pub mod misses;
pub mod nearness;
pub mod overlay;
pub mod peers;
pub mod probe;
pub mod sealing;
pub mod service;
pub mod session;
pub mod state;
pub mod tier;
pub mod trace;
pub mod traffic;
pub mod wants;
