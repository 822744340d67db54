//! Reads the golden vectors.
//!
//! `frames.hex` is printed by `scripts/wire-vectors`, an encoder of its own
//! written from `docs/wire.md`; nothing in this crate had a part in its bytes.
//! `journal.hex` is the same for `docs/storage.md`, by `scripts/storage-vectors`.

/// One vector of a file: a frame with its padding, or what else it is of.
#[derive(Clone, Debug)]
pub(crate) struct Vector {
    /// What the tests call it.
    pub(crate) name: &'static str,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// Every frame, in the order of the file.
pub(crate) fn all() -> Vec<Vector> {
    read(include_str!("frames.hex"))
}

/// Every vector of `file`, in its order.
///
/// # Panics
///
/// If the file is not of the form that its script prints.
pub(crate) fn read(file: &'static str) -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    for line in file.lines() {
        if let Some(title) = line.strip_prefix("= ") {
            let (name, _) = title.split_once(": ").expect("a title is `name: what`");
            vectors.push(Vector {
                name,
                bytes: Vec::new(),
            });
            continue;
        }
        let bytes = line.split('#').next().unwrap_or_default();
        for byte in bytes.split_whitespace() {
            vectors
                .last_mut()
                .expect("a title comes before bytes")
                .bytes
                .push(u8::from_str_radix(byte, 16).expect("bytes are hexadecimal"));
        }
    }
    assert!(!vectors.is_empty());
    vectors
}
