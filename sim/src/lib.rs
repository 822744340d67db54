//! The deterministic simulator of Courser.
