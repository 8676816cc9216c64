//! Every contract between the parts of Roble: protobuf for both links, topics, limits, REST types, the local socket of
//! `roble-net`, and the conversions between wire and core types. A message type, topic or port number is written once, here.

pub mod convert;
pub mod limits;
pub mod local_net;
pub mod rest;
pub mod rows;
pub mod topics;
pub mod trace;
pub mod wire;
