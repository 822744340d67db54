//! A shard's thread for its page files: reads and writes that a shard does not wait for.
//!
//! Requests are run as if one after the other, in the order they were made; those of a
//! [`PageBatch`] are run at the same time. What became of them lies in an inbox, one atomic load
//! to look at, and the shard's doorbell is rung if it sleeps. How many are under way, and how
//! many bytes of memory they have, is bounded: a shard keeps its wish while there is no room.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use courser_core::limits::MIB;
use courser_core::shard::PageWish;

use super::directory::DirectoryError;
use super::pages::{Accessed, PageBatch, PageFiles};
use crate::affinity;
use crate::doorbell::Doorbell;
use crate::handoff::{Inbox, Sender, handoff};
use crate::sys;

/// Requests that are under way at most, beside a flush.
const REQUESTS_MAX: usize = 32;

/// While requests have so many bytes of memory, no more are taken; a single one may have as
/// many as a frame.
const REQUESTS_SIZE: u64 = 2 * MIB as u64;

#[derive(Debug)]
enum Request {
    Wish(PageWish),
    Flush,
}

/// What became of a request.
#[derive(Debug)]
pub enum PageDone {
    /// A read or a write is over.
    Accessed(Accessed),
    /// A file is gone, or not.
    Removed {
        /// Whether it is.
        result: Result<(), DirectoryError>,
    },
    /// All that was written before is there for good, or not.
    Flushed {
        /// Whether it is.
        result: Result<(), DirectoryError>,
    },
}

/// A shard's end. Dropped, it calls off what is not done yet, and waits for the batch that is
/// being run.
#[derive(Debug)]
pub struct PageHelper {
    /// `None` once it is told to stop.
    requests: Option<SyncSender<Request>>,
    done: Inbox<PageDone>,
    /// Written here, read by the thread between batches. It publishes nothing but itself.
    called_off: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Requests that were not taken back yet, beside a flush.
    under_way: usize,
    /// Bytes of memory that these have.
    bytes: u64,
    is_flushing: bool,
}

impl PageHelper {
    /// A thread for one shard, whose bell it rings, with its page files.
    ///
    /// # Errors
    ///
    /// If the kernel gives no thread.
    pub fn start(files: PageFiles, doorbell: Doorbell) -> io::Result<Self> {
        let (requests, asked) = sync_channel(REQUESTS_MAX + 1);
        let (results, done) = handoff(doorbell);
        let called_off = Arc::new(AtomicBool::new(false));
        let runner = Runner {
            files,
            asked,
            results,
            called_off: Arc::clone(&called_off),
        };
        let thread = thread::Builder::new()
            .name(String::from("courser-pages"))
            .spawn(move || {
                affinity::step_aside();
                runner.run();
            })?;
        Ok(Self {
            requests: Some(requests),
            done,
            called_off,
            thread: Some(thread),
            under_way: 0,
            bytes: 0,
            is_flushing: false,
        })
    }

    /// Whether another wish may be given to it.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.under_way < REQUESTS_MAX && self.bytes < REQUESTS_SIZE
    }

    /// Has a wish done; told by [`Self::take`]. It does not wait.
    ///
    /// # Panics
    ///
    /// If it has no room.
    pub fn ask(&mut self, wish: PageWish) {
        assert!(
            self.has_room(),
            "a wish stays where it is until there is room"
        );
        self.under_way += 1;
        self.bytes += match &wish {
            PageWish::Write { bytes, .. } => bytes.len() as u64,
            PageWish::Read { size, .. } => u64::from(*size),
            PageWish::RemoveFile { .. } => 0,
        };
        self.send(Request::Wish(wish));
    }

    /// Has all that was written be there for good; told by [`Self::take`].
    ///
    /// # Panics
    ///
    /// If a flush is under way.
    pub fn flush(&mut self) {
        assert!(!self.is_flushing, "a checkpoint takes its place at a time");
        self.is_flushing = true;
        self.send(Request::Flush);
    }

    fn send(&mut self, request: Request) {
        let requests = self.requests.as_ref();
        let is_sent = requests.is_some_and(|requests| requests.try_send(request).is_ok());
        assert!(is_sent, "there is room, and the thread ends with its shard");
    }

    /// Whether nothing is done that was not taken; one atomic load.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Whether something is to come.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.under_way > 0 || self.is_flushing
    }

    /// The next request that is done.
    pub fn take(&mut self) -> Option<PageDone> {
        let done = self.done.take()?;
        match &done {
            PageDone::Accessed(Accessed::Written { size, .. } | Accessed::Read { size, .. }) => {
                self.under_way -= 1;
                self.bytes -= size;
            }
            PageDone::Removed { .. } => self.under_way -= 1,
            PageDone::Flushed { .. } => self.is_flushing = false,
        }
        Some(done)
    }
}

