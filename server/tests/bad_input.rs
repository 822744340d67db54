//! What people and pipelines do wrong, to the real binary: each mistake ends with its
//! status and with one line that names the thing, nothing that was acknowledged is
//! lost over it, and nobody sees the inside of the program.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
mod support;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use accounts::{ack_log, assert_exactly_once_in_order, dump};
use courser_core::error::Refusal;
use courser_core::frame::control::{Farewell, Fields, Pong, Welcome};
use courser_core::frame::encode;
use rustix::process::Signal;
use support::{Broker, DEADLINE, Directory, Ended, Running, courser, on_both_transports};

/// The first line names what is wrong; what to do, and what was seen, follow indented.
fn assert_said(ended: &Ended, status: i32, expected: &str) {
    assert_eq!(ended.status, Some(status), "{ended:?}");
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert!(
        lines.first().is_some_and(|line| line.starts_with("error")),
        "{ended:?}"
    );
    assert!(lines[0].contains(expected), "{expected:?} in {ended:?}");
    assert!(
        lines[1..].iter().all(|line| line.starts_with("  ")) && lines.len() <= 3,
        "{ended:?}"
    );
    for inside in ["panicked", "RUST_BACKTRACE", ".rs:", "Err(", "None"] {
        assert!(!ended.stderr.contains(inside), "{inside} in {ended:?}");
    }
}

fn succeeded(ended: Ended) -> String {
    assert_eq!(ended.status, Some(0), "{ended:?}");
    ended.stdout
}

/// Runs `courser` with a standard input and output of the test's own; what it writes to
/// either that is a pipe comes back.
fn with_files(arguments: &[&OsStr], input: Stdio, output: Stdio, errors: Stdio) -> Ended {
    let child = Command::new(env!("CARGO_BIN_EXE_courser"))
        .args(arguments)
        .stdin(input)
        .stdout(output)
        .stderr(errors)
        .spawn()
        .unwrap();
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let ended = receiver.recv_timeout(DEADLINE).unwrap().unwrap();
    Ended {
        status: ended.status.code(),
        signal: ended.status.signal(),
        stdout: String::from_utf8_lossy(&ended.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&ended.stderr).into_owned(),
    }
}

fn words(line: &str) -> Vec<&OsStr> {
    line.split_whitespace().map(OsStr::new).collect()
}

/// A pipe that nobody reads any more.
fn nobody() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_flag_or_a_value_that_does_not_exist_is_named() {
    let long = "a".repeat(200);
    let cases = [
        // No such thing.
        ("dance", "'dance'"),
        ("serve extra", "'extra'"),
        ("stats extra", "'extra'"),
        ("limits --jsn", "'--jsn'"),
        ("send --from 3 q", "'--from'"),
        ("send", "<DEST>"),
        ("receive --raw", "<DEST>"),
        ("serve --listen", "--listen"),
        // Addresses.
        ("serve --listen 127.0.0.1", "--listen"),
        ("serve --listen 127.0.0.1:99999", "127.0.0.1:99999"),
        ("serve --listen localhost:7420", "localhost:7420"),
        ("serve --listen [::1:7420", "[::1:7420"),
        ("send q --connect :7420 x", ":7420"),
        ("send q --connect 127.0.0.1:0 x", "127.0.0.1:0"),
        ("receive q --connect a:b:c", "a:b:c"),
        ("stats --connect host:port", "host:port"),
        // Cpus.
        ("serve --cores 0,0", "cpu 0 is named twice"),
        ("serve --cores 5-2", "5-2"),
        ("serve --cores -1", "--cores"),
        ("serve --cores ,", "not a list of cpus"),
        ("serve --shards -1", "--shards"),
        ("serve --shards many", "--shards"),
        // Sizes, counts and times.
        ("serve --memory -1", "--memory"),
        ("serve --memory 1.5GiB", "1.5GiB"),
        ("serve --memory 99999999999GiB", "99999999999GiB"),
        ("serve --backlog-bytes -1", "--backlog-bytes"),
        ("serve --backlog-bytes much", "a size is a number of bytes"),
        ("send q --count -1", "--count"),
        ("send q --count x", "a count is a whole number"),
        ("send q --count 18446744073709551616", "--count"),
        ("send q --count 5 x", "--count"),
        ("send q --count 1 --size 5GiB", "5GiB"),
        ("send q --count 1 --size -5", "--size"),
        ("send q --partitions 0 x", "--partitions"),
        ("send q --partitions -1 x", "--partitions"),
        ("send q --partitions 99999999999 x", "--partitions"),
        ("send q --retain -1 x", "--retain"),
        ("send q --timeout 5 x", "--timeout"),
        ("receive q --count 0", "--count"),
        ("receive q --count -1", "--count"),
        ("receive q --from yesterday", "--from"),
        ("receive q --from -1", "--from"),
        ("receive q --timeout never", "--timeout"),
        ("bench lap", "'lap'"),
        ("bench rtt --seconds nan", "--seconds"),
        ("bench rtt --seconds -1", "--seconds"),
        ("bench rtt --payload 64,,1KiB", "--payload"),
        // Destinations.
        ("send a/b x", "<DEST>"),
        ("send /a/b/c x", "/a/b/c"),
        ("send queue: x", "<DEST>"),
        ("send stream:a x", "stream:a"),
        ("send topic:ü x", "topic:ü"),
        ("send a.b x", "a.b"),
        ("receive /a/", "/a/"),
        (&format!("send {long} x"), &long),
    ];
    for (line, named) in cases {
        let ended = courser(line);
        assert_said(&ended, 2, named);
        assert_eq!(ended.stdout, "", "{line}");
        assert!(ended.stderr.contains("\n  fix "), "{line}: {ended:?}");
    }
    // An argument that is no text, and one that is nothing.
    let bytes = [OsStr::new("send"), OsStr::from_bytes(b"q\xff")];
    let ended = with_files(&bytes, Stdio::null(), Stdio::piped(), Stdio::piped());
    assert_said(&ended, 2, "UTF-8");
    let empty = [OsStr::new("send"), OsStr::new("")];
    let ended = with_files(&empty, Stdio::null(), Stdio::piped(), Stdio::piped());
    assert_said(&ended, 2, "<DEST>");
}

