//! Two threads move millions of bytes through a small ring: every byte in
//! order, whatever the sizes of fragments and batches.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "two threads and a deadline are the point of this test"
)]

use std::thread;
use std::time::{Duration, Instant};

use courser_core::ring::{ClaimError, Sleep, Wake, ring_from};

/// What goes through a ring at most, and how often it is filled: on a busy machine each
/// time costs a few slices of a processor, as many as others wait for it.
const BYTES_MAX: u64 = 16 << 20;
const FILLINGS: u64 = 4096;
/// Far longer than nothing moves on a busy machine; a lost wake-up fails instead of
/// hanging.
const DEADLINE: Duration = Duration::from_secs(60);

/// xorshift64*: the two ends generate the same stream apart from each other.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }
}

/// Fills a ring of `capacity` again and again; ends that find nothing to do sleep if
/// `sleeping`, else spin. Returns bytes, fragments and doorbell rings.
fn move_bytes(capacity: u32, start: u64, sleeping: bool) -> (u64, u64, u64) {
    let bytes = BYTES_MAX.min(u64::from(capacity) * FILLINGS);
    let (mut writer, mut reader) = ring_from(capacity, start).unwrap();
    let size_max = u64::from(writer.fragment_size_max().min(300));
    let writer_thread = thread::current();

    let reading = thread::spawn(move || {
        let mut content = Random(42);
        let (mut received, mut fragments, mut rings) = (0_u64, 0_u64, 0_u64);
        let mut checksum = 0_u32;
        let mut moved = Instant::now();
        while !reader.is_closed() {
            let count = reader
                .read(|fragment| {
                    checksum = crc32c::crc32c_append(checksum, fragment);
                    for byte in fragment {
                        assert_eq!(*byte, content.byte(), "byte {received}");
                        received += 1;
                    }
                    fragments += 1;
                })
                .unwrap();
            if count > 0 {
                moved = Instant::now();
            }
            if sleeping && count > 0 {
                if reader.wake_writer() == Wake::Needed {
                    rings += 1;
                    writer_thread.unpark();
                }
            } else if sleeping && reader.try_sleep() == Sleep::Granted {
                thread::park_timeout(DEADLINE);
                reader.awake();
            } else if count == 0 {
                thread::yield_now();
            }
            assert!(moved.elapsed() < DEADLINE, "stuck after {received} bytes");
        }
        (received, fragments, rings, checksum)
    });

    let mut content = Random(42);
    let mut shape = Random(7);
    let (mut sent, mut rings) = (0, 0);
    let mut checksum = 0;
    let mut moved = Instant::now();
    while sent < bytes {
        for _ in 0..1 + shape.next() % 8 {
            let len = (shape.next() % (size_max + 1)).min(bytes - sent);
            loop {
                match writer.claim(usize::try_from(len).unwrap()) {
                    Ok(mut claim) => {
                        claim.fill_with(|| content.byte());
                        checksum = crc32c::crc32c_append(checksum, &claim);
                        claim.commit();
                        sent += len;
                        moved = Instant::now();
                        break;
                    }
                    Err(ClaimError::Full { .. }) => {
                        if writer.publish() == Wake::Needed {
                            rings += 1;
                            reading.thread().unpark();
                        }
                        if !sleeping {
                            thread::yield_now();
                        } else if writer.try_sleep(usize::try_from(len).unwrap()).unwrap()
                            == Sleep::Granted
                        {
                            thread::park_timeout(DEADLINE);
                            writer.awake();
                        }
                        assert!(!reading.is_finished(), "the reader gave up");
                        assert!(moved.elapsed() < DEADLINE, "stuck after {sent} bytes");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        if writer.publish() == Wake::Needed {
            rings += 1;
            reading.thread().unpark();
        }
    }
    if writer.close() == Wake::Needed {
        rings += 1;
        reading.thread().unpark();
    }
    let (received, fragments, reader_rings, checksum_read) = reading.join().unwrap();
    assert_eq!(received, bytes);
    assert_eq!(checksum_read, checksum);
    (bytes, fragments, rings + reader_rings)
}

#[test]
fn spinning_ends_move_every_byte_in_order() {
    for (capacity, start) in [(256, 0), (4096, u64::MAX - 100_000), (1 << 16, 0)] {
        let (bytes, fragments, rings) = move_bytes(capacity, start, false);
        assert!(fragments > bytes / 300);
        assert_eq!(rings, 0, "nobody slept, nobody was rung");
    }
}

#[test]
fn sleeping_ends_move_every_byte_in_order() {
    for (capacity, start) in [(256, 0), (4096, u64::MAX - 100_000), (1 << 16, 0)] {
        let (bytes, fragments, rings) = move_bytes(capacity, start, true);
        assert!(fragments > bytes / 300);
        assert!(
            rings > 0,
            "with one ring smaller than the rest somebody slept"
        );
    }
}
