//! The client library of Courser.
