//! The overlay's addresses and tables as data: who may give which address, and who is told of what.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`plan`] | the tree's ranges, and the addresses that follow from an id |
//! | [`block`] | a block of endpoint addresses |
//! | [`blocks`] | which child has which blocks |
//! | [`pool`] | leases of blocks and addresses: given, taken back, rested before they are given again |
//! | [`row`] | what the tables say: services, instances, nodes, relays |
//! | [`tables`] | a tier's tables: rows from above, of its own and from below, and what each child is told of them |
//! | [`tunnel`] | ends of encrypted tunnels |
//!
//! Invariants: an endpoint address belongs to one instance in the whole tree; a row has one writer; a child is told of the
//! applications that it asked for, and of nothing else.

pub mod block;
pub mod blocks;
pub mod plan;
pub mod pool;
pub mod row;
pub mod tables;
pub mod tunnel;