impl Drop for PageHelper {
    fn drop(&mut self) {
        self.called_off.store(true, Ordering::Relaxed);
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            debug_assert!(
                ended.is_ok() || thread::panicking(),
                "requests do not panic"
            );
        }
    }
}

/// The thread's end.
struct Runner {
    files: PageFiles,
    asked: Receiver<Request>,
    results: Sender<PageDone>,
    called_off: Arc<AtomicBool>,
}

impl Runner {
    fn run(mut self) {
        sys::refuse_large_files_quietly();
        let mut waiting = None;
        while let Some(request) = waiting.take().or_else(|| self.asked.recv().ok()) {
            if self.called_off.load(Ordering::Relaxed) {
                return;
            }
            let done = match request {
                Request::Flush => vec![PageDone::Flushed {
                    result: self.files.flush(),
                }],
                Request::Wish(PageWish::RemoveFile { file }) => vec![PageDone::Removed {
                    result: self.files.remove(file),
                }],
                Request::Wish(wish) => {
                    let batch;
                    (batch, waiting) = self.gather(wish);
                    let accessed = self.files.access(batch).into_iter();
                    accessed.map(PageDone::Accessed).collect()
                }
            };
            // Without a shard nobody waits for it. There is room: the inbox has more
            // places than requests can be made.
            if (done.into_iter()).any(|done| self.results.post(done).is_err()) {
                return;
            }
        }
    }

    /// This wish and what was asked for behind it, as far as all of it may be done at the
    /// same time; and the request that may not.
    fn gather(&self, wish: PageWish) -> (PageBatch, Option<Request>) {
        let mut batch = PageBatch::default();
        let mut waiting = batch.take(wish).err().map(Request::Wish);
        while waiting.is_none()
            && !batch.is_full()
            && let Ok(request) = self.asked.try_recv()
        {
            waiting = match request {
                Request::Wish(wish) => batch.take(wish).err().map(Request::Wish),
                Request::Flush => Some(request),
            };
        }
        (batch, waiting)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, Instant};

    use courser_core::frame::checksum;
    use courser_core::id::{JournalNumber, PageNumber, Run};
    use courser_core::limits::{FRAME_SIZE_MAX, PAGE_SIZE, PAGES_PER_FILE};

    use super::super::DataDirectory;
    use super::super::scratch::Scratch;
    use super::*;
    use crate::ring::epoll::EpollRing;
    use crate::ring::{Ring, RingSize, Transfers, Wait};

    const DEADLINE: Duration = Duration::from_secs(20);
    const JOURNAL: JournalNumber = JournalNumber(0);

    struct Desk {
        helper: PageHelper,
        ring: EpollRing,
        scratch: Scratch,
    }

    impl Desk {
        fn new() -> Self {
            let scratch = Scratch::new();
            let directory = DataDirectory::open(scratch.path()).unwrap();
            directory.make_journal(JOURNAL).unwrap();
            let ring = EpollRing::new(RingSize::WITHOUT_SOCKETS).unwrap();
            let files = PageFiles::new(&directory, JOURNAL, Run(1), Transfers::at_once().unwrap());
            Self {
                helper: PageHelper::start(files, ring.doorbell().clone()).unwrap(),
                ring,
                scratch,
            }
        }

        /// Sleeps as a shard does, until a request is done.
        fn next(&mut self) -> PageDone {
            let started = Instant::now();
            loop {
                self.ring.doorbell().announce_sleep();
                if let Some(done) = self.helper.take() {
                    self.ring.doorbell().announce_awake();
                    return done;
                }
                assert!(started.elapsed() < DEADLINE / 2, "slept through the bell");
                self.ring.turn(Wait::AtMost(Some(DEADLINE))).unwrap();
                while self.ring.next().is_some() {}
                self.ring.doorbell().announce_awake();
            }
        }
    }

