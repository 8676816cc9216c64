//! `roble-tunnel`: see the library's documentation.

fn main() {}