#[test]
fn a_broker_that_cannot_have_what_it_needs_does_not_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    for (line, status, named) in [
        (
            format!("serve --ephemeral --listen {taken}"),
            1,
            format!("cannot listen on {taken}"),
        ),
        // An address that is reserved for books, so that no machine has it.
        (
            "serve --ephemeral --listen 192.0.2.1:7420 --insecure".into(),
            1,
            "cannot listen on 192.0.2.1:7420".into(),
        ),
        (
            "serve --ephemeral --listen 192.0.2.1:7420".into(),
            2,
            "192.0.2.1:7420 is not a loopback address".into(),
        ),
        (
            "serve --ephemeral --listen 127.0.0.1:0 --memory 67108863".into(),
            2,
            "below the least of 64 MiB".into(),
        ),
        (
            "serve --ephemeral --listen 127.0.0.1:0 --backlog-bytes 67108863".into(),
            2,
            "a page file of 64 MiB each at least".into(),
        ),
        (
            "serve --ephemeral --listen 127.0.0.1:0 --memory 1000000000GiB".into(),
            1,
            "cannot be had: this machine has".into(),
        ),
    ] {
        let ended = courser(&line);
        assert_said(&ended, status, &named);
        assert_eq!(ended.stdout, "", "{line}");
    }
    // Within what the machine has, and beyond what this process may have.
    let bounded = "ulimit -v 2000000 && exec \"$0\" serve --ephemeral --listen 127.0.0.1:0 \
                   --cores none --memory 4GiB";
    let ended = Command::new("sh")
        .args(["-c", bounded, env!("CARGO_BIN_EXE_courser")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(
        said.starts_with("error[C1304]: a memory bound of 4096 MiB cannot be had"),
        "{said}"
    );
    assert_eq!(ended.status.code(), Some(1), "{said}");
}

/// Whoever is asked for a broker and is none: it says `answer` to whatever it hears
/// first, and closes, or goes on listening.
fn impostor(answer: Vec<u8>, closes: bool) -> (String, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut heard = [0; 1024];
        // Somebody who gives up before that is no concern of an impostor.
        let _count = socket.read(&mut heard).unwrap_or(0);
        let _sent = socket.write_all(&answer);
        while !closes && socket.read(&mut heard).is_ok_and(|count| count > 0) {}
    });
    (address, thread)
}

fn frame<F: Fields>(fields: &F) -> Vec<u8> {
    let mut bytes = vec![0; encode::control_size::<F>(0)];
    encode::control(0, fields, &[], &mut bytes);
    bytes
}

