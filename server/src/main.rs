//! The binary `courser`.

fn main() {}
