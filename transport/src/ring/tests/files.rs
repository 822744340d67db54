//! What every ring promises of writes, over real files of this machine.

use std::fs::{File, OpenOptions};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::disk::scratch::{Scratch, alone_on_a_small_file_system, small_file_system};
use crate::disk::{DiskFile, Way};
use crate::ring::{FILES_MAX, FileSlot, WRITE_PIECES_MAX};

const BLOCK: usize = 4096;
const FILE: FileSlot = FileSlot(FILES_MAX - 1);

/// Where the machine has a file system that takes direct writes, both ways.
const WAYS: [Way; 2] = [Way::Direct, Way::Cached];

/// Bytes that live for ever at a multiple of a block.
fn aligned(length: usize) -> &'static [u8] {
    let memory = Box::leak(vec![0; length + BLOCK].into_boxed_slice());
    let skip = memory.as_ptr().align_offset(BLOCK);
    let bytes = &mut memory[skip..skip + length];
    bytes.copy_from_slice(&pattern(length));
    bytes
}

fn make_file(path: &Path, blocks: usize) {
    std::fs::write(path, vec![0xaa; blocks * BLOCK]).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

fn open(path: &Path, way: Way) -> DiskFile {
    match way {
        Way::Direct => DiskFile::open(path),
        Way::Cached => DiskFile::open_cached(path),
    }
    .unwrap()
}

fn begin<R: Ring>(ring: &mut R, position: u64, pieces: &[&'static [u8]], token: u64) {
    // SAFETY: the bytes are never freed nor changed.
    unsafe { ring.write(FILE, position, pieces, token) };
}

/// Sleeps as a shard does, until a write is over.
fn end_of_write<R: Ring>(ring: &mut R) -> (u64, Result<u32, Errno>) {
    let started = Instant::now();
    loop {
        ring.doorbell().announce_sleep();
        ring.turn(Wait::AtMost(Some(DEADLINE))).unwrap();
        ring.doorbell().announce_awake();
        assert!(started.elapsed() < DEADLINE / 2, "slept through its end");
        while let Some(completion) = ring.next() {
            match completion {
                Completion::Written {
                    file,
                    token,
                    result,
                } => {
                    assert_eq!(file, FILE);
                    return (token, result);
                }
                Completion::Woken => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

fn the_end_of_a_write_wakes_a_sleeper_and_the_bytes_are_there<R>(mut ring: R)
where
    R: Ring<Socket = OwnedFd, File = DiskFile>,
{
    let scratch = Scratch::new();
    for way in WAYS {
        let path = scratch.path().join("file");
        make_file(&path, 8);
        ring.attach_file(FILE, open(&path, way)).unwrap();
        let bytes = aligned(2 * BLOCK);
        for round in 0..5_u64 {
            begin(&mut ring, (1 + round) * 4096, &[bytes], round);
            assert_eq!(end_of_write(&mut ring), (round, Ok(8192)));
        }
        let there = std::fs::read(&path).unwrap();
        assert!(there[..BLOCK].iter().all(|&byte| byte == 0xaa));
        assert!(there[5 * BLOCK..7 * BLOCK] == *bytes);
        assert!(there[7 * BLOCK..].iter().all(|&byte| byte == 0xaa));
        drop(ring.detach_file(FILE));
    }
}

fn the_most_pieces_are_written_in_order<R>(mut ring: R)
where
    R: Ring<Socket = OwnedFd, File = DiskFile>,
{
    let scratch = Scratch::new();
    for way in WAYS {
        let path = scratch.path().join("file");
        make_file(&path, WRITE_PIECES_MAX);
        ring.attach_file(FILE, open(&path, way)).unwrap();
        let bytes = aligned(WRITE_PIECES_MAX * BLOCK);
        let pieces: Vec<&'static [u8]> = bytes.chunks(BLOCK).collect();
        begin(&mut ring, 0, &pieces, u64::MAX);
        let length = u32::try_from(bytes.len()).unwrap();
        assert_eq!(end_of_write(&mut ring), (u64::MAX, Ok(length)));
        assert!(std::fs::read(&path).unwrap() == bytes, "bytes differ");
        drop(ring.detach_file(FILE));
    }
}

fn a_full_device_is_told_as_it_is<R>(mut ring: R)
where
    R: Ring<Socket = OwnedFd, File = DiskFile>,
{
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let file = DiskFile::posing(full, Way::Cached, 1 << 20);
    ring.attach_file(FILE, file).unwrap();
    begin(&mut ring, 4096, &[aligned(BLOCK)], 3);
    assert_eq!(end_of_write(&mut ring), (3, Err(Errno(libc::ENOSPC))));
    drop(ring.detach_file(FILE));
}

fn writes_that_break_the_law_are_refused_by_an_assertion<R>(mut ring: R)
where
    R: Ring<Socket = OwnedFd, File = DiskFile>,
{
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    make_file(&path, 4);
    ring.attach_file(FILE, open(&path, Way::Cached)).unwrap();
    let bytes = aligned(5 * BLOCK);
    let many = vec![&bytes[..BLOCK]; WRITE_PIECES_MAX + 1];
    let cases: [(u64, &[&'static [u8]], &str); 8] = [
        (
            512,
            &[&bytes[..BLOCK]],
            "begins at a multiple of 4096, not at 512",
        ),
        (
            0,
            &[&bytes[..512]],
            "whole blocks of 4096 bytes, not 512 bytes",
        ),
        (
            0,
            &[&bytes[..BLOCK], &[]],
            "whole blocks of 4096 bytes, not 0 bytes",
        ),
        (0, &[&bytes[512..BLOCK + 512]], "lies at a multiple of 4096"),
        (0, &[], "has 1 to 128 pieces"),
        (0, &many, "has 1 to 128 pieces"),
        (0, &[bytes], "lies within its file"),
        (1 << 40, &[&bytes[..BLOCK]], "lies within its file"),
    ];
    for (position, pieces, story) in cases {
        let refused = catch_unwind(AssertUnwindSafe(|| begin(&mut ring, position, pieces, 1)));
        let panic = refused.unwrap_err();
        let message = match panic.downcast_ref::<String>() {
            Some(formatted) => formatted,
            None => *panic.downcast_ref::<&str>().unwrap(),
        };
        assert!(message.contains(story), "{message}");
    }
    for token in 0..2 {
        begin(&mut ring, token * 4096, &[&bytes[..BLOCK]], token);
    }
    let third = catch_unwind(AssertUnwindSafe(|| {
        begin(&mut ring, 8192, &[&bytes[..BLOCK]], 2);
    }));
    assert!(third.is_err(), "two in flight per file at most");
    let early = catch_unwind(AssertUnwindSafe(|| ring.detach_file(FILE)));
    assert!(early.is_err(), "detached with writes in flight");
}

fn a_ring_dropped_with_writes_in_flight_is_done_with_them<R>(mut ring: R)
where
    R: Ring<Socket = OwnedFd, File = DiskFile>,
{
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    make_file(&path, 8);
    let file = open(&path, Way::Direct);
    ring.attach_file(FILE, file).unwrap();
    let bytes = aligned(4 * BLOCK);
    begin(&mut ring, 0, &[bytes], 0);
    ring.turn(Wait::No).unwrap();
    begin(&mut ring, 4 * 4096, &[&bytes[..BLOCK], &bytes[BLOCK..]], 1);
    drop(ring);
    // Each was made or was not; nothing comes later.
    let there = std::fs::read(&path).unwrap();
    for half in there.chunks(4 * BLOCK) {
        assert!(half == bytes || half.iter().all(|&byte| byte == 0xaa));
    }
    make_file(&path, 8);
    assert!(
        std::fs::read(&path)
            .unwrap()
            .iter()
            .all(|&byte| byte == 0xaa)
    );
}

suite! {
    the_end_of_a_write_wakes_a_sleeper_and_the_bytes_are_there
    the_most_pieces_are_written_in_order
    a_full_device_is_told_as_it_is
    writes_that_break_the_law_are_refused_by_an_assertion
    a_ring_dropped_with_writes_in_flight_is_done_with_them
}

/// Which file [`limited`] writes to.
const LIMITED_FILE: &str = "COURSER_LIMITED_FILE";

/// The limit is the whole process's, so it takes one of its own.
#[test]
fn a_write_beyond_the_largest_file_is_an_error_and_no_signal() {
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    make_file(&path, 64);
    let output = Command::new("sh")
        // In units of 512 or 1,024 bytes, both far below where it writes.
        .args(["-c", "ulimit -f 8 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "ring::tests::files::limited", "--ignored"])
        .env(LIMITED_FILE, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "run by a test in a process with a limit of its own"]
fn limited() {
    fn exceed<R: Ring<File = DiskFile>>(mut ring: R, path: &Path, way: Way) {
        ring.attach_file(FILE, open(path, way)).unwrap();
        begin(&mut ring, 60 * 4096, &[aligned(BLOCK)], 5);
        assert_eq!(end_of_write(&mut ring), (5, Err(Errno(libc::EFBIG))));
    }

    let path = std::env::var_os(LIMITED_FILE).unwrap();
    for way in WAYS {
        exceed(epoll(SMALL).unwrap(), path.as_ref(), way);
        if let Some(ring) = io_uring(SMALL) {
            exceed(ring, path.as_ref(), way);
        }
    }
}

#[test]
fn a_write_to_a_full_file_system_is_told_as_it_is() {
    alone_on_a_small_file_system("ring::tests::files::full");
}

#[test]
#[ignore = "run by a test in a process with a file system of its own"]
fn full() {
    fn fill<R: Ring<File = DiskFile>>(mut ring: R, path: &Path) {
        // Twice what there is room for, as a file that was not prepared.
        let size = 512 * 4096;
        File::create(path).unwrap().set_len(size).unwrap();
        ring.attach_file(FILE, open(path, Way::Cached)).unwrap();
        let bytes = aligned(16 * BLOCK);
        for position in (0..size).step_by(bytes.len()) {
            begin(&mut ring, position, &[bytes], position);
            match end_of_write(&mut ring) {
                (token, Ok(taken)) => {
                    assert!(token == position && taken > 0);
                    if (taken as usize) < bytes.len() {
                        // What was taken before the end is legal, and is there.
                        continue;
                    }
                }
                (token, Err(errno)) => {
                    assert_eq!((token, errno), (position, Errno(libc::ENOSPC)));
                    assert!(position > 0, "there is some room at first");
                    drop(ring.detach_file(FILE));
                    std::fs::remove_file(path).unwrap();
                    return;
                }
            }
        }
        panic!("a file system of 1 MiB took 2 MiB");
    }

    let path = small_file_system().join("file");
    fill(epoll(SMALL).unwrap(), &path);
    if let Some(ring) = io_uring(SMALL) {
        fill(ring, &path);
    }
}
