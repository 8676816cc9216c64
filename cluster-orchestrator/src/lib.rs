//! The cluster orchestrator: takes the root's orders, places them on the nodes of one site, and goes on without the root.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`tier`] | the machine that decides; no I/O |
//! | [`daemon`] | puts everything below together and runs it |
//! | [`config`] | the table of settings and the typed view |
//! | [`membership`], [`certificates`], [`members`] | who we are, whom we certify, whose keys are known |
//! | [`uplink`] | link to the root, into and out of the tier |
//! | [`broker`], [`nodes`] | who carries the nodes' messages, into and out of the tier |
//! | [`relay`] | passes on sealed datagrams of nodes that cannot reach each other |
//! | [`api`], [`streams`], [`rate`] | door for nodes: join, renew, streams |
//! | [`local`], [`commands`] | door for people at the site, and the commands that use it |
//! | [`doors`], [`hands`] | questions to the tier; what the tier asks for |
//! | [`refusal`], [`metrics`] | small parts |
//!
//! Invariants: nothing that was not stored is acknowledged; everything but new orders works with the root away; who
//! somebody is comes from a verified certificate alone.

pub mod api;
pub mod broker;
pub mod certificates;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod doors;
pub mod hands;
pub mod local;
pub mod members;
pub mod membership;
pub mod metrics;
pub mod nodes;
pub mod relay;
pub mod streams;
pub mod tier;
pub mod uplink;
