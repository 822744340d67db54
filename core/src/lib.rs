//! Courser's heart: the broker and its client as deterministic machines without clock, thread, file, socket or randomness.
