//! The generated messages and services of `roble/link.proto`.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("roble.v1");