#[test]
fn whoever_answers_and_is_no_broker_is_told_apart_from_one() {
    let of_another_version = frame(&Farewell {
        refusal: Refusal::VersionUnsupported.code().into(),
        version_min: 7,
        version_max: 9,
        ..Farewell::default()
    });
    let welcome = |version| Welcome {
        version,
        frame_size_max: 4_194_304.into(),
        ..Welcome::default()
    };
    let mut cut_short = frame(&welcome(1));
    cut_short.truncate(20);
    let http = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec();
    let cases = [
        ("http", http, true, "does not speak the protocol"),
        (
            "noise",
            vec![0xa5; 4096],
            true,
            "does not speak the protocol",
        ),
        ("zeros", vec![0; 4096], true, "does not speak the protocol"),
        (
            "a frame out of place",
            frame(&Pong::default()),
            true,
            "does not speak the protocol",
        ),
        (
            "a version nobody asked for",
            frame(&welcome(2)),
            true,
            "does not speak the protocol",
        ),
        (
            "an older or newer broker",
            of_another_version,
            true,
            "speaks protocol versions 7 to 9, this client version 1",
        ),
        ("an end", Vec::new(), true, ""),
        ("half a welcome", cut_short, true, ""),
        ("silence", Vec::new(), false, "did not answer within"),
    ];
    for verb in ["send q x", "receive q", "stats"] {
        let running: Vec<_> = cases
            .iter()
            .map(|(name, answer, closes, expected)| {
                let (address, thread) = impostor(answer.clone(), *closes);
                let line = format!("{verb} --connect {address}");
                (
                    name,
                    Running::start(&words(&line)),
                    thread,
                    address,
                    expected,
                )
            })
            .collect();
        for (name, running, thread, address, expected) in running {
            let ended = running.end();
            eprintln!("{verb}, {name}: {}", ended.stderr.trim_end());
            assert_said(&ended, 3, expected);
            assert!(ended.stderr.contains(&address), "{ended:?}");
            assert_eq!(ended.stdout, "");
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_host_without_an_address_is_named() {
    // A name that is reserved for having none.
    let ended = courser("send q --connect courser.invalid:7420 x");
    assert_said(&ended, 3, "courser.invalid:7420 cannot be resolved");
}

#[test]
fn what_goes_beyond_a_limit_is_refused_and_what_came_before_it_stays() {
    on_both_transports(|broker| {
        for (line, status, named) in [
            ("send large --count 1 --size 4194305", 2, "4194304"),
            ("send wide --partitions 1025 x", 4, "wide"),
            ("send kept --retain 99GiB x", 4, "kept"),
            ("receive q --subscription s", 4, "a subscription"),
            ("receive q --from latest", 4, "a start"),
            (
                "receive q --subscription s --type failover",
                4,
                "a queue cannot be failover",
            ),
            (
                &format!("receive topic:t --subscription {}", "s".repeat(256)),
                2,
                "at most 255 bytes",
            ),
        ] {
            let ended = broker.courser(line);
            assert_said(&ended, status, named);
            assert_eq!(ended.stdout, "", "{line}");
        }
        // The third of four lines is too long: two are there, and the fourth was
        // never sent.
        let input = format!("one\ntwo\n{}\nfour\n", "x".repeat((4 << 20) + 1));
        let ended = broker.courser_with_input("send lines", &input);
        assert_said(&ended, 2, "message 3");
        assert!(
            ended
                .stderr
                .contains("2 acknowledged, 1 not stored, 0 unknown"),
            "{ended:?}"
        );
        let bodies = succeeded(broker.courser("receive lines --timeout 3s"));
        assert_eq!(bodies, "one\ntwo\n");
    });
}

#[test]
fn any_bytes_of_a_file_are_messages_and_what_cannot_be_read_is_said() {
    let broker = Broker::start("epoll");
    let directory = Directory::new();
    let path = directory.file("input");
    // Bytes that are no text, empty lines, a carriage return, no end of the last line.
    let bytes: &[u8] = b"\xff\xfe\x00\n\n\r\nlast";
    std::fs::write(&path, bytes).unwrap();
    let connect = format!("--connect {}", broker.address);
    let send = format!("send bytes {connect}");
    let file = File::open(&path).unwrap();
    let ended = with_files(&words(&send), file.into(), Stdio::piped(), Stdio::piped());
    assert_eq!(succeeded(ended), "acknowledged 4 messages\n");
    let received = File::create(directory.file("output")).unwrap();
    let receive = format!("receive bytes --count 4 --timeout 30s {connect}");
    let ended = with_files(
        &words(&receive),
        Stdio::null(),
        received.into(),
        Stdio::piped(),
    );
    succeeded(ended);
    let received = std::fs::read(directory.file("output")).unwrap();
    assert_eq!(received, [bytes, b"\n"].concat());

    // A directory where a file belongs, and files that cannot be written.
    let folder = File::open(std::env::temp_dir()).unwrap();
    let ended = with_files(&words(&send), folder.into(), Stdio::piped(), Stdio::piped());
    assert_said(&ended, 1, "cannot read standard input");
    for (line, named) in [
        ("send bytes x --ack-log /no/such/file", "/no/such/file"),
        ("receive bytes --dump /no/such/file", "/no/such/file"),
        ("send bytes x --ack-log /dev/full", "/dev/full"),
    ] {
        assert_said(&broker.courser(line), 1, named);
    }
    let full = || -> Stdio {
        File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
            .into()
    };
    let stats = format!("stats {connect}");
    let ended = with_files(&words(&stats), Stdio::null(), full(), Stdio::piped());
    assert_said(&ended, 1, "cannot write to standard output");
    // Nobody can be told, and the status still tells.
    let ended = with_files(&words("dance"), Stdio::null(), Stdio::null(), full());
    assert_eq!(ended.status, Some(2), "{ended:?}");
}

#[test]
fn a_reader_that_goes_away_loses_nothing_but_what_it_took() {
    let broker = Broker::start("epoll");
    let directory = Directory::new();
    let [log, first, second] = ["log", "first", "second"].map(|name| directory.file(name));
    let connect = format!("--connect {}", broker.address);
    succeeded(broker.courser(&format!("send q --count 3000 --size 100 --ack-log {log}")));
    // Whoever reads the answer to a question may stop when he has seen enough.
    for verb in ["stats", "stats --json", "limits", "--help"] {
        let line = match verb {
            "stats" | "stats --json" => format!("{verb} {connect}"),
            _ => verb.to_owned(),
        };
        let ended = with_files(&words(&line), Stdio::null(), nobody(), Stdio::piped());
        assert_eq!((ended.status, &ended.stderr[..]), (Some(0), ""), "{line}");
    }
    // Messages that nobody took are not acknowledged, which is not what was asked for.
    let receive = format!("receive q --dump {first} {connect}");
    let ended = with_files(&words(&receive), Stdio::null(), nobody(), Stdio::piped());
    assert_said(&ended, 1, "cannot write to standard output");
    let row = broker.wait_until("queue:/default/q", |row| row["consumers"] == 0);
    let left = row["unsettled"].as_u64().unwrap();
    assert_eq!(left, 3000, "written nowhere and acknowledged");
    succeeded(broker.courser(&format!(
        "receive q --count 3000 --timeout 60s --dump {second}"
    )));
    assert_exactly_once_in_order(&ack_log(&log), &dump(&second));
}

/// A sender that is interrupted in the middle of its input: what its ack log says is
/// there, exactly once and in order, and at most its window besides.
#[test]
fn a_sender_that_is_interrupted_has_logged_nothing_that_is_not_there() {
    on_both_transports(|broker| {
        for signal in [Signal::INT, Signal::TERM] {
            let directory = Directory::new();
            let [log, dumped] = ["log", "dump"].map(|name| directory.file(name));
            let sender = broker.start_verb(&format!(
                "send q{} --count 100000000 --size 64 --ack-log {log}",
                signal.as_raw()
            ));
            let queue = format!("queue:/default/q{}", signal.as_raw());
            broker.wait_until(&queue, |row| row["stored"].as_u64() > Some(1000));
            sender.signal(signal);
            let ended = sender.end();
            assert!(ended.status != Some(0), "{ended:?}");
            assert!(!ended.stderr.contains("panicked"), "{ended:?}");
            let row = broker.wait_until(&queue, |row| row["producers"] == 0);
            let stored = row["stored"].as_u64().unwrap();
            let line = format!("receive {queue} --count {stored} --timeout 60s --dump {dumped}");
            succeeded(broker.courser(&line));
            let acknowledged = ack_log(&log);
            let received = dump(&dumped);
            assert!(acknowledged.len() <= received.len());
            assert_eq!(acknowledged[..], received[..acknowledged.len()]);
        }
    });
}

#[test]
fn a_broker_that_is_asked_to_stop_tells_everybody_and_takes_no_harm_from_strangers() {
    on_both_transports(|broker| {
        let receiver = broker.start_verb("receive idle");
        broker.wait_until("queue:/default/idle", |row| row["consumers"] == 1);
        let mut stranger = TcpStream::connect(&broker.address).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stranger
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stranger.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.get(4), Some(&0x4f), "a farewell");
        broker.signal(Signal::INT);
        let ended = broker.end();
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        let ended = receiver.end();
        assert_said(&ended, 3, "the broker is stopping");
    });
}
