//! The functions of the facade. Its third version has the same ones.

pub mod consumer;
pub mod producer;
