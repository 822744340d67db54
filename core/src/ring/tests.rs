//! Tests that need to see the header or the raw words.