    fn write(page: u32, byte: u8, size: u32) -> PageWish {
        PageWish::Write {
            page: PageNumber(page),
            bytes: vec![byte; size as usize],
        }
    }

    /// Of bytes that are all the same.
    fn read(page: u32, byte: u8, size: u32) -> PageWish {
        PageWish::Read {
            page: PageNumber(page),
            size,
            sum: checksum::body(&vec![byte; size as usize]),
        }
    }

    #[test]
    fn requests_are_done_in_order_while_the_shard_sleeps() {
        let mut desk = Desk::new();
        assert!(!desk.helper.is_busy());
        desk.helper.ask(write(0, 1, 4096));
        desk.helper.ask(write(1, 2, PAGE_SIZE));
        desk.helper.ask(read(1, 2, PAGE_SIZE));
        desk.helper.ask(write(1, 3, PAGE_SIZE));
        desk.helper.ask(read(1, 3, 8));
        desk.helper.flush();
        desk.helper.ask(PageWish::RemoveFile { file: 0 });
        desk.helper.ask(read(0, 1, 8));
        for expected in [0, 1] {
            let PageDone::Accessed(Accessed::Written {
                page,
                result: Ok(()),
                ..
            }) = desk.next()
            else {
                panic!("it is written");
            };
            assert_eq!(page, PageNumber(expected));
        }
        let PageDone::Accessed(Accessed::Read {
            page: PageNumber(1),
            result: Ok(bytes),
            ..
        }) = desk.next()
        else {
            panic!("it is read");
        };
        assert!(bytes == [2; PAGE_SIZE as usize]);
        assert!(matches!(
            desk.next(),
            PageDone::Accessed(Accessed::Written { .. })
        ));
        let PageDone::Accessed(Accessed::Read {
            result: Ok(bytes), ..
        }) = desk.next()
        else {
            panic!("it is read");
        };
        assert_eq!(bytes, [3; 8]);
        assert!(matches!(desk.next(), PageDone::Flushed { result: Ok(()) }));
        assert!(matches!(desk.next(), PageDone::Removed { result: Ok(()) }));
        assert!(desk.helper.is_busy());
        let PageDone::Accessed(Accessed::Read {
            result: Err(refused),
            ..
        }) = desk.next()
        else {
            panic!("it is gone");
        };
        assert!(refused.to_string().contains("00000001-000000.pages"));
        assert!(!desk.helper.is_busy() && desk.helper.is_empty());
    }

    #[test]
    fn what_is_under_way_is_bounded_in_number_and_in_bytes() {
        let mut desk = Desk::new();
        let mut asked = 0;
        while desk.helper.has_room() {
            desk.helper.ask(write(asked, 1, 8));
            asked += 1;
        }
        assert_eq!(asked as usize, REQUESTS_MAX);
        // A flush has a place of its own.
        desk.helper.flush();
        for _ in 0..=asked {
            desk.next();
        }
        let mut bytes = 0;
        let frame = FRAME_SIZE_MAX.next_multiple_of(8);
        while desk.helper.has_room() {
            desk.helper.ask(write(PAGES_PER_FILE, 1, frame));
            bytes += u64::from(frame);
        }
        assert!(bytes < REQUESTS_SIZE + u64::from(frame), "{bytes}");
        while desk.helper.is_busy() {
            assert!(matches!(
                desk.next(),
                PageDone::Accessed(Accessed::Written { result: Ok(()), .. })
            ));
        }
        assert!(desk.helper.has_room());
        assert_eq!(desk.helper.bytes, 0);
    }

    #[test]
    fn an_end_waits_for_no_more_than_the_batch_that_is_run() {
        let mut desk = Desk::new();
        while desk.helper.has_room() {
            desk.helper.ask(write(0, 1, PAGE_SIZE));
        }
        desk.helper.flush();
        let started = Instant::now();
        drop(desk.helper);
        assert!(started.elapsed() < DEADLINE);
        // The directory is free at once.
        DataDirectory::open(desk.scratch.path()).unwrap();
    }
}
